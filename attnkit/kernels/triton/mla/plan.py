"""Launcher of the MLA decode kernel: from an `MlaDecode` call to launches, without host synchronisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnkit.errors import UnsupportedError
from attnkit.kernels.triton import tile_sizes
from attnkit.kernels.triton.hopper import mla_plan
from attnkit.kernels.triton.launch import Launch, cache_of, outputs, require_rows, run_all, target_of
from attnkit.kernels.triton.merge_splits import part_outputs, with_merge
from attnkit.kernels.triton.mla.kernel import mla_decode_split
from attnkit.kernels.triton.tile_sizes import Tile
from attnkit.spec import MlaDecode

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


def run(
    call: MlaDecode, *, arch: str | None = None, tile: Tile | None = None, splits: int | None = None
) -> tuple[Tensor, Tensor | None, str]:
    """Compute `call`.

    Args:
        call: see `MlaDecode`.
        arch, tile, splits: override the choice of tile_sizes.py, for tuning and for compiling ahead.

    Returns:
        out [num_tokens, num_heads, kv_lora_rank], lse [num_tokens, num_heads] float32 where asked for, kernel name.

    Raises:
        UnsupportedError: a layout the kernel cannot address.
    """
    out, lse, launches, name = plan(call, arch=arch, tile=tile, splits=splits)
    run_all(launches)
    return out, lse, name


def plan(
    call: MlaDecode, *, arch: str | None = None, tile: Tile | None = None, splits: int | None = None
) -> tuple[Tensor, Tensor | None, list[Launch], str]:
    """The launches of `run`, and where their results will be."""
    query = call.query
    tokens, heads, width = query.shape
    latent = call.kv_lora_rank
    num_seqs = call.seq_lens.shape[0]
    out, lse = outputs(query, call.out, call.return_lse, latent)
    if tokens == 0 or num_seqs == 0:
        return out, lse, [], "nothing"
    if call.softmax_scale * call.kv_scale <= 0.0:
        raise UnsupportedError(f"softmax_scale * kv_scale must be positive, got {call.softmax_scale * call.kv_scale}")
    target = target_of(query, arch)
    cache = cache_of(call.kv_cache, target)
    require_rows(query=query, out=out, kv_cache=cache.data)
    if tile is None and mla_plan.takes(target.arch, call):
        return mla_plan.plan(call, out, lse, target.units, splits)
    tile = tile or tile_sizes.tile("mla", target.arch, latent, query.element_size(), interpret=target.interpret)
    row_tiles = -(-call.max_query_len * heads // tile.block_m)
    block_n = tile.block_n

    def splits_for(units: int) -> int:
        return tile_sizes.decode_splits(num_seqs * row_tiles, units, target.arch, call.max_seq_len, block_n)

    if splits is None:
        splits = splits_for(target.units)
    part_out, part_lse = part_outputs(out, lse, splits)
    args = {
        "out": part_out,
        "lse": part_lse,
        "query": query,
        "cache": cache.data,
        "table": call.block_table,
        "seq_lens": call.seq_lens,
        "query_start_loc": call.query_start_loc,
        "num_tokens": tokens,
        "scale": call.softmax_scale * call.kv_scale,
        "kv_scale": float(call.kv_scale),
        "stride_q_token": query.stride(0),
        "stride_q_head": query.stride(1),
        "stride_block": cache.data.stride(0),
        "stride_token": cache.data.stride(1),
        "stride_o_token": part_out.stride(-3),
        "stride_o_head": part_out.stride(-2),
        "stride_table": call.block_table.stride(0),
        "HEADS": heads,
        "LATENT": latent,
        "ROPE": width - latent,
        "BLOCK_SIZE": call.kv_cache.shape[1],
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "SPLITS": splits,
        "FP8": cache.fp8,
        "RETURN_LSE": lse is not None,
    }
    grid = (row_tiles, splits, num_seqs)
    decode = Launch(mla_decode_split, grid, args, tile.num_warps, tile.num_stages, splits_for=splits_for)
    return out, lse, *with_merge(decode, "triton_mla_decode", out, lse, num_seqs, call.max_query_len)
