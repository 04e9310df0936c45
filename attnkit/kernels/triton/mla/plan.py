"""Launcher of the MLA decode kernel: from an `MlaDecode` call to launches, without host synchronisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnkit.errors import UnsupportedError
from attnkit.kernels.triton import tile_sizes
from attnkit.kernels.triton.hopper import mla_plan
from attnkit.kernels.triton.launch import (
    Launch,
    Plan,
    Result,
    batch_args,
    cache_of,
    outputs,
    query_args,
    require_rows,
    result_args,
    run_plan,
    target_of,
)
from attnkit.kernels.triton.merge_splits import part_outputs, with_merge
from attnkit.kernels.triton.mla.kernel import mla_decode_split
from attnkit.kernels.triton.tile_sizes import Tile
from attnkit.spec import MlaDecode

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


def run(call: MlaDecode, **options: Any) -> Result:
    """Compute `call`; `options` as of `plan`.

    Returns:
        out [num_tokens, num_heads, kv_lora_rank], lse [num_tokens, num_heads] float32 where asked for, kernel name.

    Raises:
        UnsupportedError: a layout the kernel cannot address.
    """
    return run_plan(plan(call, **options))


def plan(call: MlaDecode, *, arch: str | None = None, tile: Tile | None = None, splits: int | None = None) -> Plan:
    """The launches of `run`; `arch`, `tile`, `splits` override the choice of tile_sizes.py, for tuning."""
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
    if tile is None and mla_plan.supports(target.arch, call):
        return mla_plan.plan(call, out, lse, target.units, splits)
    tile = tile or tile_sizes.tile("mla", target.arch, latent, query.element_size(), interpret=target.interpret)
    row_tiles = -(-call.max_query_len * heads // tile.block_m)
    block_n = tile.block_n

    def splits_for(units: int) -> int:
        return tile_sizes.decode_splits(num_seqs * row_tiles, units, target.arch, call.max_seq_len, block_n)

    if splits is None:
        splits = splits_for(target.units)
    args = {
        **result_args(*part_outputs(out, lse, splits)),
        **query_args(query),
        **batch_args(call),
        "cache": cache.data,
        "num_tokens": tokens,
        "scale": float(call.softmax_scale * call.kv_scale),
        "kv_scale": float(call.kv_scale),
        "stride_block": cache.data.stride(0),
        "stride_token": cache.data.stride(1),
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
