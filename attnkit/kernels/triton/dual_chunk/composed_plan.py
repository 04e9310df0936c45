"""Dual chunk attention of long prefills as three ordinary attentions over rotated keys, joined by their log-sum-exp.

For each of a query's chunk distances 0, 1 and more, the query has one rotation and the keys are a run: so each is plain
attention, and takes the best kernel that this architecture has for it. What it costs: keys are rotated and, with the values,
laid out in one piece first (the cache read and written once), which pays from some hundred new tokens on.

    segments    where each part's queries and keys lie                     (on the device: lengths are not read back)
    queries     the three rotations of the query
    gather      rotated keys and values, heads outermost
    attention   the own chunk, causal; then the chunk before and all earlier ones, without a mask, as one batch
    join        by log-sum-exp

Where the copy would need more than `MOST_BYTES`, key heads take turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attnkit.kernels.triton.dual_chunk.composed_kernels import (
    dual_chunk_gather,
    dual_chunk_join,
    dual_chunk_queries,
    dual_chunk_segments,
)
from attnkit.kernels.triton.launch import Cache, Launch, Target, batch_args, padded, query_args, result_args
from attnkit.kernels.triton.paged import plan as paged_plan
from attnkit.spec import DualChunkAttention, Softmax, VarlenAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

MOST_BYTES = 1 << 30
"""Of the copy of keys and values."""

COMPOSE_FROM = 128
"""New tokens of the longest sequence from which the copy pays."""

ARCHS = ("sm_90",)
"""Architectures where it is chosen: those whose prefill kernel is much faster than the dual chunk kernel."""

GATHERED = 64
"""Tokens a program of the gather."""


def bytes_a_head(call: DualChunkAttention) -> int:
    """Bytes of the copy of one key head."""
    paged = call.paged
    return int(2 * paged.seq_lens.shape[0] * paged.max_seq_len * paged.query.shape[2] * paged.query.element_size())


def is_faster(call: DualChunkAttention, target: Target) -> bool:
    """Whether this way is faster than the dual chunk kernel, from what the host knows."""
    return target.arch in ARCHS and call.paged.max_query_len >= COMPOSE_FROM and supports(call)


def supports(call: DualChunkAttention) -> bool:
    """Whether this way computes `call`: causal, 16-bit queries, and room for the copy of one key head at least."""
    paged = call.paged
    fits = bytes_a_head(call) <= MOST_BYTES and paged.seq_lens.shape[0] * paged.max_seq_len < 1 << 31
    return paged.softmax.causal and paged.query.element_size() == 2 and fits


def plan(
    call: DualChunkAttention,
    out: Tensor,
    lse: Tensor | None,
    key: Cache,
    value: Cache,
    period: int,
    *,
    arch: str | None = None,
) -> tuple[list[Launch], str]:
    """The launches that write `out` and `lse`; the caller has asked `supports` and checked strides and rope tables."""
    paged = call.paged
    query = paged.query
    tokens, heads, head_dim = query.shape
    num_seqs, kv_heads, group = paged.seq_lens.shape[0], key.data.shape[2], heads // key.data.shape[2]
    longest, device = paged.max_seq_len, query.device
    segments = -(-(paged.max_query_len - 1) // period) + 1
    count = num_seqs * segments
    starts = torch.empty(12 * count, dtype=torch.int32, device=device)
    own_queries, own_keys, before_queries, before_keys = starts.split([2 * count, 2 * count, 4 * count, 4 * count])
    batch = batch_args(paged)
    where: dict[str, Any] = {name: batch[name] for name in ("seq_lens", "query_start_loc", "stride_lens", "stride_starts")}
    where |= {"num_seqs": num_seqs, "period": period}
    rope = {"rope_cos": call.rope_cos, "rope_sin": call.rope_sin}
    launches = [
        Launch(
            dual_chunk_segments,
            (-(-count // 128),),
            {
                "own_queries": own_queries,
                "own_keys": own_keys,
                "before_queries": before_queries,
                "before_keys": before_keys,
                **where,
                "longest": longest,
                "SEGMENTS": segments,
                "BLOCK": 128,
            },
        )
    ]
    own = torch.empty(tokens, heads, head_dim, dtype=query.dtype, device=device)
    before = torch.empty(2 * tokens, heads, head_dim, dtype=query.dtype, device=device)
    turned = {
        "own": own,
        "before": before,
        **query_args(query),
        **where,
        **rope,
        "chunk_size": call.chunk_size,
        "original_max_position": float(call.original_max_position or 1),
        "HEADS": heads,
        "HEADS_PADDED": 1 << (heads - 1).bit_length(),
        "HALF": head_dim // 2,
        "SCALED": call.original_max_position is not None,
    }
    launches.append(Launch(dual_chunk_queries, (tokens,), turned))
    at_once = min(kv_heads, max(1, MOST_BYTES // bytes_a_head(call)))
    copy = torch.empty(2, at_once, num_seqs * longest, head_dim, dtype=query.dtype, device=device)
    names: list[str] = []
    for first in range(0, kv_heads, at_once):
        here = slice(first, min(first + at_once, kv_heads))
        taken = slice(here.start * group, here.stop * group)
        kv = here.stop - here.start
        keys, values = copy[0, :kv].transpose(0, 1), copy[1, :kv].transpose(0, 1)
        gather = {
            "keys": copy[0],
            "values": copy[1],
            "key": key.data[:, :, here],
            "value": value.data[:, :, here],
            **batch,
            **rope,
            "period": period,
            "longest": longest,
            "stride_k_block": key.data.stride(0),
            "stride_k_token": key.data.stride(1),
            "stride_k_head": key.data.stride(2),
            "stride_v_block": value.data.stride(0),
            "stride_v_token": value.data.stride(1),
            "stride_v_head": value.data.stride(2),
            "stride_to_head": copy.stride(1),
            "stride_to_token": copy.stride(2),
            "HEADS": kv,
            "HEAD_DIM": head_dim,
            "BLOCK_SIZE": key.data.shape[1],
            "BLOCK_N": GATHERED,
            "FP8": key.fp8,
        }
        launches.append(Launch(dual_chunk_gather, (-(-longest // GATHERED) * num_seqs,), gather, num_warps=8))
        parts: dict[str, Any] = {}
        for name, queries, query_starts, key_starts, causal in (
            ("before", before, before_queries, before_keys, False),
            ("own", own, own_queries, own_keys, True),
        ):
            part = VarlenAttention(
                query=queries[:, taken],
                key=keys,
                value=values,
                query_start_loc=query_starts,
                key_start_loc=key_starts,
                max_query_len=min(paged.max_query_len, period),
                max_seq_len=longest,
                softmax=Softmax(paged.softmax.softmax_scale * paged.k_scale, causal=causal),
                return_lse=True,
                out=torch.empty(queries.shape[0], kv * group, head_dim, dtype=query.dtype, device=device),
            )
            parts[name], parts[f"{name}_lse"], more, ran = paged_plan.plan_varlen(part, arch=arch)
            launches.extend(more)
            names.append(ran)
        join = {
            **result_args(out[:, taken], None if lse is None else lse[:, taken]),
            **parts,
            **where,
            "v_scale": float(paged.v_scale),
            "stride_lse": 0 if lse is None else lse.stride(0),
            "HEADS": kv * group,
            "HEADS_PADDED": padded(kv * group),
            "HEAD_DIM": head_dim,
            "RETURN_LSE": lse is not None,
        }
        launches.append(Launch(dual_chunk_join, (tokens,), join))
    return launches, f"triton_dual_chunk_composed:{names[0]}"
