"""Two boot reports side by side: only what differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.text import Text

from attnkit.cli.console import columns, console
from attnkit.wording import bar

if TYPE_CHECKING:
    from attnkit.boot.report import BootReport
    from attnkit.selftest.results import CaseResult

Row = tuple[str, str, str]
FACTOR = 1.5
"""Errors and speeds that differ by less are noise."""


def differences(before: BootReport, after: BootReport) -> dict[str, list[Row]]:
    """What changed, by kind: end, versions, decision, errors, speed; each row is a name, before and after."""
    found = {
        "end": _changed(_end(before), _end(after)),
        "versions": _changed(before.versions, after.versions),
        "decision": _changed(_decision(before), _decision(after)),
        "errors": list(_errors(before, after)),
        "speed": [row for row in _speeds(before, after) if _apart(float(row[1]), float(row[2]))],
    }
    return {kind: rows for kind, rows in found.items() if rows}


def show_comparison(before: BootReport, after: BootReport) -> None:
    """`attnkit report A B`."""
    out = console()
    for name, report in (("before", before), ("after", after)):
        host = report.host.get("hostname", "unknown host")
        out.print(Text(f"{name:<7} {report.created} on {host}: {report.end.headline if report.end else 'not over'}"))
    out.print()
    found = differences(before, after)
    for kind, rows in found.items():
        table = columns(kind, "before", "after")
        for row in rows:
            table.add_row(*row)
        out.print(table)
        out.print()
    if not found:
        out.print(Text("no differences", style="green"))


def _changed(before: dict[str, str], after: dict[str, str]) -> list[Row]:
    return [(k, before.get(k, "–"), after.get(k, "–")) for k in {**before, **after} if before.get(k) != after.get(k)]


def _end(report: BootReport) -> dict[str, str]:
    end = report.end
    code = "" if report.exit_code is None else str(report.exit_code)
    return {
        "end": end.headline if end else "not over",
        "reason": end.reason if end else "",
        "verdict": report.verdict,
        "exit code": code,
        "fault": report.planted_fault or report.planted_answer or "",
    }


def _decision(report: BootReport) -> dict[str, str]:
    decision = report.decision
    facts = {
        "backend": report.backend or "none",
        "provider": report.provider or "",
        "level": report.levels.ran if report.levels else "",
        "node type": report.node_type or "unknown",
        "devices": "; ".join(f"{device.name} ({device.arch})" for device in report.detection.devices),
        "fallbacks": "; ".join(f"{f.from_backend} → {f.to_backend or 'nothing'}" for f in report.fallbacks),
        "engine": " ".join(report.engine.argv) if report.engine else "",
        "compiled just in time": str(report.kernels.jit_compiles),
    }
    if decision is not None:
        facts["order"] = ", ".join(decision.order)
        facts |= {f"not {r.backend}": "; ".join(reason.message for reason in r.reasons) for r in decision.rejected}
    return facts


def _cases(report: BootReport) -> dict[str, CaseResult]:
    return {f"{v.backend} {v.layer} {v.device} {c.case}": c for v in report.selftest for c in v.cases}


def _errors(before: BootReport, after: BootReport) -> Iterator[Row]:
    first, second = _cases(before), _cases(after)
    for name in {**first, **second}:
        one, two = first.get(name), second.get(name)
        short = (one or two).case if one or two else name  # type: ignore[union-attr]
        shares = [case.error_share if case is not None else None for case in (one, two)]
        same = one is not None and two is not None and one.outcome == two.outcome
        if not same or (shares[0] is not None and shares[1] is not None and _apart(shares[0], shares[1])):
            yield short, _case_text(one), _case_text(two)


def _case_text(case: CaseResult | None) -> str:
    if case is None:
        return "–"
    return case.outcome if case.error_share is None else f"{case.outcome} {bar(case.error_share)}"


def _speeds(before: BootReport, after: BootReport) -> Iterator[Row]:
    first, second = _rates(before), _rates(after)
    return ((name, f"{first[name]:g}", f"{second[name]:g}") for name in first if name in second)


def _rates(report: BootReport) -> dict[str, float]:
    rates = {f"{k} seconds": v for k, v in report.boot_seconds.model_dump().items() if v is not None}
    completion = report.engine.completion if report.engine else None
    if completion is not None and completion.tokens_per_s is not None:
        rates["tokens/s"] = completion.tokens_per_s
    for verdict in report.selftest:
        for speed in verdict.speed:
            if speed.fraction is not None:
                rates[f"{verdict.backend} {speed.work}, share of the device's own rate"] = round(speed.fraction, 4)
    return rates


def _apart(one: float, two: float) -> bool:
    low, high = sorted((abs(one), abs(two)))
    return high > FACTOR * low
