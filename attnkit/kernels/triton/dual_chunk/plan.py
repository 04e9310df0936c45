"""Launcher of dual chunk attention: from a `DualChunkAttention` call to launches, without host synchronisation.

Long prefills are composed of ordinary attentions where that is faster (composed.py); all else is one kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attnkit.errors import UnsupportedError
from attnkit.kernels.triton import tile_sizes
from attnkit.kernels.triton.dual_chunk import composed_plan
from attnkit.kernels.triton.dual_chunk.kernel import dual_chunk_attention
from attnkit.kernels.triton.launch import (
    Launch,
    Plan,
    Result,
    batch_args,
    cache_args,
    cache_of,
    outputs,
    padded,
    query_args,
    require_rows,
    result_args,
    run_plan,
    target_of,
)
from attnkit.kernels.triton.merge_splits import part_outputs, with_merge
from attnkit.kernels.triton.tile_sizes import Tile
from attnkit.spec import DualChunkAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

DECODE_ROWS = 32
"""Rows (new tokens * heads of the group) up to which a call is a decode."""


def run(call: DualChunkAttention, **options: Any) -> Result:
    """Compute `call`; `options` as of `plan`.

    Returns:
        out [num_tokens, num_heads, head_dim], lse [num_tokens, num_heads] float32 where asked for, kernel name.

    Raises:
        UnsupportedError: a layout or a rope table the kernel cannot take.
    """
    return run_plan(plan(call, **options))


def plan(
    call: DualChunkAttention,
    *,
    arch: str | None = None,
    tile: Tile | None = None,
    splits: int | None = None,
    composed: bool | None = None,
) -> Plan:
    """The launches of `run`, and where their results will be.

    Args:
        tile, splits: override the choice of tile_sizes.py for the dual chunk kernel, for tuning.
        composed: True or False overrides the choice between the two ways.
    """
    paged = call.paged
    query = paged.query
    tokens, heads, head_dim = query.shape
    num_seqs = paged.seq_lens.shape[0]
    out, lse = outputs(query, paged.out, paged.return_lse, head_dim)
    if tokens == 0 or num_seqs == 0:
        return out, lse, [], "nothing"
    period = _period(call)
    target = target_of(query, arch)
    key, value = cache_of(paged.key_cache, target), cache_of(paged.value_cache, target)
    require_rows(query=query, out=out, key_cache=key.data, value_cache=value.data)
    kv_heads = key.data.shape[2]
    group = heads // kv_heads
    if composed is None:
        composed = composed_plan.is_faster(call, target)
    if composed:
        if not composed_plan.supports(call):
            raise UnsupportedError("composed dual chunk attention is causal, of 16-bit queries, and needs room for its copy")
        launches, name = composed_plan.plan(call, out, lse, key, value, period, arch=arch)
        return out, lse, launches, name
    if tile is None:
        size, interpret = query.element_size(), target.interpret
        tile = tile_sizes.tile("dual_chunk", target.arch, head_dim, size, interpret=interpret)
        if paged.max_query_len * group <= DECODE_ROWS:
            tile = tile_sizes.tile("dual_chunk_decode", target.arch, head_dim, size, interpret=interpret)
    block_m = min(tile.block_m, padded(paged.max_query_len * group))
    relative = block_m <= DECODE_ROWS and query.element_size() == 2 and call.rope_cos.shape[0] >= tile.block_n
    tiles = tokens * group // block_m + num_seqs
    owned = min(tiles, num_seqs * -(-paged.max_query_len * group // block_m))
    block_n = tile.block_n

    def splits_for(units: int) -> int:
        return tile_sizes.decode_splits(owned * kv_heads, units, target.arch, paged.max_seq_len, block_n)

    if splits is None:
        splits = splits_for(target.units)
    scaled = call.original_max_position is not None
    args = {
        **result_args(*part_outputs(out, lse, splits)),
        **query_args(query),
        **cache_args(key, value),
        **batch_args(paged),
        "rope_cos": call.rope_cos,
        "rope_sin": call.rope_sin,
        "num_seqs": num_seqs,
        "num_tokens": tokens,
        "scale": float(paged.softmax.softmax_scale * paged.k_scale),
        "v_scale": float(paged.v_scale),
        "period": period,
        "chunk_size": call.chunk_size,
        "original_max_position": float(call.original_max_position or 1),
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": key.data.shape[1],
        "BLOCK_M": block_m,
        "BLOCK_N": tile.block_n,
        "SPLITS": splits,
        "RELATIVE": relative,
        "SCALED": scaled,
        "CAUSAL": paged.softmax.causal,
        "RETURN_LSE": lse is not None,
    }
    grid = (tiles, kv_heads, splits)
    attention = Launch(dual_chunk_attention, grid, args, tile.num_warps, tile.num_stages, splits_for=splits_for)
    return out, lse, *with_merge(attention, "triton_dual_chunk", out, lse, num_seqs, paged.max_query_len)


def _period(call: DualChunkAttention) -> int:
    """chunk_size - local_size, once the tables were found to cover what the kernel reads."""
    period = call.chunk_size - call.local_size
    if period < 1:
        raise UnsupportedError(f"chunk_size {call.chunk_size} must be larger than local_size {call.local_size}")
    if call.paged.softmax.softmax_scale * call.paged.k_scale <= 0.0:
        raise UnsupportedError("softmax_scale * k_scale must be positive")
    farthest = min(2 * period - 1, call.chunk_size)
    half = call.paged.query.shape[2] // 2
    for name, rope in (("rope_cos", call.rope_cos), ("rope_sin", call.rope_sin)):
        if rope.dtype != torch.float32 or not rope.is_contiguous() or rope.shape[0] <= farthest or rope.shape[1] != half:
            raise UnsupportedError(
                f"{name} must be a contiguous float32 table of more than {farthest} rows of {half}; "
                f"it is {rope.dtype} {tuple(rope.shape)}"
            )
    return period
