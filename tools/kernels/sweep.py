"""Other tile sizes than those of tile_sizes.py, timed: `python -m tools.kernels.sweep --out DIR [--group …]`.

The best rows are what belongs in kernels/triton/tile_sizes.py for the GPU; each tile is a row named after it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnkit.bench import run
from attnkit.bench.peers.base import Peer, Run, Unsupported
from attnkit.bench.peers.ours import Triton
from attnkit.bench.results import OURS
from attnkit.kernels.triton.tile_sizes import Tile
from attnkit.spec import Call, MlaDecode, PagedAttention, VarlenAttention

PREFILL_TILES = (
    Tile(128, 128, 8, 2),
    Tile(128, 64, 8, 2),
    Tile(128, 64, 8, 3),
    Tile(128, 32, 8, 4),
    Tile(64, 64, 4, 2),
    Tile(64, 64, 4, 3),
    Tile(64, 128, 4, 2),
    Tile(64, 32, 4, 3),
)
DECODE_TILES = (
    Tile(16, 64, 4, 2),
    Tile(16, 64, 4, 3),
    Tile(16, 32, 4, 3),
    Tile(16, 32, 4, 4),
    Tile(16, 128, 4, 2),
    Tile(16, 128, 8, 3),
    Tile(16, 32, 2, 4),
)
MLA_TILES = (
    Tile(64, 64, 8, 2),
    Tile(64, 32, 8, 2),
    Tile(64, 32, 8, 3),
    Tile(64, 64, 4, 2),
    Tile(32, 64, 4, 2),
    Tile(16, 64, 4, 2),
)
SPLITS = (1, 2, 4, 8, 16, 32, 64)


class Variant(Triton):
    """Our Triton kernels with one choice of tile_sizes.py replaced."""

    def __init__(self, name: str, groups: tuple[str, ...], options: Mapping[str, Any]) -> None:
        self.name, self.groups = f"{OURS} {name}", groups  # type: ignore[misc]
        self.options = options

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        from attnkit.kernels.triton.mla import plan as mla_plan
        from attnkit.kernels.triton.paged import plan as paged_plan

        options = self.options
        if isinstance(call, PagedAttention):
            return lambda: paged_plan.paged(call, **options)[::2]
        if isinstance(call, VarlenAttention):
            return lambda: paged_plan.varlen(call, **options)[::2]
        if isinstance(call, MlaDecode):
            return lambda: mla_plan.run(call, **options)[::2]
        raise Unsupported(f"no tiles to choose for {call.op}")


def _tiles(option: str, groups: tuple[str, ...], tiles: Sequence[Tile]) -> list[Peer]:
    return [Variant(f"{t.block_m}x{t.block_n} w{t.num_warps} s{t.num_stages}", groups, {option: t}) for t in tiles]


def variants() -> list[Peer]:
    """The choice of tile_sizes.py first, then every other."""
    return [
        Triton(),
        *_tiles("prefill_tile", ("prefill", "paged", "mixed"), PREFILL_TILES),
        *_tiles("decode_tile", ("decode", "fp8"), DECODE_TILES),
        *(Variant(f"splits {n}", ("decode", "fp8", "mla"), {"splits": n}) for n in SPLITS),
        *_tiles("tile", ("mla",), MLA_TILES),
    ]


SWEPT = ("decode", "prefill", "paged", "mixed", "mla", "fp8")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments (None: the process's), measure, print, write DIR/peers.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--group", nargs="*", choices=SWEPT, default=list(SWEPT))
    parser.add_argument("--only", default="", help="only workloads with this in their name")
    parser.add_argument("--limit-seconds", type=float, default=None)
    args = parser.parse_args(argv)
    run.require_gpu()
    options = run.Options(
        args.out,
        groups=args.group,
        only=args.only,
        limit_seconds=args.limit_seconds,
        command="python -m tools.kernels.sweep --out DIR",
    )
    run.main(options, everyone=variants())


if __name__ == "__main__":
    main()
