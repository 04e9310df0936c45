"""docs/reports/performance.md from the reports in docs/reports/bench: targets, ratios, every time taken.

Only workloads that were timed with their peers in one run have a ratio; of several reports the newest that has it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnkit.bench.results import Ratio, Row, load, ratios
from tools.docs import performance_cpu
from tools.docs.markdown import SOURCE

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "docs" / "reports" / "bench"

PORTABLE = "vLLM Triton"
"""Peers of this name are what people without our kernels have where nothing else runs: never slower than they."""


@dataclass(frozen=True)
class Timed:
    """One workload as its newest report with a ratio has it."""

    ratio: Ratio
    rows: tuple[Row, ...]
    ceilings: dict[str, float]
    report: str

    @property
    def ours(self) -> Row:
        """The row of ours that the ratio was taken of."""
        return next(row for row in self.rows if row.implementation == self.ratio.ours)

    @property
    def share(self) -> float:
        """GB/s of keys and values over the read ceiling of the same run."""
        return (self.ours.gbytes or 0.0) / self.ceilings["read_gbytes"]

    @property
    def portable(self) -> float | None:
        """Time of vLLM's best Triton kernel over ours."""
        found = [row.micros for row in self.rows if row.implementation.startswith(PORTABLE) and row.micros]
        return min(found) / self.ratio.ours_micros if found else None


@dataclass(frozen=True)
class Target:
    """One row of the table: `count` workloads of `groups`, held against the first target and the one after."""

    work: str
    groups: tuple[str, ...]
    count: int
    first: str
    then: str
    meets_first: Callable[[Sequence[Timed]], bool]
    meets_then: Callable[[Sequence[Timed]], bool] | None = None


def _least(limit: float) -> Callable[[Sequence[Timed]], bool]:
    return lambda found: all(t.ratio.ratio >= limit for t in found)


def _most_micros(limit: float) -> Callable[[Sequence[Timed]], bool]:
    return lambda found: all(t.ratio.ours_micros <= limit for t in found)


def _decode_first(found: Sequence[Timed]) -> bool:
    """At most 3 of the 12 under 1.0: a miss stays a miss however many are measured."""
    return sum(t.ratio.ratio < 1.0 for t in found) <= 3 and all(t.ratio.ratio >= 0.95 for t in found)


SHARES = {"decode B1 ctx8192": 0.60, "decode B1 ctx32768": 0.88}
SHARE_OF_MANY = 0.97  # batch 16 and more, context 8192 and more


def _decode_then(found: Sequence[Timed]) -> bool:
    def share(name: str) -> float:
        batch, context = (int(part.strip("Bctx")) for part in name.split()[1:])
        return SHARE_OF_MANY if batch >= 16 and context >= 8192 else SHARES.get(name, 0.0)

    return all(t.ratio.ratio >= 1.0 and t.share >= share(t.ratio.workload) for t in found)


TARGETS = (
    Target(
        "paged decode, page 16, Hq32 Hkv8 D128, batch 1/16/64/256 x context 1k/8k/32k",
        ("decode",),
        12,
        "≥ 1.0 in at least 9 of 12, none under 0.95",
        "≥ 1.0 in all; ≥ 97 % of the read ceiling from batch 16 x 8k up, B1 x 8k ≥ 60 %, B1 x 32k ≥ 88 %",
        _decode_first,
        _decode_then,
    ),
    Target(
        "prefill, causal: D128 4x4096, 1x16384, 16x1024; D64 4x4096",
        ("prefill",),
        4,
        "≥ 0.85",
        "≥ 1.0",
        _least(0.85),
        _least(1.0),
    ),
    Target("paged prefill over cached context, page 16", ("paged",), 3, "≥ 0.85", "≥ 1.0", _least(0.85), _least(1.0)),
    Target(
        "mixed batch (8x512 over 4096 + 56 decodes)",
        ("mixed",),
        1,
        "≤ 950 µs",
        "≤ 800 µs",
        _most_micros(950.0),
        _most_micros(800.0),
    ),
    Target("MLA decode, 128 heads, 512+64, page 64", ("mla",), 6, "≥ 0.7", "≥ 1.0", _least(0.7), _least(1.0)),
    Target("tree verification, compared with the composed version", ("tree",), 2, "≥ 1.5", "", _least(1.5)),
    Target("dual chunk (128k), compared with the composed version", ("dual_chunk",), 2, "≥ 1.5", "", _least(1.5)),
    Target("differential, compared with the composed version", ("differential",), 2, "≥ 1.5", "", _least(1.5)),
    Target("decode over a float8 e4m3 cache", ("fp8",), 4, "≥ 1.0", "", _least(1.0)),
)


def newest(reports: Iterable[Path]) -> dict[str, Timed]:
    """By workload, what the newest report with a ratio says."""
    found: dict[str, Timed] = {}
    documents = [(load(path), path) for path in reports]
    for (document, rows), path in sorted(documents, key=lambda item: (item[0][0]["created"], item[1].name)):
        for ratio in ratios(rows):
            mine = tuple(row for row in rows if row.workload == ratio.workload)
            found[ratio.workload] = Timed(ratio, mine, document["ceilings"], path.name)
    return found


def markdown(reports: Path = REPORTS) -> str:
    """The whole page."""
    paths = sorted(reports.glob("*.json"))
    timed = newest(paths)
    lines = [
        "# Performance",
        "",
        "Our kernels compared with other implementations. A ratio is the time of the fastest peer divided by ours, measured in",
        "one process on the same inputs: above 1, ours is faster. A time counts only after the result was checked against the",
        f"float64 reference; [attnkit/bench/run.py]({SOURCE}/attnkit/bench/run.py) shows how it is measured. A peer that uses",
        "another memory layout is listed and does not count. What was tried and why it is as it is:",
        "[notes](performance-notes.md). This page is generated from `docs/reports/bench` and `docs/reports/bench-cpu`.",
        "",
    ]
    if not paths:
        lines += ["No report is committed yet.", ""]
    else:
        lines += [
            *_reports(paths),
            *_targets(timed),
            *_never_slower(timed),
            *_workloads(timed),
            *_all_rows(timed),
            *_failed(paths),
        ]
    lines += performance_cpu.section(reports.with_name("bench-cpu"))
    return "\n".join(lines).rstrip("\n") + "\n"


def _reports(paths: Sequence[Path]) -> list[str]:
    lines = [
        "## Reports",
        "",
        "| report | date | GPU | driver | torch, Triton | peers | ceilings: read, copy, matmul, launch | complete |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in paths:
        d, _ = load(path)
        c = d["ceilings"]
        speeds = f"{c['read_gbytes']:.0f} GB/s, {c['copy_gbytes']:.0f} GB/s, {c['matmul_tflops']:.0f} TFLOP/s"
        roof = f"{speeds}, {c['launch_micros']:.2f} µs"
        versions = ", ".join(f"{name} {version}" for name, version in d["versions"].items())
        whole = "yes" if d["complete"] else "no"
        lines.append(
            f"| [{path.stem}](bench/{path.name}) | {d['created'][:10]} | {d['device']} | {d['driver']} "
            f"| {d['torch']}, {d['triton']} | {versions} | {roof} | {whole} |"
        )
    return [*lines, ""]


def _targets(timed: dict[str, Timed]) -> list[str]:
    lines = [
        "## Targets and status",
        "",
        "| work | first target | second target | measured | first | second |",
        "|---|---|---|---|---|---|",
    ]
    for target in TARGETS:
        found = [t for t in timed.values() if t.ratio.group in target.groups]
        lines.append(
            f"| {target.work} | {target.first} | {target.then or '–'} | {_measured(target, found)} "
            f"| {_reached(target, found, target.meets_first)} | {_reached(target, found, target.meets_then)} |"
        )
    return [*lines, ""]


def _measured(target: Target, found: Sequence[Timed]) -> str:
    if not found:
        return "nothing"
    low, high = min(t.ratio.ratio for t in found), max(t.ratio.ratio for t in found)
    spread = f"{low:.2f}" if len(found) == 1 else f"{low:.2f} to {high:.2f}, {sum(t.ratio.ratio >= 1 for t in found)} at ≥ 1.0"
    micros = f"; {found[0].ratio.ours_micros:.0f} µs" if "µs" in target.first else ""
    return f"{len(found)} of {target.count}: {spread}{micros}"


def _reached(target: Target, found: Sequence[Timed], meets: Callable[[Sequence[Timed]], bool] | None) -> str:
    """A target over several workloads is reached only when all of them were measured; it can be missed before."""
    if meets is None:
        return "–"
    if not found:
        return "not measured"
    if not meets(found):
        return "no"
    return "yes" if len(found) >= target.count else "not all measured"


def _never_slower(timed: dict[str, Timed]) -> list[str]:
    found = [(t.ratio.workload, t.portable) for t in timed.values() if t.portable is not None]
    if not found:
        return []
    slower = [f"{name} ({ratio:.2f})" for name, ratio in found if ratio < 1.0]
    least = min(ratio for _, ratio in found)
    text = f"slower in {', '.join(slower)}" if slower else f"never slower; the lowest ratio is {least:.2f}"
    return [f"Compared with vLLM's Triton kernels, on {len(found)} workloads: {text}.", ""]


def _workloads(timed: dict[str, Timed]) -> list[str]:
    lines = [
        "## Workload by workload",
        "",
        "| workload | ours µs | TFLOP/s | GB/s | of read | best peer | its µs | ratio | to vLLM's Triton | error | report |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for t in _ordered(timed):
        r, ours = t.ratio, t.ours
        portable = "–" if t.portable is None else f"{t.portable:.2f}"
        lines.append(
            f"| {r.workload} | {r.ours_micros:.1f} | {ours.tflops:.0f} | {ours.gbytes:.0f} | {t.share:.0%} | {r.peer} "
            f"| {r.peer_micros:.1f} | {r.ratio:.2f} | {portable} | {ours.error:.1e} | {Path(t.report).stem} |"
        )
    return [*lines, ""]


def _all_rows(timed: dict[str, Timed]) -> list[str]:
    """Every time taken, in µs: a table a group, implementations by workloads."""
    lines = ["## All times, µs", "", "* uses another memory layout than the workload's; it does not count.", ""]
    groups: dict[str, list[Timed]] = {}
    for t in _ordered(timed):
        groups.setdefault(t.ratio.group, []).append(t)
    for group, works in groups.items():
        names = list(dict.fromkeys(row.implementation for t in works for row in t.rows))
        lines += [f"### {group}", "", f"| implementation | {' | '.join(t.ratio.workload for t in works)} |"]
        lines.append("|---|" + "---|" * len(works))
        for name in names:
            cells = [next((row for row in t.rows if row.implementation == name), None) for t in works]
            if any(row is not None and row.micros for row in cells):
                mark = "" if all(row is None or row.comparable for row in cells) else " *"
                lines.append(f"| {name}{mark} | {' | '.join(_micros(row) for row in cells)} |")
        lines.append("")
    return lines


def _micros(row: Row | None) -> str:
    return "–" if row is None or not row.micros else f"{row.micros:.1f}"


def _failed(paths: Sequence[Path]) -> list[str]:
    """What could not run and why, each reason once a report."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for path in paths:
        for row in load(path)[1]:
            if row.micros is None and row.note:
                reasons.setdefault((path.stem, row.implementation, row.note), []).append(row.workload)
    if not reasons:
        return []
    lines = ["## What could not run", "", "| report | implementation | workloads | why |", "|---|---|---|---|"]
    for (report, name, note), works in reasons.items():
        shown = ", ".join(works[:3]) + (f" and {len(works) - 3} more" if len(works) > 3 else "")
        lines.append(f"| {report} | {name} | {shown} | {_cell(note)} |")
    return [*lines, ""]


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _ordered(timed: dict[str, Timed]) -> list[Timed]:
    """By the order of the targets, then by name with numbers as numbers."""
    groups = [group for target in TARGETS for group in target.groups]

    def key(t: Timed) -> tuple[int, list[int], str]:
        digits = "".join(c if c.isdigit() else " " for c in t.ratio.workload).split()
        return groups.index(t.ratio.group), [int(d) for d in digits], t.ratio.workload

    return sorted(timed.values(), key=key)
