"""Launchers of the paged and varlen kernels: from a call of spec.py to kernel launches. No host synchronisation anywhere.

Which kernel computes a sequence:

- uniform batches whose rows fit a decode tile (decode, speculative decode): split-KV decode for all;
- uniform trees of more rows: decode's kernel with prefill's tiles, as few of them fill the device only if keys are split;
- batches where every sequence has as many new tokens as the longest: prefill for all;
- mixed batches: both kernels run; short sequences belong to decode, the rest to prefill. Each program decides on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from attnkit.errors import UnsupportedError
from attnkit.kernels.triton import tile_sizes
from attnkit.kernels.triton.hopper import prefill_plan
from attnkit.kernels.triton.launch import (
    Launch,
    Target,
    cache_args,
    cache_of,
    padded,
    pairs_of,
    require_rows,
    run_all,
    target_of,
)
from attnkit.kernels.triton.merge_splits import plan_merge
from attnkit.kernels.triton.paged.decode import paged_decode
from attnkit.kernels.triton.paged.prefill import paged_prefill
from attnkit.kernels.triton.paged.warp_decode import warp_decode
from attnkit.kernels.triton.tile_sizes import Tile
from attnkit.spec import PagedAttention, Softmax, VarlenAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

Result: TypeAlias = "tuple[Tensor, Tensor | None, str]"

MAX_DECODE_ROWS = 64
"""Rows (new tokens * heads of the group) a sequence up to which a uniform batch is a decode."""


def paged(
    call: PagedAttention,
    *,
    tree_mask: Tensor | None = None,
    arch: str | None = None,
    prefill_tile: Tile | None = None,
    decode_tile: Tile | None = None,
    splits: int | None = None,
) -> Result:
    """Attention over the paged cache.

    Args:
        call: the batch.
        tree_mask: [num_nodes, num_nodes] bool; with it `call.softmax.causal` must be False and the new tokens are a tree.
        arch: overrides the architecture that tile sizes are chosen for.
        prefill_tile, decode_tile, splits: override the choice of tile_sizes.py, for tuning.

    Returns:
        out [num_tokens, num_heads, head_dim_v] in the query's dtype (or `call.out`), lse [num_tokens, num_heads] float32
        where asked for, and the kernels that ran, joined by "+".

    Raises:
        UnsupportedError: a layout the kernels cannot address.
    """
    out, lse, launches, name = plan_paged(
        call, tree_mask=tree_mask, arch=arch, prefill_tile=prefill_tile, decode_tile=decode_tile, splits=splits
    )
    run_all(launches)
    return out, lse, name


def varlen(call: VarlenAttention, *, arch: str | None = None, prefill_tile: Tile | None = None) -> Result:
    """Attention over packed keys and values; see `paged`."""
    out, lse, launches, name = plan_varlen(call, arch=arch, prefill_tile=prefill_tile)
    run_all(launches)
    return out, lse, name


def _softmax_args(softmax: Softmax, tree_mask: Tensor | None, k_scale: float) -> dict[str, Any]:
    left, right = softmax.window
    if softmax.causal:
        right = 0
    scale = softmax.softmax_scale * k_scale
    if scale <= 0.0:
        raise UnsupportedError(f"softmax_scale * k_scale must be positive, got {scale}")
    return {
        "alibi_slopes": softmax.alibi_slopes,
        "sinks": softmax.sinks,
        "tree_mask": None if tree_mask is None else tree_mask.contiguous().view(torch.uint8),
        "num_nodes": 0 if tree_mask is None else tree_mask.shape[0],
        "scale": scale,
        "softcap": float(softmax.softcap),
        "window_left": max(left, 0),
        "window_right": max(right, 0),
        "HAS_LEFT": left >= 0,
        "HAS_RIGHT": right >= 0,
        "SOFTCAP": softmax.softcap > 0.0,
        "ALIBI": softmax.alibi_slopes is not None,
        "SINKS": softmax.sinks is not None,
        "TREE": tree_mask is not None,
    }


def _outputs(call: PagedAttention | VarlenAttention, head_dim_v: int) -> tuple[Tensor, Tensor | None]:
    query = call.query
    out = call.out
    if out is None:
        out = torch.empty(*query.shape[:2], head_dim_v, dtype=query.dtype, device=query.device)
    lse = None
    if call.return_lse:
        lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
    for name, tensor in (("query", query), ("out", out)):
        require_rows(name, tensor)
    return out, lse


def plan_paged(
    call: PagedAttention,
    *,
    tree_mask: Tensor | None = None,
    arch: str | None = None,
    prefill_tile: Tile | None = None,
    decode_tile: Tile | None = None,
    splits: int | None = None,
    crowded: bool | None = None,
) -> tuple[Tensor, Tensor | None, list[Launch], str]:
    """The launches of `paged`, and where their results will be.

    Args:
        crowded: whether to take the batch for one of many programs and short contexts (`tile_sizes.WARP_KEYS`); default: look.
    """
    query = call.query
    tokens, heads, head_dim = query.shape
    num_seqs = call.seq_lens.shape[0]
    kv_heads, head_dim_v = call.key_cache.shape[2], call.value_cache.shape[3]
    group = heads // kv_heads
    out, lse = _outputs(call, head_dim_v)
    if tokens == 0 or num_seqs == 0:
        return out, lse, [], "nothing"
    target = target_of(query, arch)
    key, value = cache_of(call.key_cache, target), cache_of(call.value_cache, target)
    require_rows("key_cache", key.data)
    require_rows("value_cache", value.data)
    common = {
        "query": query,
        **cache_args(key, value),
        "stride_q_token": query.stride(0),
        "stride_q_head": query.stride(1),
        "stride_table": call.block_table.stride(0),
        "table": call.block_table,
        "seq_lens": call.seq_lens,
        "query_start_loc": call.query_start_loc,
        "v_scale": float(call.v_scale),
        **_softmax_args(call.softmax, tree_mask, call.k_scale),
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "HEAD_DIM_V": head_dim_v,
        "BLOCK_D": padded(head_dim),
        "BLOCK_DV": padded(head_dim_v),
        "BLOCK_SIZE": call.key_cache.shape[1],
    }
    width = padded(max(head_dim, head_dim_v))
    size = query.element_size()
    given = prefill_tile
    prefill_tile = given or tile_sizes.tile("prefill", target.arch, width, size, interpret=target.interpret)
    given_warps = warps = decode_tile if decode_tile is not None and decode_tile.by_warp else None
    if decode_tile is None:
        warps = tile_sizes.warp_decode(target.arch, width, size, key.fp8 != 0, call.max_query_len * group)
    if decode_tile is None or decode_tile.by_warp:
        decode_tile = tile_sizes.tile("decode", target.arch, width, size, interpret=target.interpret)

    uniform = tokens == num_seqs * call.max_query_len
    rows = call.max_query_len * group
    tree_rows = tree_mask is not None and rows > MAX_DECODE_ROWS and (uniform or num_seqs == 1)
    if tree_rows:
        decode_tile = given or tile_sizes.tile("tree", target.arch, width, size, interpret=target.interpret)
    if tree_rows or (rows <= MAX_DECODE_ROWS and (uniform or call.max_query_len == 1)):
        longest, shortest = call.max_query_len, None
    elif uniform or num_seqs == 1:
        longest, shortest = 0, 1
    else:
        longest = max(1, decode_tile.block_m // group)
        shortest = longest + 1
    launches: list[Launch] = []
    names: list[str] = []
    if shortest is not None and given is None and prefill_plan.takes(target.arch, common):
        launches.append(prefill_plan.plan(out, lse, common, target.units, tokens, num_seqs, kv_heads, shortest))
        names.append("gluon_hopper_prefill")
    elif shortest is not None:
        launches.append(_prefill(out, lse, common, prefill_tile, tokens, num_seqs, kv_heads, shortest))
        names.append("triton_paged_prefill")
    if longest:
        if warps is not None and key.fp8:
            pairs = (pairs_of(call.key_cache, target), pairs_of(call.value_cache, target))
            if pairs[0] is None or pairs[1] is None:
                warps = None
            else:
                decode_tile, common = warps, {**common, **cache_args(pairs[0], pairs[1])}
        elif given_warps:
            decode_tile = given_warps
        decode, name = _decode(
            out, lse, common, decode_tile, warps, target, call.max_seq_len, num_seqs, kv_heads, longest, splits, crowded
        )
        launches.extend(decode)
        names.append(name)
    tree = "triton_tree:" if tree_mask is not None else ""
    return out, lse, launches, tree + "+".join(names)


def _prefill(
    out: Tensor,
    lse: Tensor | None,
    common: dict[str, Any],
    tile: Tile,
    tokens: int,
    num_seqs: int,
    kv_heads: int,
    shortest: int,
) -> Launch:
    args = {
        **common,
        "out": out,
        "lse": lse,
        "key_start_loc": None,
        "num_seqs": num_seqs,
        "shortest": shortest,
        "stride_o_token": out.stride(0),
        "stride_o_head": out.stride(1),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "PAGED": True,
        "RETURN_LSE": lse is not None,
    }
    grid = (tokens * common["GROUP"] // tile.block_m + num_seqs, kv_heads)
    return Launch(paged_prefill, grid, args, tile.num_warps, tile.num_stages)


def _decode(
    out: Tensor,
    lse: Tensor | None,
    common: dict[str, Any],
    tile: Tile,
    warps: Tile | None,
    target: Target,
    max_seq_len: int,
    num_seqs: int,
    kv_heads: int,
    longest: int,
    splits: int | None,
    crowded: bool | None,
) -> tuple[list[Launch], str]:
    """`warps`: the tile of `warp_decode`, where that may take the place of `tile`."""
    rows = longest * common["GROUP"]
    block_m = min(max(tile.block_m, padded(rows)), max(tile.block_m, MAX_DECODE_ROWS))
    row_tiles = -(-rows // block_m)
    programs = num_seqs * kv_heads * row_tiles
    if warps is not None and not tile.by_warp:
        many = programs > 2 * target.units and max_seq_len <= tile_sizes.WARP_KEYS
        warps = None if (many if crowded is None else crowded) else warps

    def splits_for(units: int) -> int:
        # A tree's tile is as large as prefill's: one is all that a multiprocessor holds.
        per_unit = 1 if rows > MAX_DECODE_ROWS else tile.per_unit
        number = tile_sizes.decode_splits(programs, units, target.arch, max_seq_len, tile.block_n, per_unit)
        if warps is not None and number <= tile_sizes.WARP_SPLITS:
            number = tile_sizes.decode_splits(programs, units, target.arch, max_seq_len, warps.block_n, warps.per_unit)
        return number

    if splits is None:
        splits = splits_for(target.units)
    chosen = warps if warps is not None and (tile.by_warp or splits <= tile_sizes.WARP_SPLITS) else tile
    tokens, heads, head_dim_v = out.shape
    part_out, part_lse = out, lse
    if splits > 1:
        part_out = torch.empty(splits, tokens, heads, head_dim_v, dtype=torch.float32, device=out.device)
        part_lse = torch.empty(splits, tokens, heads, dtype=torch.float32, device=out.device)
    args = {
        **common,
        "out": part_out,
        "lse": part_lse,
        "num_tokens": tokens,
        "longest": longest,
        "stride_o_token": part_out.stride(-3),
        "stride_o_head": part_out.stride(-2),
        "BLOCK_M": block_m,
        "BLOCK_N": chosen.block_n,
        "SPLITS": splits,
        "ROW_TILES": row_tiles,
        "RETURN_LSE": lse is not None,
    }
    if chosen.by_warp:
        args["WARPS"] = chosen.num_warps
    kernel = warp_decode if chosen.by_warp else paged_decode
    grid = (kv_heads, splits * row_tiles, num_seqs)
    decode = Launch(kernel, grid, args, chosen.num_warps, chosen.num_stages, splits_for=splits_for)
    name = f"triton_{kernel.fn.__name__}"
    if splits == 1:
        return [decode], name
    merge = plan_merge(out, lse, part_out, part_lse, common["query_start_loc"], num_seqs, longest)
    return [decode, merge], f"{name}_split"


def plan_varlen(
    call: VarlenAttention, *, arch: str | None = None, prefill_tile: Tile | None = None
) -> tuple[Tensor, Tensor | None, list[Launch], str]:
    """The launch of `varlen`, and where its result will be."""
    query = call.query
    tokens, heads, head_dim = query.shape
    kv_heads, head_dim_v = call.key.shape[1], call.value.shape[2]
    num_seqs = call.query_start_loc.shape[0] - 1
    out, lse = _outputs(call, head_dim_v)
    if tokens == 0:
        return out, lse, [], "nothing"
    require_rows("key", call.key)
    require_rows("value", call.value)
    target = target_of(query, arch)
    tile = prefill_tile or tile_sizes.tile(
        "prefill", target.arch, padded(max(head_dim, head_dim_v)), query.element_size(), interpret=target.interpret
    )
    args: dict[str, Any] = {
        "out": out,
        "lse": lse,
        "query": query,
        "key": call.key,
        "value": call.value,
        "table": None,
        "seq_lens": None,
        "query_start_loc": call.query_start_loc,
        "key_start_loc": call.key_start_loc,
        "num_seqs": num_seqs,
        "v_scale": 1.0,
        "shortest": 1,
        "stride_q_token": query.stride(0),
        "stride_q_head": query.stride(1),
        "stride_k_block": 0,
        "stride_k_token": call.key.stride(0),
        "stride_k_head": call.key.stride(1),
        "stride_v_block": 0,
        "stride_v_token": call.value.stride(0),
        "stride_v_head": call.value.stride(1),
        "stride_o_token": out.stride(0),
        "stride_o_head": out.stride(1),
        "stride_table": 0,
        **_softmax_args(call.softmax, None, 1.0),
        "GROUP": heads // kv_heads,
        "HEAD_DIM": head_dim,
        "HEAD_DIM_V": head_dim_v,
        "BLOCK_D": padded(head_dim),
        "BLOCK_DV": padded(head_dim_v),
        "BLOCK_SIZE": 1,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "PAGED": False,
        "SAME_STRIDES": call.key.stride(0) == call.value.stride(0),
        "FP8": 0,
        "RETURN_LSE": lse is not None,
    }
    if prefill_tile is None and prefill_plan.takes(target.arch, args):
        launch = prefill_plan.plan(out, lse, args, target.units, tokens, num_seqs, kv_heads, shortest=1)
        return out, lse, [launch], "gluon_hopper_prefill"
    grid = (tokens * (heads // kv_heads) // tile.block_m + num_seqs, kv_heads)
    return out, lse, [Launch(paged_prefill, grid, args, tile.num_warps, tile.num_stages)], "triton_varlen_prefill"
