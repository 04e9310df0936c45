"""Which kernels, tiles and splits a batch gets on which architecture: a table, and what the overrides do."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="Triton is not installed here")

from attnkit.kernels.triton.launch import Target
from attnkit.kernels.triton.paged.route import HOPPER, Route, Shape, is_crowded, route
from attnkit.kernels.triton.tile_sizes import Tile

UNITS = {
    "sm_75": 68,
    "sm_75-scalar": 68,
    "sm_80": 108,
    "sm_89": 128,
    "sm_90": 132,
    "sm_100": 148,
    "gfx942": 304,
    "gfx1100": 48,
    "xe": 64,
    "interpreter": 8,
}
"""Multiprocessors of a usual device of each architecture."""


def shape(num_seqs: int, query_len: int, max_seq_len: int, **changes: int) -> Shape:
    """Sequences of one length, with 32 query heads on 8 of 128 in 16 bits."""
    whole = Shape(
        num_seqs * query_len, num_seqs, query_len, max_seq_len, kv_heads=8, group=4, width=128, element_size=2, tma=True
    )
    return replace(whole, **changes)


SHAPES = {
    "decode": shape(1, 1, 8192),
    "decode-many": shape(256, 1, 4096),
    "decode-crowded": shape(256, 1, 1024),
    "decode-short": shape(4, 1, 64),
    "decode-fp8": shape(4, 1, 8192, fp8=True, paired=True, tma=False),
    "decode-fp8-odd": shape(4, 1, 8192, fp8=True, tma=False),
    "decode-float32": shape(4, 1, 8192, element_size=4, tma=False),
    "speculative": shape(4, 5, 2048),
    "one-token-of-128-heads": shape(4, 1, 2048, kv_heads=1, group=128),
    "prefill": shape(4, 512, 512),
    "prefill-256": shape(4, 512, 512, width=256, tma=False),
    "prefill-softcap": shape(4, 512, 512, tma=False),
    "prefill-float32": shape(4, 512, 512, element_size=4, tma=False),
    "one-sequence": shape(1, 70, 70),
    "mixed": shape(4, 100, 2048, max_query_len=300),
    "mixed-large-group": shape(4, 100, 2048, max_query_len=300, kv_heads=1, group=64),
    "small-tree": shape(1, 9, 512, tree=True, tma=False),
    "large-tree": shape(1, 64, 4096, tree=True, tma=False),
    "uneven-trees": shape(2, 30, 4096, max_query_len=40, tree=True, tma=False),
}

# shape, architecture, prefill's tile, decode's tile, boundary, splits
ROUTES: list[tuple[str, str, str | None, str | None, int, int]] = [
    ("decode", "sm_75", None, "16x64 4w1s", 1, 16),
    ("decode", "sm_75-scalar", None, "16x32 4w1s", 1, 16),
    ("decode", "sm_80", None, "16x64 4w3s", 1, 32),
    ("decode", "sm_89", None, "16x32 4w3s", 1, 32),
    ("decode", "sm_90", None, "16x32 4w3s", 1, 32),
    ("decode", "sm_100", None, "16x64 4w3s", 1, 64),
    ("decode", "gfx942", None, "16x64 4w1s", 1, 64),
    ("decode", "gfx1100", None, "16x16 4w1s", 1, 8),
    ("decode", "xe", None, "16x64 4w2s", 1, 16),
    ("decode", "interpreter", None, "32x32 4w1s", 1, 2),
    ("decode-many", "sm_80", None, "16x64 4w3s", 1, 1),
    ("decode-many", "sm_90", None, "16x64 4w3s by warp", 1, 1),
    ("decode-many", "gfx942", None, "16x64 4w1s", 1, 1),
    ("decode-many", "interpreter", None, "32x32 4w1s", 1, 1),
    ("decode-crowded", "sm_80", None, "16x64 4w3s", 1, 1),
    ("decode-crowded", "sm_90", None, "16x32 4w3s", 1, 1),
    ("decode-short", "sm_80", None, "16x64 4w3s", 1, 1),
    ("decode-short", "sm_90", None, "16x64 4w3s by warp", 1, 1),
    ("decode-short", "gfx942", None, "16x64 4w1s", 1, 1),
    ("decode-fp8", "sm_75", None, "16x64 4w1s", 1, 4),
    ("decode-fp8", "sm_80", None, "16x64 4w3s", 1, 8),
    ("decode-fp8", "sm_90", None, "16x64 2w3s by warp", 1, 8),
    ("decode-fp8", "gfx942", None, "16x64 4w1s", 1, 16),
    ("decode-fp8-odd", "sm_90", None, "16x32 4w3s", 1, 8),
    ("decode-float32", "sm_80", None, "16x32 4w1s", 1, 8),
    ("decode-float32", "sm_90", None, "16x32 4w1s", 1, 8),
    ("decode-float32", "gfx942", None, "16x32 4w1s", 1, 16),
    ("speculative", "sm_75", None, "32x64 4w1s", 5, 4),
    ("speculative", "sm_80", None, "32x64 4w3s", 5, 8),
    ("speculative", "sm_90", None, "32x32 4w3s", 5, 8),
    ("speculative", "gfx942", None, "32x64 4w1s", 5, 16),
    ("speculative", "interpreter", None, "32x32 4w1s", 5, 1),
    ("one-token-of-128-heads", "sm_80", "128x64 8w3s", None, 0, 1),
    ("one-token-of-128-heads", "sm_90", "hopper", None, 0, 1),
    ("prefill", "sm_75", "128x32 8w2s", None, 0, 1),
    ("prefill", "sm_75-scalar", "32x32 4w1s", None, 0, 1),
    ("prefill", "sm_80", "128x64 8w3s", None, 0, 1),
    ("prefill", "sm_89", "64x64 4w2s", None, 0, 1),
    ("prefill", "sm_90", "hopper", None, 0, 1),
    ("prefill", "sm_100", "128x64 8w3s", None, 0, 1),
    ("prefill", "gfx942", "128x64 4w1s", None, 0, 1),
    ("prefill", "gfx1100", "64x32 4w1s", None, 0, 1),
    ("prefill", "xe", "128x64 16w2s", None, 0, 1),
    ("prefill", "interpreter", "32x32 4w1s", None, 0, 1),
    ("prefill-256", "sm_75", "32x32 4w1s", None, 0, 1),
    ("prefill-256", "sm_90", "128x64 8w2s", None, 0, 1),
    ("prefill-256", "gfx942", "64x32 4w1s", None, 0, 1),
    ("prefill-softcap", "sm_90", "128x64 8w3s", None, 0, 1),
    ("prefill-float32", "sm_80", "16x32 4w1s", None, 0, 1),
    ("prefill-float32", "sm_90", "16x32 4w1s", None, 0, 1),
    ("one-sequence", "sm_80", "128x64 8w3s", None, 0, 1),
    ("mixed", "sm_75", "128x32 8w2s", "16x64 4w1s", 4, 4),
    ("mixed", "sm_75-scalar", "32x32 4w1s", "16x32 4w1s", 4, 4),
    ("mixed", "sm_80", "128x64 8w3s", "16x64 4w3s", 4, 8),
    ("mixed", "sm_89", "64x64 4w2s", "16x32 4w3s", 4, 8),
    ("mixed", "sm_90", "hopper", "16x32 4w3s", 4, 8),
    ("mixed", "sm_100", "128x64 8w3s", "16x64 4w3s", 4, 16),
    ("mixed", "gfx942", "128x64 4w1s", "16x64 4w1s", 4, 16),
    ("mixed", "gfx1100", "64x32 4w1s", "16x16 4w1s", 4, 2),
    ("mixed", "xe", "128x64 16w2s", "16x64 4w2s", 4, 4),
    ("mixed", "interpreter", "32x32 4w1s", "32x32 4w1s", 8, 1),
    ("mixed-large-group", "sm_80", "128x64 8w3s", "64x64 4w3s", 1, 16),
    ("small-tree", "sm_80", None, "64x64 4w3s", 9, 4),
    ("small-tree", "sm_90", None, "64x32 4w3s", 9, 8),
    ("large-tree", "sm_75", None, "128x32 8w2s", 64, 4),
    ("large-tree", "sm_80", None, "128x64 8w3s", 64, 4),
    ("large-tree", "sm_90", None, "128x64 8w3s", 64, 8),
    ("large-tree", "gfx942", None, "128x64 4w1s", 64, 16),
    ("large-tree", "interpreter", None, "64x32 4w1s", 64, 1),
    ("uneven-trees", "sm_80", "128x64 8w3s", "16x64 4w3s", 4, 16),
]


def words(tile: Tile | str | None) -> str | None:
    """A tile as the table has it: rows x keys, warps, stages."""
    if not isinstance(tile, Tile):
        return tile
    return f"{tile.block_m}x{tile.block_n} {tile.num_warps}w{tile.num_stages}s" + " by warp" * tile.by_warp


def on(arch: str) -> Target:
    return Target(arch, UNITS[arch])


@pytest.mark.parametrize(("name", "arch", "prefill", "decode", "boundary", "splits"), ROUTES)
def test_table(name: str, arch: str, prefill: str | None, decode: str | None, boundary: int, splits: int) -> None:
    found = route(SHAPES[name], on(arch))
    assert (words(found.prefill), words(found.decode), found.boundary, found.splits) == (prefill, decode, boundary, splits)


def test_tables_names_are_used() -> None:
    assert {name for name, *_ in ROUTES} == set(SHAPES) and {arch for _, arch, *_ in ROUTES} == set(UNITS)


def test_a_given_prefill_tile_replaces_the_architectures_own_kernel() -> None:
    tile = Tile(64, 32, 4, 2)
    assert route(SHAPES["prefill"], on("sm_90")).prefill == HOPPER
    assert route(SHAPES["prefill"], on("sm_90"), prefill_tile=tile) == Route(tile, None, 0)
    assert route(SHAPES["large-tree"], on("sm_90"), prefill_tile=tile).decode == tile


def test_a_given_decode_tile_is_taken_whatever_the_number_of_splits() -> None:
    warp, block = Tile(16, 64, 4, 3, by_warp=True), Tile(16, 32, 8, 2)
    for splits in (1, 32):
        assert route(SHAPES["decode"], on("sm_80"), decode_tile=warp, splits=splits) == Route(None, warp, 1, splits)
        assert route(SHAPES["decode"], on("sm_90"), decode_tile=block, splits=splits) == Route(None, block, 1, splits)


def test_float8_that_cannot_be_read_in_pairs_is_never_decoded_by_warp() -> None:
    warp = Tile(16, 64, 4, 3, by_warp=True)
    assert words(route(SHAPES["decode-fp8-odd"], on("sm_90"), decode_tile=warp).decode) == "16x32 4w3s"


def test_few_splits_of_an_uncrowded_device_are_decoded_by_warp() -> None:
    decode, crowded = SHAPES["decode"], SHAPES["decode-crowded"]
    assert [words(route(decode, on("sm_90"), splits=n).decode) for n in (4, 8)] == ["16x64 4w3s by warp", "16x32 4w3s"]
    assert words(route(decode, on("sm_90"), splits=4, crowded=True).decode) == "16x32 4w3s"
    assert words(route(crowded, on("sm_90"), crowded=False).decode) == "16x64 4w3s by warp"
    tile = Tile(16, 32, 4, 3)
    assert is_crowded(crowded, on("sm_90"), tile, 1) and not is_crowded(SHAPES["decode-many"], on("sm_90"), tile, 1)
