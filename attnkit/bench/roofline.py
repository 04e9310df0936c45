"""The roofline plot of a report: every timed row as achieved TFLOP/s over FLOPs a byte of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnkit.bench.results import Row

MARKERS = "os^vDP*X<>hd"


def plot(head: dict[str, Any], rows: Sequence[Row], path: Path) -> None:
    """Write `path` (PNG). Ours filled, peers hollow; the roof is made of the two ceilings measured in the same run.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = [row for row in rows if row.micros and row.tflops and row.gbytes]
    if not timed:
        return
    figure, axes = pyplot.subplots(figsize=(10, 6.5), layout="constrained")
    peers = sorted({row.implementation for row in timed if not row.ours})
    for name in [*peers, *sorted({row.implementation for row in timed if row.ours})]:
        mine = [row for row in timed if row.implementation == name]
        ours = mine[0].ours
        axes.plot(
            [_intensity(row) for row in mine],
            [row.tflops for row in mine],
            linestyle="none",
            marker="o" if ours else MARKERS[peers.index(name) % len(MARKERS)],
            markersize=7 if ours else 6,
            color="black" if ours else None,
            fillstyle="full" if ours else "none",
            label=name,
            zorder=3 if ours else 2,
        )
    ceilings = head["ceilings"]
    if ceilings:
        low = min(_intensity(row) for row in timed) / 2
        high = max(_intensity(row) for row in timed) * 2
        ridge = ceilings["matmul_tflops"] * 1e3 / ceilings["read_gbytes"]
        xs = [low, ridge, high] if low < ridge < high else [low, high]
        axes.plot(
            xs,
            [min(ceilings["matmul_tflops"], x * ceilings["read_gbytes"] / 1e3) for x in xs],
            color="grey",
            label=f"ceilings of this GPU: {ceilings['read_gbytes']:.0f} GB/s read, {ceilings['matmul_tflops']:.0f} TFLOP/s",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="useful floating-point operations per byte of keys and values",
        ylabel="TFLOP/s",
        title=f"{head['device']}, {head['dtype']}, {str(head['created'])[:10]}",
    )
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _intensity(row: Row) -> float:
    assert row.tflops is not None and row.gbytes is not None
    return row.tflops * 1e3 / row.gbytes
