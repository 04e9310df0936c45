"""Launches of the paged and packed (varlen) kernels for a call of spec.py, by route.py. Nothing waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from attnkit.errors import UnsupportedError
from attnkit.kernels.triton import tile_sizes
from attnkit.kernels.triton.hopper import prefill_plan
from attnkit.kernels.triton.launch import (
    Launch,
    Plan,
    Result,
    Target,
    batch_args,
    cache_args,
    cache_of,
    outputs,
    padded,
    pairs_of,
    query_args,
    require_rows,
    result_args,
    run_plan,
    step,
    target_of,
)
from attnkit.kernels.triton.merge_splits import part_outputs, with_merge
from attnkit.kernels.triton.paged.decode_kernel import paged_decode
from attnkit.kernels.triton.paged.prefill_kernel import paged_prefill
from attnkit.kernels.triton.paged.route import HOPPER, MAX_DECODE_ROWS, Route, Shape, is_crowded, route
from attnkit.kernels.triton.paged.warp_decode_kernel import warp_decode
from attnkit.kernels.triton.tile_sizes import Tile
from attnkit.spec import PagedAttention, Softmax, VarlenAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


def paged(call: PagedAttention, **options: Any) -> Result:
    """Attention over the paged cache; `options` as of `plan_paged`.

    Returns:
        out [num_tokens, num_heads, head_dim_v] in the query's dtype (or `call.out`), lse [num_tokens, num_heads] float32
        where asked for, and the kernels that ran, joined by "+".

    Raises:
        UnsupportedError: a layout the kernels cannot address.
    """
    return run_plan(plan_paged(call, **options))


def varlen(call: VarlenAttention, **options: Any) -> Result:
    """Attention over packed keys and values; `options` as of `plan_varlen`, the rest as of `paged`."""
    return run_plan(plan_varlen(call, **options))


def _softmax_args(softmax: Softmax, tree_mask: Tensor | None, k_scale: float) -> dict[str, Any]:
    left, right = softmax.window
    if softmax.causal:
        right = 0
    scale = float(softmax.softmax_scale * k_scale)
    if scale <= 0.0:
        raise UnsupportedError(f"softmax_scale * k_scale must be positive, got {scale}")
    return {
        "alibi_slopes": softmax.alibi_slopes,
        "sinks": softmax.sinks,
        "tree_mask": None if tree_mask is None else tree_mask.view(torch.uint8),
        "num_nodes": 0 if tree_mask is None else tree_mask.shape[0],
        "stride_slope": step(softmax.alibi_slopes),
        "stride_sink": step(softmax.sinks),
        "stride_node": step(tree_mask),
        "stride_edge": step(tree_mask, 1),
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


def _width_args(group: int, head_dim: int, head_dim_v: int) -> dict[str, int]:
    return {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "HEAD_DIM_V": head_dim_v,
        "BLOCK_D": padded(head_dim),
        "BLOCK_DV": padded(head_dim_v),
    }


def plan_paged(
    call: PagedAttention,
    *,
    tree_mask: Tensor | None = None,
    arch: str | None = None,
    prefill_tile: Tile | None = None,
    decode_tile: Tile | None = None,
    splits: int | None = None,
    crowded: bool | None = None,
) -> Plan:
    """The launches of `paged`, and where their results will be.

    Args:
        tree_mask: [num_nodes, num_nodes] bool; with it `call.softmax.causal` must be False and the new tokens are a tree.
        arch: overrides the architecture that tile sizes are chosen for.
        prefill_tile, decode_tile, splits, crowded: as for `route`.
    """
    query = call.query
    tokens, heads, head_dim = query.shape
    num_seqs = call.seq_lens.shape[0]
    kv_heads, head_dim_v = call.key_cache.shape[2], call.value_cache.shape[3]
    group = heads // kv_heads
    out, lse = outputs(query, call.out, call.return_lse, head_dim_v)
    if tokens == 0 or num_seqs == 0:
        return out, lse, [], "nothing"
    target = target_of(query, arch)
    key, value = cache_of(call.key_cache, target), cache_of(call.value_cache, target)
    require_rows(query=query, out=out, key_cache=key.data, value_cache=value.data)
    common = {
        **query_args(query),
        **cache_args(key, value),
        **batch_args(call),
        "v_scale": float(call.v_scale),
        **_softmax_args(call.softmax, tree_mask, call.k_scale),
        **_width_args(group, head_dim, head_dim_v),
        "BLOCK_SIZE": call.key_cache.shape[1],
    }
    pairs = (pairs_of(call.key_cache, target), pairs_of(call.value_cache, target)) if key.fp8 else (None, None)
    shape = Shape(
        num_tokens=tokens,
        num_seqs=num_seqs,
        max_query_len=call.max_query_len,
        max_seq_len=call.max_seq_len,
        kv_heads=kv_heads,
        group=group,
        width=padded(max(head_dim, head_dim_v)),
        element_size=query.element_size(),
        fp8=key.fp8 != 0,
        paired=None not in pairs and head_dim > 16,  # a product of half the columns has at least 16 of them
        tree=tree_mask is not None,
        # Not asked of a decode of one token, whose launch is what it waits for.
        tma=(call.max_query_len > 1 or group > MAX_DECODE_ROWS) and prefill_plan.supports(target.arch, common),
    )

    def routed(target: Target, splits: int | None, crowded: bool | None) -> Route:
        return route(shape, target, prefill_tile=prefill_tile, decode_tile=decode_tile, splits=splits, crowded=crowded)

    way = routed(target, splits, crowded)
    launches: list[Launch] = []
    names: list[str] = []
    if way.prefill is not None:
        launch, name = _prefill(out, lse, common, way.prefill, target.units, num_seqs, kv_heads, way.boundary + 1)
        launches.append(launch)
        names.append(name)
    if way.decode is not None:
        if crowded is None:
            crowded = is_crowded(shape, target, way.decode, way.boundary)
        if way.decode.by_warp and pairs[0] is not None and pairs[1] is not None:
            common.update(cache_args(pairs[0], pairs[1]))
        decode, name = _decode(
            out, lse, common, way, num_seqs, kv_heads, lambda units: routed(replace(target, units=units), None, crowded).splits
        )
        launches.extend(decode)
        names.append(name)
    tree = "triton_tree:" if tree_mask is not None else ""
    return out, lse, launches, tree + "+".join(names)


def plan_varlen(call: VarlenAttention, *, arch: str | None = None, prefill_tile: Tile | None = None) -> Plan:
    """The launch of `varlen`, and where its result will be."""
    query = call.query
    tokens, heads, head_dim = query.shape
    kv_heads, head_dim_v = call.key.shape[1], call.value.shape[2]
    out, lse = outputs(query, call.out, call.return_lse, head_dim_v)
    if tokens == 0:
        return out, lse, [], "nothing"
    require_rows(query=query, out=out, key=call.key, value=call.value)
    target = target_of(query, arch)
    common: dict[str, Any] = {
        **query_args(query),
        "key": call.key,
        "value": call.value,
        "table": None,
        "seq_lens": None,
        "query_start_loc": call.query_start_loc,
        "key_start_loc": call.key_start_loc,
        "v_scale": 1.0,
        "stride_k_block": 0,
        "stride_k_token": call.key.stride(0),
        "stride_k_head": call.key.stride(1),
        "stride_v_block": 0,
        "stride_v_token": call.value.stride(0),
        "stride_v_head": call.value.stride(1),
        "stride_lens": 1,
        "stride_starts": step(call.query_start_loc),
        "stride_key_starts": step(call.key_start_loc),
        "stride_table": 0,
        "stride_page": 1,
        **_softmax_args(call.softmax, None, 1.0),
        **_width_args(heads // kv_heads, head_dim, head_dim_v),
        "BLOCK_SIZE": 1,
        "SAME_STRIDES": call.key.stride(0) == call.value.stride(0),
        "FP8": 0,
    }
    tile: Tile | str | None = prefill_tile
    if tile is None and prefill_plan.supports(target.arch, common):
        tile = HOPPER
    if tile is None:
        width = padded(max(head_dim, head_dim_v))
        tile = tile_sizes.tile("prefill", target.arch, width, query.element_size(), interpret=target.interpret)
    launch, name = _prefill(out, lse, common, tile, target.units, call.query_start_loc.shape[0] - 1, kv_heads, 1)
    return out, lse, [launch], name.replace("paged", "varlen")


def _prefill(
    out: Tensor,
    lse: Tensor | None,
    common: dict[str, Any],
    tile: Tile | str,
    units: int,
    num_seqs: int,
    kv_heads: int,
    shortest: int,
) -> tuple[Launch, str]:
    """Prefill of the sequences of `shortest` new tokens or more, and the kernel's name; packed keys where there is no table."""
    if not isinstance(tile, Tile):
        return prefill_plan.plan(out, lse, common, units, num_seqs, kv_heads, shortest), "gluon_hopper_prefill"
    args = {
        "key_start_loc": None,
        "stride_key_starts": 1,
        **common,
        **result_args(out, lse),
        "num_seqs": num_seqs,
        "shortest": shortest,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "PAGED": common["table"] is not None,
        "RETURN_LSE": lse is not None,
    }
    grid = (out.shape[0] * common["GROUP"] // tile.block_m + num_seqs, kv_heads)
    return Launch(paged_prefill, grid, args, tile.num_warps, tile.num_stages), "triton_paged_prefill"


def _decode(
    out: Tensor,
    lse: Tensor | None,
    common: dict[str, Any],
    way: Route,
    num_seqs: int,
    kv_heads: int,
    splits_for: Callable[[int], int],
) -> tuple[list[Launch], str]:
    """Decode of the sequences of `way.boundary` new tokens or fewer, with the merge of its splits, and the kernels' name."""
    tile = way.decode
    assert tile is not None
    row_tiles = -(-way.boundary * common["GROUP"] // tile.block_m)
    args = {
        **common,
        **result_args(*part_outputs(out, lse, way.splits)),
        "num_tokens": out.shape[0],
        "longest": way.boundary,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "SPLITS": way.splits,
        "ROW_TILES": row_tiles,
        "RETURN_LSE": lse is not None,
    }
    kernel = paged_decode
    if tile.by_warp:
        kernel, args["WARPS"] = warp_decode, tile.num_warps
    grid = (kv_heads, way.splits * row_tiles, num_seqs)
    launch = Launch(kernel, grid, args, tile.num_warps, tile.num_stages, splits_for=splits_for)
    return with_merge(launch, f"triton_{kernel.fn.__name__}", out, lse, num_seqs, way.boundary)
