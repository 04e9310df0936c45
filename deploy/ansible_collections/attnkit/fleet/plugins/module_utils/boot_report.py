"""What a boot report means for an operator: whether the node may serve, and if not, why."""

from __future__ import annotations

import datetime
import json
import os
import re
import stat
from collections.abc import Mapping
from typing import Any

MAX_BYTES = 16 * 1024 * 1024
"""Of a file that the service writes. A report of a hundred devices has less than one."""
SCHEMAS = (1, 2)
"""The versions of the report that are read."""


def read_json(path: str) -> dict[str, Any] | None:
    """A report, record or readiness file; None if it is absent, incomplete, too large or no regular file.

    The service's user writes these files, and root reads them: a FIFO would keep the reader waiting, a link lead elsewhere.
    """
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(opened, "rb") as file:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                return None
            text = file.read(MAX_BYTES + 1)
        document = json.loads(text) if len(text) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def written(report: dict[str, Any] | None) -> datetime.datetime | None:
    """When a report was written, None if it does not say so in a way that can be read."""
    try:
        said = moment((report or {})["created"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return said if said.tzinfo else None


STAMP = datetime.timedelta(seconds=5)
"""By which Docker may say that a container started later than its first process began: a busy daemon notes it late."""


def of_this_start(report: dict[str, Any] | None, inspected: Mapping[str, Any]) -> bool:
    """Whether a report is of the present start of the container that `docker inspect` shows."""
    at = written(report)
    return at is not None and at >= moment(inspected["State"]["StartedAt"]) - STAMP


def part(document: Any, name: str) -> dict[str, Any]:
    """A field that must be a mapping; empty if it is anything else."""
    found = document.get(name) if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


def listed(document: Any, name: str) -> list[dict[str, Any]]:
    """A field that must be a list of mappings; whatever else is in it is left out."""
    found = document.get(name) if isinstance(document, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def moment(text: str) -> datetime.datetime:
    """A RFC 3339 time. Docker writes one to nine digits of a second; Python 3.10 reads exactly six."""
    text = re.sub(r"\.(\d+)", lambda digits: "." + digits[1][:6].ljust(6, "0"), text.strip())
    return datetime.datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))


def failed_cases(report: dict[str, Any], most: int = 3) -> list[str]:
    """The first cases that did not pass, each with backend and reason."""
    lines = []
    for verdict in listed(report, "selftest"):
        for case in listed(verdict, "cases"):
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
    if report.get("schema_version") not in SCHEMAS:
        known = " and ".join(map(str, SCHEMAS))
        return f"the report has schema_version {report.get('schema_version')!r}; this fleet reads {known}"
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
    levels = part(report, "levels")
    if levels.get("enough") is False and not planted_ok:
        return f"the self-test was {levels.get('ran')}, the node's profile says {levels.get('profile')}"
    if planted and not fault_ok:
        return f"the fault {planted!r} was injected on purpose and the self-test did not detect it"
    if node_type is not None and report.get("node_type") != node_type:
        return f"the report is of a {report.get('node_type')!r} node, the fleet says {node_type!r}"
    return None


def summary(report: dict[str, Any] | None) -> dict[str, Any]:
    """What a table shows of a report."""
    report = report or {}
    completion = part(part(report, "engine"), "completion")
    devices = listed(part(report, "detection"), "devices") or [{}]
    device = part(part(report, "decision"), "device") or devices[0]
    alike = sum(other.get("arch") == device.get("arch") for other in devices)
    return {
        "node_type": report.get("node_type"),
        "backend": report.get("backend"),
        "provider": report.get("provider"),
        "verdict": report.get("verdict"),
        "created": report.get("created"),
        "boot_seconds": part(report, "boot_seconds").get("total"),
        "tokens_per_s": completion.get("tokens_per_s"),
        "fallbacks": [f"{f.get('from')} -> {f.get('to')}: {f.get('reason')}" for f in listed(report, "fallbacks")],
        "planted_fault": report.get("planted_fault"),
        "planted_answer": report.get("planted_answer"),
        "device": f"{alike} x {device.get('name')}" if alike > 1 else device.get("name"),
        "driver": device.get("driver"),
        "attnkit": report.get("attnkit_version"),
    }
