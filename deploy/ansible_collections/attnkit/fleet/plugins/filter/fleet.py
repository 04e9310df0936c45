"""Filters: findings and results of many nodes as one table."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.attnkit.fleet.plugins.module_utils.boot_report import moment, part
from ansible_collections.attnkit.fleet.plugins.module_utils.wording import printable, short


def fleet_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """The rows as lines of equal width; a value that is missing or null is shown as a dash, false as NO."""

    def shown(value: Any) -> str:
        if value is None or value == "":
            return "-"
        if isinstance(value, bool):
            return "ok" if value else "NO"
        return f"{value:.1f}" if isinstance(value, float) else printable(value)

    cells = [[str(c) for c in columns], *([shown(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


NO_ANSWER: dict[str, Any] = {"check": "reachable", "ok": False, "detail": "no answer"}
NO_OUTCOME: dict[str, Any] = {"ok": False, "reason": "no outcome (unreachable?)", "summary": {}, "went_back": False}


def finding_rows(hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]) -> list[dict[str, Any]]:
    """Every finding of every host, a host that gave none included."""
    rows = [{"node": host, **found} for host in hosts for found in _of(hostvars, host, "attnkit_findings") or [NO_ANSWER]]
    names: dict[str, list[str]] = {}
    for host in hosts:
        names.setdefault(_of(hostvars, host, "attnkit_machine") or f"unknown: {host}", []).append(host)
    return rows + [
        {
            "node": alike[0],
            "check": "machine",
            "ok": False,
            "detail": f"the same machine as {', '.join(alike[1:])}",
        }
        for alike in names.values()
        if len(alike) > 1
    ]


def objections(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The findings that speak against a rollout, a line each."""
    return [f"{row['node']}: {row['check']}: {row['detail']}" for row in rows if not row["ok"]]


def canaries(hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]) -> list[str]:
    """The first host of every node type, in the order of the hosts."""
    first: dict[str, str] = {}
    for host in hosts:
        first.setdefault(str(part(_of(hostvars, host, "ansible_facts"), "attnkit").get("node_type")), host)
    return list(first.values())


MAX_TEXT = 200
MAX_REASON = 2000
MAX_LINES = 20
NUMBERS = ("boot_seconds", "tokens_per_s")


def checked_summary(said: Any) -> dict[str, Any]:
    """A node's summary of its report with every field of the kind that it must be, or null: a node may say anything."""
    given = said if isinstance(said, Mapping) else {}
    return {str(name): _checked(name, value) for name, value in given.items()}


def _checked(name: str, value: Any) -> Any:
    if name in NUMBERS:
        usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return value if usable else None
    if name == "fallbacks":
        return [printable(line)[:MAX_TEXT] for line in value[:MAX_LINES]] if isinstance(value, list) else []
    if name == "created":
        try:
            return value if moment(value).tzinfo == datetime.timezone.utc else None
        except (TypeError, ValueError, AttributeError):
            return None
    return None if value is None else printable(value)[:MAX_TEXT]


def outcome_rows(hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]) -> list[dict[str, Any]]:
    """How every host ended; a host without an outcome did not serve."""
    rows = []
    for host in hosts:
        outcome = _of(hostvars, host, "attnkit_outcome") or NO_OUTCOME
        summary = checked_summary(outcome.get("summary"))
        rows.append(
            {
                "node": host,
                "type": summary.get("node_type"),
                "backend": summary.get("backend"),
                "verdict": summary.get("verdict"),
                "boot_s": summary.get("boot_seconds"),
                "tokens_per_s": summary.get("tokens_per_s"),
                "created": summary.get("created"),
                **{name: summary.get(name) for name in ("provider", "device", "driver", "attnkit")},
                **{name: summary.get(name) for name in ("fallbacks", "planted_fault", "planted_answer")},
                "image": outcome.get("image"),
                "serves": bool(outcome["ok"]),
                "reason": printable(outcome["reason"])[:MAX_REASON],
                "went_back": outcome.get("went_back") or "",
            }
        )
    return rows


def failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of hosts that do not serve, a line each with the reason and whether the host was reverted."""
    return [
        f"{row['node']}: {row['reason']}" + (f" | reverted: {row['went_back']}" if row["went_back"] else "")
        for row in rows
        if not row["serves"]
    ]


def drift_rows(hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]) -> list[dict[str, Any]]:
    """A row a host, a column a check: ok, DRIFT, or nothing where the host gave no answer."""
    rows = []
    for host in hosts:
        seen = _of(hostvars, host, "attnkit_drift") or {}
        marks = {f["check"]: "ok" if f["ok"] else "DRIFT" for f in seen.get("findings") or []}
        rows.append({"node": host, "type": seen.get("type"), **marks})
    return rows


def drift_checks(hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The checks of drift, in the order of the tables."""
    for host in hostvars:
        findings = (_of(hostvars, host, "attnkit_drift") or {}).get("findings") or []
        if len(findings) > 1:
            return [f["check"] for f in findings]
    return ["service"]


def drifted(hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str]) -> list[dict[str, Any]]:
    """The findings that differ, a host that gave no answer included."""
    nothing = {"check": "reachable", "ok": False, "should": "an answer", "found": "none"}
    return [
        {"node": host, **found}
        for host in hosts
        for found in (_of(hostvars, host, "attnkit_drift") or {}).get("findings") or [nothing]
        if not found["ok"]
    ]


def redact(text: Any, secrets: Mapping[str, Any]) -> Any:
    """A text, or a list of texts, with the values of the secrets blacked out."""
    if isinstance(text, list):
        return [redact(line, secrets) for line in text]
    shown = str(text)
    for value in sorted(map(str, secrets.values()), key=len, reverse=True):
        shown = shown.replace(value, "********") if value else shown
    return shown


def rollback_rows(hostvars: Mapping[str, Mapping[str, Any]], hosts: Sequence[str], to: str = "") -> list[dict[str, Any]]:
    """What a rollback would do with every host: `moves`, or why not; `objects` if that stops the run.

    Args:
        hostvars: of the play.
        hosts: the hosts.
        to: the release to go to, its image or a part of that; empty for the one before. A host that has been rolled back
            already, or that runs this release, stays: a rollback may be repeated, and never takes a node forward again.
    """
    rows = []
    for host in hosts:
        recorded = _of(hostvars, host, "attnkit_recorded")
        now, before = ((recorded or {}).get(name) or {} for name in ("release", "previous"))
        image, previous, left = now.get("image"), before.get("image"), (recorded or {}).get("left")
        if recorded is None:
            objects, why = True, "no answer"
        elif to and to in str(image):
            objects, why = False, "runs it already"
        elif not to and left:
            objects, why = False, f"rolled back already, from {short(left)}"
        elif not before:
            objects, why = True, "no previous release is recorded"
        elif to and to not in str(previous):
            objects, why = True, f"neither this release nor the one before is {to}"
        else:
            objects, why = False, ""
        seen = {
            "node": host,
            "type": now.get("node_type"),
            "runs": image and short(image),
            "before": previous and short(previous),
        }
        rows.append({**seen, "why": why, "moves": not why, "objects": objects})
    return rows


def _of(hostvars: Mapping[str, Mapping[str, Any]], host: str, name: str) -> Any:
    return hostvars[host].get(name) if host in hostvars else None


class FilterModule:
    """The filters of this collection."""

    def filters(self) -> dict[str, Any]:
        """Names and functions."""
        return {
            "fleet_table": fleet_table,
            "finding_rows": finding_rows,
            "objections": objections,
            "canaries": canaries,
            "outcome_rows": outcome_rows,
            "failures": failures,
            "drift_rows": drift_rows,
            "drift_checks": drift_checks,
            "drifted": drifted,
            "redact": redact,
            "rollback_rows": rollback_rows,
            "back_rows": rollback_rows,
        }
