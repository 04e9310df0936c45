"""Which kernels compute a batch over the paged cache, with which tiles and how many splits: numbers in, a `Route` out.

- uniform batches whose rows fit a decode tile (decode, speculative decode): split-KV decode for all;
- uniform trees of more rows: decode's kernel with prefill's tiles, as few of them fill the device only if keys are split;
- batches where every sequence has as many new tokens as the longest: prefill for all;
- mixed batches: both kernels run; short sequences belong to decode, the rest to prefill. Each program decides on the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from attnkit.kernels.triton import tile_sizes
from attnkit.kernels.triton.launch import Target, padded
from attnkit.kernels.triton.tile_sizes import Tile

MAX_DECODE_ROWS = 64
"""Rows (new tokens * heads of the group) a sequence up to which a uniform batch is a decode."""

HOPPER = "hopper"
"""In place of a prefill's tile: sm_90's own kernel, which brings its own."""


@dataclass(frozen=True)
class Shape:
    """What a route depends on, all of it known to the host.

    Args:
        num_tokens, num_seqs, max_query_len, max_seq_len: of the batch, as in `PagedAttention`.
        kv_heads, group: key heads, and query heads of each.
        width: the padded head size, the larger one of keys and values.
        element_size: bytes of a query element.
        fp8: whether the cache is float8.
        paired: whether that can be read two neighbouring columns at a time.
        tree: whether the new tokens are a tree.
        tma: whether sm_90's own prefill kernel takes the call's options and layout.
    """

    num_tokens: int
    num_seqs: int
    max_query_len: int
    max_seq_len: int
    kv_heads: int
    group: int
    width: int
    element_size: int
    fp8: bool = False
    paired: bool = False
    tree: bool = False
    tma: bool = False

    @property
    def rows(self) -> int:
        """Query rows of the longest sequence and one key head."""
        return self.max_query_len * self.group


@dataclass(frozen=True)
class Route:
    """Where a batch goes.

    Args:
        prefill: the tile of `paged_prefill`; HOPPER; None: nothing is left for it.
        decode: the tile of `paged_decode`, or, `by_warp`, of `warp_decode`; None: prefill computes everything.
        boundary: new tokens of a sequence up to which decode computes it, and above which prefill does.
        splits: runs that decode cuts the keys into.
    """

    prefill: Tile | str | None
    decode: Tile | None
    boundary: int
    splits: int = 1


def route(
    shape: Shape,
    target: Target,
    *,
    prefill_tile: Tile | None = None,
    decode_tile: Tile | None = None,
    splits: int | None = None,
    crowded: bool | None = None,
) -> Route:
    """The route of a batch of this shape on this target.

    Args:
        prefill_tile, decode_tile, splits: override the choice of tile_sizes.py, for tuning.
        crowded: whether the batch is one of many programs and short contexts; default: `is_crowded`.
    """

    def listed(op: tile_sizes.Op) -> Tile:
        return tile_sizes.tile(op, target.arch, shape.width, shape.element_size, interpret=target.interpret)

    uniform = shape.num_tokens == shape.num_seqs * shape.max_query_len
    alike = uniform or shape.num_seqs == 1
    large_tree = shape.tree and shape.rows > MAX_DECODE_ROWS and alike
    if large_tree:
        tile = prefill_tile or listed("tree")
    else:
        tile = decode_tile if decode_tile and not decode_tile.by_warp else listed("decode")
    prefill: Tile | str | None = prefill_tile or (HOPPER if target.arch == "sm_90" and shape.tma else listed("prefill"))
    if large_tree or (shape.rows <= MAX_DECODE_ROWS and (uniform or shape.max_query_len == 1)):
        prefill, boundary = None, shape.max_query_len
    elif alike:
        return Route(prefill, None, 0)
    else:
        boundary = max(1, tile.block_m // shape.group)

    if decode_tile:
        by_warp = decode_tile if decode_tile.by_warp else None
    else:
        by_warp = tile_sizes.warp_decode(target.arch, shape.width, shape.element_size, shape.fp8, shape.rows)
    if by_warp and shape.fp8:
        by_warp = by_warp if shape.paired else None
    if by_warp and (shape.fp8 or decode_tile):
        tile = by_warp
    tile = replace(tile, block_m=max(tile.block_m, min(padded(boundary * shape.group), MAX_DECODE_ROWS)))
    if by_warp and not tile.by_warp:
        by_warp = None if (is_crowded(shape, target, tile, boundary) if crowded is None else crowded) else by_warp

    wanted = _splits(shape, target, tile, boundary, 1 if boundary * shape.group > MAX_DECODE_ROWS else tile.per_unit)
    if by_warp and wanted <= tile_sizes.WARP_SPLITS:
        wanted = _splits(shape, target, replace(by_warp, block_m=tile.block_m), boundary, by_warp.per_unit)
    splits = splits or wanted
    if by_warp and splits <= tile_sizes.WARP_SPLITS:
        tile = replace(by_warp, block_m=tile.block_m)
    return Route(prefill, tile, boundary, splits)


def is_crowded(shape: Shape, target: Target, decode: Tile, boundary: int) -> bool:
    """Whether decode has so many programs for so short contexts that `paged_decode` answers sooner than `warp_decode`."""
    return decode_programs(shape, decode, boundary) > 2 * target.units and shape.max_seq_len <= tile_sizes.WARP_KEYS


def decode_programs(shape: Shape, decode: Tile, boundary: int) -> int:
    """Programs of decode before keys are split."""
    return shape.num_seqs * shape.kv_heads * -(-boundary * shape.group // decode.block_m)


def _splits(shape: Shape, target: Target, tile: Tile, boundary: int, per_unit: int) -> int:
    """How many runs fill the device. A tree's tile is as large as prefill's: one is all that a multiprocessor holds."""
    programs = decode_programs(shape, tile, boundary)
    return tile_sizes.decode_splits(programs, target.units, target.arch, shape.max_seq_len, tile.block_n, per_unit)
