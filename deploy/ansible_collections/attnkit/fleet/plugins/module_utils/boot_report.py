"""What a boot report means for an operator: whether the node may serve, and if not, why."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any


def read_json(path: str) -> dict[str, Any] | None:
    """A report, record or readiness file; None if it is absent or incomplete."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def moment(text: str) -> datetime.datetime:
    """A RFC 3339 time. Docker writes one to nine digits of a second; Python 3.10 reads exactly six."""
    text = re.sub(r"\.(\d+)", lambda digits: "." + digits[1][:6].ljust(6, "0"), text.strip())
    return datetime.datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))


def failed_cases(report: dict[str, Any], most: int = 3) -> list[str]:
    """The first cases that did not pass, each with backend and reason."""
    lines = []
    for verdict in report.get("selftest") or []:
        for case in verdict.get("cases") or []:
            if case.get("outcome") in ("fail", "inconclusive"):
                lines.append(f"{verdict.get('backend')} {case.get('case')}: {case.get('reason')}")
    more = len(lines) - most
    return lines[:most] + ([f"and {more} more"] if more > 0 else [])


def objection(report: dict[str, Any], *, node_type: str | None, fault_ok: bool = False, planted_ok: bool = False) -> str | None:
    """Why this report does not let the node serve; None if it does.

    Args:
        report: the document.
        node_type: what the fleet says this node is, None to accept any.
        fault_ok: accept a report that was made with an injected fault (never for a release).
        planted_ok: accept a report whose device was simulated (for rehearsals, never for a release).
    """
    if report.get("schema_version") != 1:
        return f"the report has schema_version {report.get('schema_version')!r}; this fleet reads 1"
    verdict = report.get("verdict")
    planted = report.get("planted_fault")
    answer = report.get("planted_answer")
    if (verdict == "planted" or (verdict == "pass" and answer)) and not planted_ok:
        return f"no kernel ran: the device was simulated (answer {answer!r}), and this fleet is not a rehearsal"
    if verdict not in ("pass", "planted"):
        what = {"fail": "the self-test failed", "inconclusive": "the self-test was inconclusive", "skipped": "no self-test ran"}
        parts = [what.get(str(verdict), f"verdict {verdict!r}")]
        if planted:
            parts[0] += f" (fault {planted!r} was injected on purpose)"
        if answer:
            parts[0] += f" (no kernel ran: the device was simulated, answer {answer!r})"
        parts += failed_cases(report)
        if report.get("error"):
            parts.append(str(report["error"]))
        return "; ".join(parts)
    if planted and not fault_ok:
        return f"the fault {planted!r} was injected on purpose and the self-test did not detect it"
    if node_type is not None and report.get("node_type") != node_type:
        return f"the report is of a {report.get('node_type')!r} node, the fleet says {node_type!r}"
    return None


def summary(report: dict[str, Any] | None) -> dict[str, Any]:
    """What a table shows of a report."""
    report = report or {}
    engine = report.get("engine") or {}
    completion = engine.get("completion") or {}
    devices = (report.get("detection") or {}).get("devices") or [{}]
    device = (report.get("decision") or {}).get("device") or devices[0]
    alike = sum(other.get("arch") == device.get("arch") for other in devices)
    return {
        "node_type": report.get("node_type"),
        "backend": report.get("backend"),
        "provider": report.get("provider"),
        "verdict": report.get("verdict"),
        "created": report.get("created"),
        "boot_seconds": (report.get("boot_seconds") or {}).get("total"),
        "tokens_per_s": completion.get("tokens_per_s"),
        "fallbacks": [f"{f.get('from')} -> {f.get('to')}: {f.get('reason')}" for f in report.get("fallbacks") or []],
        "planted_fault": report.get("planted_fault"),
        "planted_answer": report.get("planted_answer"),
        "device": f"{alike} x {device['name']}" if alike > 1 else device.get("name"),
        "driver": device.get("driver"),
        "attnkit": report.get("attnkit_version"),
    }
