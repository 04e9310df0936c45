"""The benchmark on the terminal: a line as each row comes, and a table of ratios at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnkit.bench.results import Row, ratios


def line(text: str) -> None:
    """One line, at once: a run may be killed."""
    print(text, flush=True)


def ceilings(head: dict[str, Any]) -> None:
    """What runs here and what the GPU can do."""
    line(f"{head['device']}, driver {head['driver']}, torch {head['torch']}, Triton {head['triton']}, {head['dtype']}")
    line("  ".join(f"{name} {value}" for name, value in head["versions"].items()))
    if head["ceilings"]:
        c = head["ceilings"]
        line(
            f"ceilings: read {c['read_gbytes']:.0f} GB/s, copy {c['copy_gbytes']:.0f} GB/s, "
            f"matmul {c['matmul_tflops']:.0f} TFLOP/s, launch {c['launch_micros']:.2f} us"
        )


def row(row: Row, head: dict[str, Any]) -> None:
    """One row."""
    left = f"{row.workload:28} {row.implementation:30}"
    error = "" if row.error is None else f" err {row.error:.1e}"
    if row.micros is None or row.tflops is None or row.gbytes is None or row.spread is None:
        line(f"{left} {'-':>10}{error}  {row.note}")
        return
    share = ""
    if head["ceilings"]:
        share = f" {row.gbytes / head['ceilings']['read_gbytes']:4.0%} of read"
    line(
        f"{left} {row.micros:10.1f} us {row.tflops:7.1f} TFLOP/s {row.gbytes:7.0f} GB/s{share} +-{row.spread:3.0%}{error} "
        f"{row.kernel} {row.note}"
    )


def summary(rows: Sequence[Row]) -> None:
    """Ours over the best peer, workload by workload."""
    found = ratios(rows)
    if not found:
        line("no workload has both a time of ours and one of a peer")
        return
    line("")
    line(f"{'workload':28} {'ours us':>10} {'best peer':30} {'its us':>10}  ratio (above 1: ours is faster)")
    for r in found:
        line(f"{r.workload:28} {r.ours_micros:10.1f} {r.peer:30} {r.peer_micros:10.1f}  {r.ratio:.3f}  {r.ours}")
