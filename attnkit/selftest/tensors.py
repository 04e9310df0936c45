"""Tensors for a case: a permuted block table, unused slots full of NaN, outputs full of NaN, contents that show faults.

Everything is drawn on the CPU from a seed that depends on the case's name, so that the same case is the same question on every
device and in every run.
"""

from __future__ import annotations

import math
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from attnkit.selftest.case import TREE_PARENTS, Case
from attnkit.spec import (
    Call,
    DifferentialAttention,
    DualChunkAttention,
    MlaDecode,
    PagedAttention,
    Softmax,
    TreeAttention,
    VarlenAttention,
)

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
FAR = 1 << 31
"""Elements of a cache that a case with `far` puts before the blocks in use."""


def build(case: Case, device: str = "cpu", *, contents: bool = True) -> Call:
    """The call of a case, its tensors on `device`, its output buffer filled with NaN.

    Without `contents` the other tensors are memory as it comes, for whoever only plans the call: no planner looks at values.
    """
    named = f"{case.op}/{case.name}" + (f"/{case.seed}" if case.seed else "")
    draw = torch.Generator().manual_seed(zlib.crc32(named.encode()))  # of a seed the generator reads 32 bits
    scale = softmax_scale(case)
    contents_of = partial(_contents, scale=scale, draw=draw) if contents else _uninitialized
    parts = [contents_of(case, new, total) for new, total in case.seqs]
    query = torch.cat([q for q, _, _ in parts]).to(_dtype(case))
    new = [n for n, _ in case.seqs]
    total = [n for _, n in case.seqs]
    starts = _prefix(new)
    softmax = Softmax(
        scale,
        case.causal,
        case.window,
        case.softcap,
        (case.alibi_by * _slopes(case.heads)).to(device) if case.alibi else None,
        # Exact in bfloat16, in which models keep them and some kernels want them.
        (0.5 + torch.randn(case.heads, generator=draw)).bfloat16().float().to(device) if case.sinks else None,
        score_mod=relative_bias if case.score_mod else None,
        mask_mod=every_fifth_hidden if case.mask_mod else None,
    )
    out = _nan_output(case, query.shape[0], device)
    if case.op == "varlen":
        key = torch.cat([k for _, k, _ in parts]).to(_dtype(case))
        value = torch.cat([v for _, _, v in parts]).to(_dtype(case))
        return VarlenAttention(
            query.to(device),
            key.to(device),
            value.to(device),
            starts.to(device),
            _prefix(total).to(device),
            max(new),
            max(total),
            softmax,
            return_lse=case.lse,
            out=out,
        )
    assert case.block_size is not None
    table, small, scales = _paged(case, [(k, v) for _, k, v in parts], draw, written=contents)
    caches = [_at_the_end(cache, device) if case.far else cache.to(device) for cache in small]
    if case.apart:
        caches[1] = _wider(caches[1])
    if case.far:
        table = table + (caches[0].shape[0] - small[0].shape[0])
    lens = torch.tensor(total, dtype=torch.int32, device=device)
    if case.op == "mla_decode":
        return MlaDecode(
            query.to(device),
            caches[0].squeeze(2),
            table.to(device),
            lens,
            starts.to(device),
            max(new),
            max(total),
            kv_lora_rank=case.head_dim_v,
            softmax_scale=scale,
            kv_scale=scales[0],
            return_lse=case.lse,
            out=out,
        )
    paged = PagedAttention(
        query.to(device),
        caches[0],
        caches[1],
        table.to(device),
        lens,
        starts.to(device),
        max(new),
        max(total),
        softmax,
        k_scale=scales[0],
        v_scale=scales[1],
        return_lse=case.lse,
        out=out,
    )
    if case.op == "tree":
        return TreeAttention(paged, tree_mask(case.tree).to(device))
    if case.op == "dual_chunk":
        size, local = case.chunk
        cos, sin = _rope(2 * size, case.head_dim)
        return DualChunkAttention(
            paged, size, local, cos.to(device), sin.to(device), original_max_position=100 if case.stretched else None
        )
    if case.op == "differential":
        weight = (1.0 + 0.1 * torch.randn(2 * case.head_dim, generator=draw)).to(_dtype(case)).to(device)
        return DifferentialAttention(paged, lambda_full=0.45, lambda_init=0.36, norm_weight=weight if case.weighted else None)
    return paged


def relative_bias(score: Tensor, seq: Tensor, head: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """A score_mod that needs all it is given: a bias by distance, head and sequence."""
    return score - 0.02 * (q_pos - k_pos) * (1 + head % 3) + 0.5 * ((k_pos + seq) % 2)


def every_fifth_hidden(seq: Tensor, head: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """A mask_mod that needs all it is given: hides every fifth distance but the own position, where it starts by head."""
    return (q_pos == k_pos) | ((q_pos - k_pos + head + seq) % 5 != 0)


def softmax_scale(case: Case) -> float:
    """1/sqrt(head_dim); for MLA 1/sqrt(128 + 64), that of the expanded heads."""
    return 1.0 / math.sqrt(192 if case.op == "mla_decode" else case.head_dim)


def tree_mask(parents: tuple[int, ...] = TREE_PARENTS) -> Tensor:
    """[nodes, nodes] bool: node i sees node j where j is i or an ancestor of i."""
    nodes = len(parents)
    mask = torch.eye(nodes, dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask


def _dtype(case: Case) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, case.dtype)
    return dtype


def _contents(case: Case, new: int, total: int, scale: float, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Query [new, heads, d], key [total, kv_heads, d], value [total, kv_heads, dv] of one sequence, float32."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    q, k = normal(new, case.heads, case.head_dim), normal(total, case.kv_heads, case.head_dim)
    v = normal(total, case.kv_heads, case.head_dim_v)
    if case.content == "sharp":
        q = 3.0 * q
    elif case.content == "large":
        q, k = 6.0 * q, 6.0 * k
    elif case.content == "dominant" and total:
        k[total // 2] = 0.25 * q.mean(dim=(0, 1)) + 4.0 * q[-1, 0] / q[-1, 0].norm()
    elif case.content == "equal" and total:
        k = k[:1].expand_as(k).clone()
        if case.op == "mla_decode":  # keys are values there: both large, and queries so small that the scores stay moderate
            k = 900.0 + 100.0 * k
            q = q / 1000.0
        v = 900.0 + 100.0 * v
    elif case.content == "balanced" and total:
        signs = torch.sign(normal(case.head_dim)) + 0.0
        width = 2.0 / (scale * case.head_dim)
        high = torch.zeros(total, dtype=torch.bool)
        high[-max(1, round(total / 55)) :] = True
        side = torch.where(high, 1.0, -1.0)[:, None, None]
        q = signs.expand_as(q).clone()
        k = (side * width * signs).expand_as(k).clone()
        v = side.expand(total, case.kv_heads, case.head_dim_v).clone()
        if case.op == "differential":
            # The norm hides a common factor: the second softmax is level, and the two kinds of keys carry different directions.
            q[:, 1::2] = 0.0
            two = [torch.sign(normal(case.kv_heads, case.head_dim_v)) for _ in range(2)]
            v = torch.where(high[:, None, None], two[0], two[1])
    return q, k, v


def _uninitialized(case: Case, new: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Like `_contents`, in shape and dtype alone."""
    query, key = torch.empty(new, case.heads, case.head_dim), torch.empty(total, case.kv_heads, case.head_dim)
    return query, key, torch.empty(total, case.kv_heads, case.head_dim_v)


def _paged(
    case: Case, parts: list[tuple[Tensor, Tensor]], draw: torch.Generator, *, written: bool
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[float, float]]:
    """(block_table, (key_cache, value_cache), (k_scale, v_scale)) with blocks dealt in random order."""
    size = case.block_size or 1
    blocks = [-(-k.shape[0] // size) for k, _ in parts]
    count = sum(blocks) + 2
    order = torch.randperm(count, generator=draw).tolist()
    spare = order.pop()  # never used by any sequence: all NaN, and what the table's unused entries point at
    table = torch.full((len(parts), max(1, *blocks)), spare, dtype=torch.int32)
    if not written:
        stored = FP8.get(case.kv_cache_dtype, _dtype(case))
        caches = [torch.empty(count, size, case.kv_heads, d, dtype=stored) for d in (case.head_dim, case.head_dim_v)]
        return table, (caches[0], caches[1]), (1.0, 1.0) if case.kv_cache_dtype == "auto" else (0.02, 0.03)
    keys = torch.full((count, size, case.kv_heads, case.head_dim), math.nan)
    values = torch.full((count, size, case.kv_heads, case.head_dim_v), math.nan)
    for row, (k, v) in enumerate(parts):
        taken = torch.tensor([order.pop() for _ in range(blocks[row])], dtype=torch.int32)
        table[row, : blocks[row]] = taken
        for cache, rows in ((keys, k), (values, v)):
            whole = rows.new_full((blocks[row] * size, *rows.shape[1:]), math.nan)
            whole[: rows.shape[0]] = rows
            cache[taken.long()] = whole.view(blocks[row], size, *rows.shape[1:])
    if case.kv_cache_dtype == "auto":
        return table, (keys.to(_dtype(case)), values.to(_dtype(case))), (1.0, 1.0)
    fp8 = FP8[case.kv_cache_dtype]
    # No powers of two, and unlike, so that one in the place of the other shows. One cache (MLA's) has one scale.
    scales = tuple(x.nan_to_num().abs().max().item() / most for x, most in ((keys, 230.0), (values, 170.0)))
    return table, ((keys / scales[0]).to(fp8), (values / scales[1]).to(fp8)), (scales[0], scales[1])


def _at_the_end(cache: Tensor, device: str) -> Tensor:
    """`cache` [blocks, ...] as the last blocks of one that has more than `FAR` elements before them.

    What lies before is never written, and of a CPU's memory never taken.
    """
    before = FAR // cache[0].numel() + 1
    large = torch.empty(before + cache.shape[0], *cache.shape[1:], dtype=cache.dtype, device=device)
    large[before:] = cache.to(device)
    return large


def _wider(cache: Tensor) -> Tensor:
    """`cache` [blocks, size, heads, width] as a view of one with a head more, which is NaN."""
    wide = torch.full((*cache.shape[:2], cache.shape[2] + 1, cache.shape[3]), math.nan, device=cache.device).to(cache.dtype)
    part = wide[:, :, :-1]
    part.view(torch.uint8).copy_(cache.view(torch.uint8))
    return part


def _nan_output(case: Case, tokens: int, device: str) -> Tensor:
    shape = (tokens, case.heads, case.head_dim_v)
    if case.op == "differential":
        shape = (tokens, case.heads // 2, 2 * case.head_dim_v)
    return torch.full(shape, math.nan, dtype=_dtype(case), device=device)


def _prefix(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def _slopes(heads: int) -> Tensor:
    """ALiBi's geometric slopes (arXiv 2108.12409)."""
    return torch.tensor([2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)], dtype=torch.float32)


def _rope(positions: int, head_dim: int) -> tuple[Tensor, Tensor]:
    inverse = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * inverse
    return angle.cos().float(), angle.sin().float()
