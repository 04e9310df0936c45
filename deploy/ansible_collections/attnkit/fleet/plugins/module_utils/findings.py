"""Findings of the preflight: one line each, the same shape for every check."""

from __future__ import annotations

from typing import Any


def finding(check: str, ok: bool, detail: str) -> dict[str, Any]:
    """One finding: the name of the check, whether the rollout may continue, and what was found and needed."""
    return {"check": check, "ok": ok, "detail": detail}


def human_bytes(count: float) -> str:
    """A size for people: 3.7 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
