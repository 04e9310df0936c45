"""Tile sizes of the kernels, as data: by architecture family, kernel and padded head size. Nothing is searched at start.

Shared memory is what bounds them: 64 KiB a block on sm_75 and on AMD (160 KiB on gfx950), 99 KiB on sm_86, sm_89 and sm_120,
163 KiB on sm_80, 227 KiB on sm_90 and sm_100. tests/kernels/test_triton_targets.py compiles every kernel for every target with
these and checks that.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal, TypeAlias

Op: TypeAlias = Literal["prefill", "decode", "mla", "dual_chunk", "tree", "dual_chunk_decode"]


@dataclass(frozen=True)
class Tile:
    """One choice: BLOCK_M query rows by BLOCK_N keys, on `num_warps` warps with `num_stages` loads in flight.

    `by_warp`: decode by `warp_decode`; `per_unit`: programs that then keep a multiprocessor busy, 0 for those of its family.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    by_warp: bool = False
    per_unit: int = 0


FAMILIES: tuple[tuple[str, str], ...] = (
    ("sm_75", "turing"),
    ("sm_75-scalar", "turing-scalar"),
    ("sm_80", "ampere"),
    ("sm_87", "ampere"),
    ("sm_8?", "ada"),
    ("sm_90", "hopper"),
    ("sm_10?", "blackwell"),
    ("sm_11?", "blackwell"),
    ("sm_12?", "ada"),
    ("gfx90a", "cdna"),
    ("gfx94?", "cdna"),
    ("gfx950", "cdna"),
    ("gfx11*", "rdna"),
    ("gfx12*", "rdna"),
    ("xe*", "xe"),
)
"""First match wins. sm_75-scalar: Triton's own code for sm_75, without the tensor cores that attnkit.kernels.turing brings.
sm_86, sm_89 and sm_120 have the same shared memory and the same kind of matrix instruction (mma.sync)."""

# Padded head size -> tile; 16-bit inputs.
TILES: dict[tuple[str, Op], dict[int, Tile]] = {
    ("turing", "prefill"): {64: Tile(128, 64, 8, 2), 128: Tile(128, 32, 8, 2), 256: Tile(32, 32, 4, 1)},
    ("ampere", "prefill"): {64: Tile(128, 64, 4, 3), 128: Tile(128, 64, 8, 3), 256: Tile(64, 32, 4, 2)},
    ("ada", "prefill"): {64: Tile(128, 64, 4, 2), 128: Tile(64, 64, 4, 2), 256: Tile(64, 16, 4, 2)},
    ("hopper", "prefill"): {64: Tile(64, 64, 4, 3), 128: Tile(128, 64, 8, 3), 256: Tile(128, 64, 8, 2)},
    ("blackwell", "prefill"): {64: Tile(128, 128, 8, 3), 128: Tile(128, 64, 8, 3), 256: Tile(128, 64, 8, 2)},
    ("cdna", "prefill"): {64: Tile(128, 64, 4, 2), 128: Tile(128, 64, 4, 1), 256: Tile(64, 32, 4, 1)},
    ("rdna", "prefill"): {64: Tile(64, 32, 4, 1), 128: Tile(64, 32, 4, 1), 256: Tile(32, 32, 8, 1)},
    ("xe", "prefill"): {64: Tile(128, 64, 8, 2), 128: Tile(128, 64, 16, 2), 256: Tile(64, 32, 16, 2)},
    ("turing-scalar", "prefill"): {64: Tile(32, 32, 4, 1), 128: Tile(32, 32, 4, 1), 256: Tile(16, 32, 4, 1)},
    ("turing-scalar", "decode"): {64: Tile(16, 64, 4, 1), 128: Tile(16, 32, 4, 1), 256: Tile(16, 16, 4, 1)},
    ("turing-scalar", "dual_chunk"): {64: Tile(32, 32, 4, 1), 128: Tile(32, 32, 4, 1), 256: Tile(16, 32, 4, 1)},
    ("turing", "decode"): {64: Tile(16, 64, 4, 1), 128: Tile(16, 64, 4, 1), 256: Tile(16, 32, 4, 1)},
    ("ampere", "decode"): {64: Tile(16, 128, 4, 3), 128: Tile(16, 64, 4, 3), 256: Tile(16, 32, 4, 3)},
    ("ada", "decode"): {64: Tile(16, 64, 4, 3), 128: Tile(16, 32, 4, 3), 256: Tile(16, 32, 4, 2)},
    ("hopper", "decode"): {64: Tile(16, 64, 4, 3), 128: Tile(16, 32, 4, 3), 256: Tile(16, 32, 4, 3)},
    ("blackwell", "decode"): {64: Tile(16, 128, 4, 3), 128: Tile(16, 64, 4, 3), 256: Tile(16, 32, 4, 3)},
    ("cdna", "decode"): {64: Tile(16, 64, 4, 2), 128: Tile(16, 64, 4, 1), 256: Tile(16, 32, 4, 1)},
    ("rdna", "decode"): {64: Tile(16, 32, 4, 1), 128: Tile(16, 16, 4, 1), 256: Tile(16, 16, 4, 1)},
    ("xe", "decode"): {64: Tile(16, 64, 4, 2), 128: Tile(16, 64, 4, 2), 256: Tile(16, 32, 4, 2)},
    # keyed by the padded latent width
    ("turing", "mla"): {128: Tile(16, 32, 4, 2), 512: Tile(16, 16, 4, 1)},
    ("ampere", "mla"): {128: Tile(16, 32, 4, 2), 512: Tile(16, 32, 4, 2)},
    ("ada", "mla"): {128: Tile(16, 32, 4, 2), 512: Tile(16, 16, 4, 2)},
    ("hopper", "mla"): {128: Tile(64, 64, 4, 2), 512: Tile(64, 64, 8, 2)},
    ("blackwell", "mla"): {128: Tile(16, 32, 4, 2), 512: Tile(16, 32, 4, 2)},
    ("cdna", "mla"): {128: Tile(16, 32, 4, 1), 512: Tile(16, 16, 4, 1)},
    ("rdna", "mla"): {128: Tile(16, 32, 4, 1), 512: Tile(16, 16, 8, 1)},
    ("xe", "mla"): {128: Tile(16, 32, 8, 2), 512: Tile(16, 16, 8, 2)},
    ("turing", "dual_chunk"): {64: Tile(64, 32, 4, 1), 128: Tile(32, 32, 4, 1), 256: Tile(16, 32, 4, 1)},
    ("ampere", "dual_chunk"): {64: Tile(64, 64, 4, 2), 128: Tile(64, 32, 4, 2), 256: Tile(32, 32, 4, 2)},
    ("ada", "dual_chunk"): {64: Tile(64, 32, 4, 2), 128: Tile(32, 32, 4, 2), 256: Tile(16, 16, 4, 2)},
    ("hopper", "dual_chunk"): {64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 8, 2), 256: Tile(64, 32, 8, 2)},
    ("blackwell", "dual_chunk"): {64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 4, 2), 256: Tile(64, 32, 4, 2)},
    ("cdna", "dual_chunk"): {64: Tile(64, 32, 4, 1), 128: Tile(64, 32, 4, 1), 256: Tile(32, 32, 4, 1)},
    ("rdna", "dual_chunk"): {64: Tile(32, 32, 8, 1), 128: Tile(16, 16, 4, 1), 256: Tile(16, 16, 8, 1)},
    ("xe", "dual_chunk"): {64: Tile(32, 32, 8, 2), 128: Tile(32, 32, 8, 2), 256: Tile(16, 32, 8, 2)},
}

TILES_OF_ITS_OWN: dict[tuple[str, Op], dict[int, Tile]] = {
    ("turing", "dual_chunk_decode"): {64: Tile(32, 64, 4, 1), 128: Tile(16, 64, 4, 1), 256: Tile(16, 32, 4, 1)},
    ("hopper", "dual_chunk_decode"): {64: Tile(32, 64, 4, 3), 128: Tile(32, 64, 4, 3), 256: Tile(32, 32, 8, 3)},
}
"""Where a work measured better with other tiles than those of the work it is `LIKE`."""

LIKE: dict[Op, Op] = {"tree": "prefill", "dual_chunk_decode": "dual_chunk"}

FULL_PRECISION: dict[Op, dict[int, Tile]] = {
    "prefill": {64: Tile(32, 32, 4, 1), 128: Tile(16, 32, 4, 1), 256: Tile(16, 16, 4, 1)},
    "decode": {64: Tile(16, 32, 4, 1), 128: Tile(16, 32, 4, 1), 256: Tile(16, 16, 4, 1)},
    "dual_chunk": {64: Tile(16, 32, 4, 1), 128: Tile(16, 16, 4, 1), 256: Tile(16, 16, 4, 1)},
}
"""float32 inputs, every architecture: exact products run on the scalar units of most, so small tiles cost little."""

WARP_DECODE: dict[tuple[str, bool], dict[int, Tile]] = {
    ("hopper", False): {64: Tile(16, 64, 4, 3, True), 128: Tile(16, 64, 4, 3, True, per_unit=1)},
    ("hopper", True): {64: Tile(16, 64, 4, 4, True), 128: Tile(16, 64, 2, 3, True), 256: Tile(16, 64, 4, 3, True)},
}
"""Decode by `warp_decode` instead of `paged_decode`: family and whether the cache is float8; 16-bit queries."""

WARP_SPLITS = 4
"""Where a batch has so few sequences and heads that a 16-bit cache is cut into more splits, `paged_decode` answers sooner."""
WARP_KEYS = 2048
"""And where it has many programs for short contexts: beginning and ending are then most of a program's work."""

INTERPRETER = Tile(32, 32, 4, 1)

SPLIT_CTAS_PER_UNIT: dict[str, int] = {
    "hopper": 2,
    "blackwell": 4,
    "ampere": 4,
    "ada": 3,
    "turing": 2,
    "turing-scalar": 2,
    "cdna": 2,
    "rdna": 2,
    "xe": 2,
}
"""Decode programs that one multiprocessor (compute unit, Xe core) should have to stay busy."""

MAX_SPLITS = 64
MIN_TILES_PER_SPLIT = 2


@cache
def family(arch: str) -> str:
    """The family of sm_90, gfx942, xe-hpg …; an architecture nobody listed gets the most careful tiles ("rdna")."""
    return next((name for pattern, name in FAMILIES if fnmatchcase(arch, pattern)), "rdna")


@cache
def tile(op: Op, arch: str, width: int, element_size: int, *, interpret: bool = False) -> Tile:
    """The tile for `op` on `arch`.

    Args:
        width: the padded (power of two) head size; mla: the padded latent width.
        element_size: bytes of a query element.
        interpret: in Triton's interpreter one small tile serves everything.
    """
    if interpret:
        return INTERPRETER
    like = LIKE.get(op, op)
    if element_size == 4:
        by_width = FULL_PRECISION[like]
    else:
        by_width = TILES_OF_ITS_OWN.get((family(arch), op)) or TILES[family(arch), like]
    return by_width[min(w for w in by_width if w >= width)]


def warp_decode(arch: str, width: int, element_size: int, fp8: bool, rows: int) -> Tile | None:
    """The tile for a decode by `warp_decode`, or None where `paged_decode` is the better one.

    Args:
        width: the padded head size.
        element_size: bytes of a query element.
        rows: query rows (new tokens * heads of the group) of a sequence and key head: a warp holds all their sums in registers.
    """
    most = 32 if fp8 and width <= 128 else 16
    by_width = WARP_DECODE.get((family(arch), fp8), {}) if element_size == 2 and rows <= most else {}
    return by_width.get(min((w for w in by_width if w >= width), default=0))


def decode_splits(programs: int, units: int, arch: str, max_seq_len: int, block_n: int, per_unit: int = 0) -> int:
    """How many runs to cut the keys of a decode into, from host numbers alone.

    Enough to fill the device `per_unit` times, in powers of two so that few variants are compiled, but at least
    `MIN_TILES_PER_SPLIT` tiles each.

    Args:
        programs: sequences * key heads * row tiles.
        units: multiprocessors of the device.
        per_unit: 0 for `SPLIT_CTAS_PER_UNIT` of the architecture's family.
    """
    capacity = units * (per_unit or SPLIT_CTAS_PER_UNIT[family(arch)])
    useful = max(1, max_seq_len // (block_n * MIN_TILES_PER_SPLIT))
    splits = 1
    while splits * 2 <= min(useful, MAX_SPLITS) and programs * splits * 2 <= capacity:
        splits *= 2
    return splits
