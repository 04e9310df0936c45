"""Rows of a benchmark and the report they make: written after every row, so that nothing is lost when the run is killed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attnkit.jsonio import read_json, write_atomically

OURS = "attnkit"


@dataclass(frozen=True)
class Row:
    """One implementation on one workload.

    Args:
        group, workload, implementation: what was measured.
        kernel: the kernels or library function that ran.
        micros, spread: median time of a call and (max - min) / median; None where nothing was timed.
        tflops, gbytes: useful TFLOP/s, and GB/s of keys and values read once.
        error: relative error (norms) on sampled rows against float64.
        right: inside the self-test's bounds; None where it was not checked.
        comparable: counts for the ratio. False for another memory layout than the workload's.
        note: why there is no time, or what to know about it.
    """

    group: str
    workload: str
    implementation: str
    kernel: str = ""
    micros: float | None = None
    spread: float | None = None
    tflops: float | None = None
    gbytes: float | None = None
    error: float | None = None
    right: bool | None = None
    comparable: bool = True
    note: str = ""

    @property
    def ours(self) -> bool:
        """Ours, not a peer."""
        return self.implementation.startswith(OURS)


@dataclass(frozen=True)
class Ratio:
    """Time of the best peer over ours on one workload: above 1 ours is faster."""

    group: str
    workload: str
    ours: str
    ours_micros: float
    peer: str
    peer_micros: float
    ratio: float


def ratios(rows: Iterable[Row]) -> list[Ratio]:
    """One ratio for each workload that both we and a peer were timed on, right answers and equal layouts only.

    A peer counts when it was timed at all: one that errs too much has no time. Ours counts only inside the self-test's bounds.
    """
    by_work: dict[str, list[Row]] = {}
    for row in rows:
        if row.micros is not None and row.comparable:
            by_work.setdefault(row.workload, []).append(row)
    found = []
    for workload, timed in by_work.items():
        mine = [row for row in timed if row.ours and row.right]
        peers = [row for row in timed if not row.ours]
        if mine and peers:
            best, peer = min(mine, key=_micros), min(peers, key=_micros)
            ratio = _micros(peer) / _micros(best)
            found.append(
                Ratio(
                    best.group,
                    workload,
                    best.implementation,
                    _micros(best),
                    peer.implementation,
                    _micros(peer),
                    round(ratio, 4),
                )
            )
    return found


def _micros(row: Row) -> float:
    assert row.micros is not None
    return row.micros


@dataclass
class Report:
    """The document at `path`: everything known before the first row in `head`, then rows as they come.

    `complete` becomes True when the run came to its end; a killed run leaves False and all rows until then.
    """

    path: Path
    head: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    complete: bool = False

    def add(self, row: Row) -> None:
        """Append a row and write the file."""
        self.rows.append(row)
        self.write()

    def finish(self) -> None:
        """The run came to its end."""
        self.complete = True
        self.write()

    def write(self) -> None:
        """Replace the file in one step."""
        document = {
            "kind": "bench",
            **self.head,
            "complete": self.complete,
            "ratios": [asdict(ratio) for ratio in ratios(self.rows)],
            "rows": [asdict(row) for row in self.rows],
        }
        write_atomically(self.path, json.dumps(document, indent=1) + "\n")


def load(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """A report's document and its rows."""
    document = read_json(path)
    return document, [Row(**row) for row in document["rows"]]
