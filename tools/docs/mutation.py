"""The part of docs/reference/self-test.md on mutants: how many of each family the self-test noticed, and what survived."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.docs.markdown import table
from tools.mutate.survivors import reason

REPORT = Path(__file__).resolve().parents[2] / "docs" / "reports" / "mutation.json"


def lines() -> Iterator[str]:
    """Of the page."""
    document: dict[str, Any] = json.loads(REPORT.read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = document["mutants"]
    families = sorted({row["family"] for row in found})
    yield from table(
        ("family", "mutants run", "equivalent or out of contract", "noticed by quick", "noticed by standard"),
        (_counts(family, [row for row in found if row["family"] == family]) for family in families),
    )
    yield ""
    yield "What survived:"
    yield ""
    yield from table(
        ("family", "mutant", "why", "standard cases asked"),
        (
            (row["family"], f"`{_plain(row['name'])}`", reason(row["name"]) or "missed", f"{row['asked']} of {row['of']}")
            for row in found
            if not row["standard"]
        ),
    )


def _counts(family: str, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    counted = [row for row in rows if row["standard"] or not reason(row["name"])]
    noticed = (sum(bool(row[level]) for row in counted) for level in ("quick", "standard"))
    shares = (f"{number} ({number / max(1, len(counted)):.0%})" for number in noticed)
    return (family, str(len(rows)), str(len(rows) - len(counted)), *shares)


def _plain(name: str) -> str:
    return name.replace("|", "¦").replace("`", "'")
