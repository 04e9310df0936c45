"""The workloads of the kernel benchmark: batches, their cost, and a numerical check on sampled rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from attnkit.spec import MlaDecode, PagedAttention, Softmax


@dataclass(frozen=True)
class Shape:
    """A batch: new tokens and total length of each sequence, heads and cache layout."""

    name: str
    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    block_size: int = 16

    @property
    def flops(self) -> float:
        """Useful floating-point operations under a causal mask, two products."""
        seen = sum(q * (length - q) + q * (q + 1) // 2 for q, length in zip(self.query_lens, self.seq_lens, strict=True))
        return 4.0 * self.num_heads * self.head_dim * seen

    @property
    def cache_bytes(self) -> int:
        """Bytes of 16-bit keys and values that must be read at least once."""
        return 2 * 2 * self.num_kv_heads * self.head_dim * sum(self.seq_lens)


def prefill(batch: int, length: int, head_dim: int = 128) -> Shape:
    """`batch` sequences of `length` new tokens, no context."""
    return Shape(f"prefill B{batch} S{length} D{head_dim}", (length,) * batch, (length,) * batch, head_dim=head_dim)


def decode(batch: int, context: int) -> Shape:
    """One new token for each of `batch` sequences of length `context`."""
    return Shape(f"decode B{batch} ctx{context}", (1,) * batch, (context,) * batch)


MIXED = Shape("mixed 8x512@4096+56dec@4096", (512,) * 8 + (1,) * 56, (4608,) * 8 + (4096,) * 56)
PREFILLS = (prefill(4, 4096), prefill(1, 16384), prefill(16, 1024), prefill(4, 4096, 64))
DECODES = tuple(decode(b, c) for c in (1024, 8192, 32768) for b in (1, 16, 64, 256))
MLA = tuple((b, c) for c in (4096, 8192) for b in (16, 64, 128))


def starts(lengths: tuple[int, ...]) -> Tensor:
    """Prefix sum with a leading zero, int32, on the GPU."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device="cuda")


def _table(seq_lens: tuple[int, ...], block_size: int) -> tuple[Tensor, int]:
    """A randomly permuted block table, and the number of cache blocks."""
    most = max(-(-length // block_size) for length in seq_lens)
    blocks = len(seq_lens) * most
    order = torch.randperm(blocks, device="cuda", dtype=torch.int32)
    return order.view(len(seq_lens), most), blocks


def paged_call(shape: Shape, dtype: torch.dtype) -> PagedAttention:
    """Random normal inputs of `shape` over a permuted paged cache."""
    table, blocks = _table(shape.seq_lens, shape.block_size)
    cache = (blocks, shape.block_size, shape.num_kv_heads, shape.head_dim)
    query = torch.randn(sum(shape.query_lens), shape.num_heads, shape.head_dim, dtype=dtype, device="cuda")
    return PagedAttention(
        query=query,
        key_cache=torch.randn(cache, dtype=dtype, device="cuda"),
        value_cache=torch.randn(cache, dtype=dtype, device="cuda"),
        block_table=table,
        seq_lens=torch.tensor(shape.seq_lens, dtype=torch.int32, device="cuda"),
        query_start_loc=starts(shape.query_lens),
        max_query_len=max(shape.query_lens),
        max_seq_len=max(shape.seq_lens),
        softmax=Softmax(shape.head_dim**-0.5),
        out=torch.empty_like(query),
    )


def mla_call(batch: int, context: int, dtype: torch.dtype, block_size: int = 64) -> MlaDecode:
    """DeepSeek's geometry: 128 heads, latent 512, rope 64."""
    table, blocks = _table((context,) * batch, block_size)
    return MlaDecode(
        query=torch.randn(batch, 128, 576, dtype=dtype, device="cuda"),
        kv_cache=torch.randn(blocks, block_size, 576, dtype=dtype, device="cuda"),
        block_table=table,
        seq_lens=torch.full((batch,), context, dtype=torch.int32, device="cuda"),
        query_start_loc=starts((1,) * batch),
        max_query_len=1,
        max_seq_len=context,
        kv_lora_rank=512,
        softmax_scale=192**-0.5,
        out=torch.empty(batch, 128, 512, dtype=dtype, device="cuda"),
    )


def relative_error(call: PagedAttention | MlaDecode, out: Tensor) -> float:
    """||out - exact|| / ||exact|| on rows sampled from the first, a middle and the last sequence; exact is float64."""
    lens, begins = call.seq_lens.tolist(), call.query_start_loc.tolist()
    wrong = right = 0.0
    for seq in sorted({0, len(lens) // 2, len(lens) - 1}):
        length, query_len = lens[seq], begins[seq + 1] - begins[seq]
        for node in sorted({0, query_len // 3, query_len - 1}):
            seen = length - query_len + node + 1
            exact = _exact_row(call, seq, begins[seq] + node, seen)
            wrong += (out[begins[seq] + node].double() - exact).square().sum().item()
            right += exact.square().sum().item()
    return float((wrong / right) ** 0.5)


def _exact_row(call: PagedAttention | MlaDecode, seq: int, token: int, seen: int) -> Tensor:
    """The output row [num_heads, width] of one token in float64."""
    if isinstance(call, MlaDecode):
        key_cache, scale = call.kv_cache.unsqueeze(2), call.softmax_scale
    else:
        key_cache, scale = call.key_cache, call.softmax.softmax_scale
    blocks = call.block_table[seq, : -(-seen // key_cache.shape[1])].long()
    key = key_cache[blocks].flatten(0, 1)[:seen].double()
    if isinstance(call, MlaDecode):
        value = key[..., : call.kv_lora_rank]
    else:
        value = call.value_cache[blocks].flatten(0, 1)[:seen].double()
    query = call.query[token].double().view(key.shape[1], -1, key.shape[2])
    p = torch.softmax(torch.einsum("hgd,lhd->hgl", query, key) * scale, dim=-1)
    return torch.einsum("hgl,lhd->hgd", p, value).flatten(0, 1)
