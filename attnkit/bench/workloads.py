"""Inputs of the benchmarks: batches, their cost, random tensors for them, and a quick numerical check on sampled rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnkit.spec import (
    DifferentialAttention,
    DualChunkAttention,
    MlaDecode,
    PagedAttention,
    Softmax,
    TreeAttention,
    VarlenAttention,
)


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


def starts(lengths: tuple[int, ...], device: str = "cuda") -> Tensor:
    """Prefix sum with a leading zero, int32."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def _table(seq_lens: tuple[int, ...], block_size: int, device: str) -> tuple[Tensor, int]:
    """A randomly permuted block table, and the number of cache blocks."""
    most = max(-(-length // block_size) for length in seq_lens)
    blocks = len(seq_lens) * most
    order = torch.randperm(blocks, device=device).to(torch.int32)
    return order.view(len(seq_lens), most), blocks


def paged_call(shape: Shape, dtype: torch.dtype, device: str = "cuda") -> PagedAttention:
    """Random normal inputs of `shape` over a permuted paged cache."""
    table, blocks = _table(shape.seq_lens, shape.block_size, device)
    cache = (blocks, shape.block_size, shape.num_kv_heads, shape.head_dim)
    query = torch.randn(sum(shape.query_lens), shape.num_heads, shape.head_dim, dtype=dtype, device=device)
    return PagedAttention(
        query=query,
        key_cache=torch.randn(cache, dtype=dtype, device=device),
        value_cache=torch.randn(cache, dtype=dtype, device=device),
        block_table=table,
        seq_lens=torch.tensor(shape.seq_lens, dtype=torch.int32, device=device),
        query_start_loc=starts(shape.query_lens, device),
        max_query_len=max(shape.query_lens),
        max_seq_len=max(shape.seq_lens),
        softmax=Softmax(shape.head_dim**-0.5),
        out=torch.empty_like(query),
    )


def varlen_call(shape: Shape, dtype: torch.dtype, device: str = "cuda") -> VarlenAttention:
    """Random normal inputs of `shape` without a cache: packed keys and values."""
    query = torch.randn(sum(shape.query_lens), shape.num_heads, shape.head_dim, dtype=dtype, device=device)
    key = torch.randn(sum(shape.seq_lens), shape.num_kv_heads, shape.head_dim, dtype=dtype, device=device)
    return VarlenAttention(
        query=query,
        key=key,
        value=torch.randn_like(key),
        query_start_loc=starts(shape.query_lens, device),
        key_start_loc=starts(shape.seq_lens, device),
        max_query_len=max(shape.query_lens),
        max_seq_len=max(shape.seq_lens),
        softmax=Softmax(shape.head_dim**-0.5),
        out=torch.empty_like(query),
    )


def fp8_call(shape: Shape, dtype: torch.dtype, device: str = "cuda") -> PagedAttention:
    """As `paged_call`, over a float8 e4m3 cache with scales of 1/2 and 1/4.

    The query holds values that e4m3 can hold too, so that a peer which takes a float8 query computes the same thing.
    """
    call = paged_call(shape, dtype, device)
    small = torch.float8_e4m3fn
    return replace(
        call,
        query=call.query.to(small).to(dtype),
        key_cache=(call.key_cache / 0.5).to(small),
        value_cache=(call.value_cache / 0.25).to(small),
        k_scale=0.5,
        v_scale=0.25,
    )


def tree_call(batch: int, nodes: int, context: int, dtype: torch.dtype, device: str = "cuda") -> TreeAttention:
    """Verification of `nodes` drafts a sequence over `context` cached tokens; a random tree, the same for every sequence."""
    shape = Shape("", (nodes,) * batch, (context + nodes,) * batch)
    draw = torch.Generator().manual_seed(nodes)
    mask = torch.eye(nodes, dtype=torch.bool)
    for node in range(1, nodes):
        mask[node] |= mask[int(torch.randint(0, node, (1,), generator=draw))]
    paged = paged_call(shape, dtype, device)
    return TreeAttention(paged.with_softmax(causal=False), mask.to(device))


def dual_chunk_call(
    shape: Shape, chunk_size: int, local_size: int, dtype: torch.dtype, device: str = "cuda"
) -> DualChunkAttention:
    """Qwen2.5-1M's attention over unrotated keys, rotary base 1e7."""
    half = shape.head_dim // 2
    positions = torch.arange(max(2 * (chunk_size - local_size), chunk_size + 1), dtype=torch.float64)
    angles = torch.outer(positions, 1e7 ** -(torch.arange(half, dtype=torch.float64) / half))
    return DualChunkAttention(
        paged_call(shape, dtype, device),
        chunk_size,
        local_size,
        angles.cos().float().to(device),
        angles.sin().float().to(device),
    )


def differential_call(shape: Shape, dtype: torch.dtype, device: str = "cuda") -> DifferentialAttention:
    """A layer of the Differential Transformer: heads in pairs, values of a pair twice as wide."""
    paged = paged_call(shape, dtype, device)
    out = torch.empty(paged.query.shape[0], shape.num_heads // 2, 2 * shape.head_dim, dtype=dtype, device=device)
    weight = torch.rand(2 * shape.head_dim, dtype=dtype, device=device) + 0.5
    return DifferentialAttention(replace(paged, out=out), lambda_full=0.35, lambda_init=0.2, norm_weight=weight)


def mla_call(
    batch: int, context: int, dtype: torch.dtype, block_size: int = 64, device: str = "cuda", heads: int = 128
) -> MlaDecode:
    """DeepSeek's geometry: 128 heads, latent 512, rope 64."""
    table, blocks = _table((context,) * batch, block_size, device)
    return MlaDecode(
        query=torch.randn(batch, heads, 576, dtype=dtype, device=device),
        kv_cache=torch.randn(blocks, block_size, 576, dtype=dtype, device=device),
        block_table=table,
        seq_lens=torch.full((batch,), context, dtype=torch.int32, device=device),
        query_start_loc=starts((1,) * batch, device),
        max_query_len=1,
        max_seq_len=context,
        kv_lora_rank=512,
        softmax_scale=192**-0.5,
        out=torch.empty(batch, heads, 512, dtype=dtype, device=device),
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
