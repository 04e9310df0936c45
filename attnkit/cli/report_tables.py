"""A boot report on the terminal: the boot's end first, then what failed, then the rest; readable at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attnkit.cli.console import columns, console
from attnkit.wording import COLOURS, MARKS, bar, health_text, number, short_reasons

if TYPE_CHECKING:
    from attnkit.boot.report import BootReport
    from attnkit.selftest.results import CaseResult, Verdict

END_COLOURS = {"validated": "green", "serving": "green", "stopped": "green", "failed": "red"}
END_MARKS = {"validated": "✓", "serving": "✓", "stopped": "✓", "failed": "✗"}


def show_report(report: BootReport, *, everything: bool = False) -> None:
    """`attnkit report FILE`.

    Args:
        everything: passed cases too, one a line.
    """
    out = console()
    _headline(out, report)
    engine = _engine_text(report)
    rows = [
        ("self-test", f"{MARKS[report.verdict]} {report.verdict}" + (f" ({report.levels.ran})" if report.levels else "")),
        ("node type", f"{report.node_type or 'unknown'} ({report.node_type_source}: {report.node_type_why})"),
        ("device", f"{report.decision.device.name} ({report.decision.device.arch})" if report.decision else ""),
        ("backend", f"{report.backend} through {report.provider}" if report.backend else "none"),
        ("order", f"{', '.join(report.decision.order)} ({report.decision.order_source})" if report.decision else ""),
        ("simulated", f"device is {report.planted_answer}, no kernel ran" if report.planted_answer else ""),
        ("injected", f"fault {report.planted_fault}" if report.planted_fault else ""),
        ("seconds", "  ".join(f"{k} {v:g}" for k, v in report.boot_seconds.model_dump().items() if v is not None)),
        ("engine", engine),
        ("versions", "  ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("proof key", report.proof_key or ""),
    ]
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, text in rows:
        if text:
            table.add_row(Text(name, style="dim"), Text(text))
    out.print(table)
    for row in report.devices if len(report.devices) > 1 else ():
        verdict = "left out" if row.left_out else row.verdict or "not tested"
        out.print(Text(f"device {row.index}   {verdict}: {row.reason or health_text(row.health)}"))
    for finding in (finding for row in report.devices for finding in row.findings):
        out.print(Text(f"finding    {finding}", style="yellow"))
    for warning in report.decision.warnings if report.decision else ():
        out.print(Text(f"note       {warning}", style="yellow"))
    if report.collective is not None:
        found = report.collective
        out.print(Text(f"collective {found.outcome} over {found.backend or 'nothing'}: {found.reason or 'right to the bit'}"))
    for step in report.fallbacks:
        out.print(Text(f"fallback   {step.from_backend} → {step.to_backend or 'nothing left'}: {step.reason}", style="yellow"))
    for layer in report.layer_kinds:
        share = "" if layer.worst is None else f", {bar(layer.worst)} of the bound"
        out.print(Text(f"layer      {MARKS[layer.outcome]} {layer.name}: {layer.cases} cases{share}"))
    out.print()
    show_verdicts(report.selftest, everything=everything)
    if report.engine is not None and report.engine.last_output:
        out.print(Text("the engine's last lines", style="bold"))
        for line in report.engine.last_output:
            out.print(Text(f"  {line}", overflow="fold"))
    if report.decision and report.decision.rejected:
        rejected = columns("rejected", "why")
        for refused in report.decision.rejected:
            rejected.add_row(refused.backend, Text("; ".join(short_reasons(refused.reasons)), style="dim"))
        out.print(rejected)


def _headline(out: Console, report: BootReport) -> None:
    end = report.end
    if end is None:
        out.print(Text.assemble(("… the boot is not over", "bold yellow"), f"  {report.created}"))
    else:
        mark = (f"{END_MARKS[end.kind]} {end.headline}", f"bold {END_COLOURS[end.kind]}")
        out.print(Text.assemble(mark, f"  {report.created}"))
        for name, text in (("why", end.reason), ("next", end.next_step)):
            if text:
                out.print(Text.assemble((f"{name:<5}", "dim"), text))
    if report.error and end is not None and report.error != end.reason:
        out.print(Text(report.error, style="red"))
    out.print()


def show_verdicts(verdicts: Iterable[Verdict], *, everything: bool = False) -> None:
    """`attnkit selftest`: what failed first, each with its reason on a line of its own; what passed in one line.

    Args:
        everything: passed cases too, one a line.
    """
    out = console()
    for verdict in verdicts:
        fault = f", injected fault {verdict.fault}" if verdict.fault else ""
        title = f"{verdict.backend} through {verdict.provider} on {verdict.device}, {verdict.level}{fault}"
        out.print(Text.assemble((MARKS[verdict.outcome] + " ", COLOURS[verdict.outcome]), (title, "bold")))
        if verdict.layer:
            out.print(Text(f"  {verdict.layer}", style="dim"))
        kernels = dict.fromkeys(case.kernel for case in verdict.cases if case.kernel)
        if kernels:
            out.print(Text(f"  ran {', '.join(kernels)}", style="dim"))
        for outcome in ("fail", "inconclusive"):
            for case in (case for case in verdict.cases if case.outcome == outcome):
                _bad_case(out, case)
        _passed(out, [case for case in verdict.cases if case.outcome == "pass"], everything)
        skipped = [case for case in verdict.cases if case.outcome == "skipped"]
        for reason in dict.fromkeys(case.reason for case in skipped):
            count = sum(case.reason == reason for case in skipped)
            out.print(Text(f"  {MARKS['skipped']} {count} skipped: {reason}", style="dim"))
        for text in verdict.unseen:
            out.print(Text(f"  not seen at this level: {text}", style="dim"))
        out.print(Text(f"{verdict.outcome} in {verdict.seconds:.1f} s", style=COLOURS[verdict.outcome]))
        out.print()


def _bad_case(out: Console, case: CaseResult) -> None:
    share = case.error_share
    compared = f"  {number(case.max_error)} of {number(case.max_bound)}, {bar(share)}" if share is not None else ""
    out.print(Text.assemble((f"  {MARKS[case.outcome]} ", COLOURS[case.outcome]), case.case, compared))
    out.print(Text(f"    {case.reason} (guards {case.guards})"))


def _passed(out: Console, cases: list[CaseResult], everything: bool) -> None:
    if not cases:
        return
    shares = [(share, case.case) for case in cases if (share := case.error_share) is not None]
    worst = f"; nearest to its bound: {bar(max(shares)[0])} {max(shares)[1]}" if shares else ""
    out.print(Text(f"  {MARKS['pass']} {len(cases)} passed{worst}", style="green"))
    if everything:
        table = columns("case", "error", "bound", "share")
        for case in cases:
            share = case.error_share
            table.add_row(case.case, number(case.max_error), number(case.max_bound), "" if share is None else bar(share))
        out.print(table)


def _engine_text(report: BootReport) -> str:
    engine = report.engine
    if engine is None:
        return ""
    parts = [f"{engine.name or next(iter(engine.argv), '')} {engine.version or ''}".rstrip()]
    if engine.backend_flag:
        parts.append(" ".join(engine.backend_flag))
    if engine.health_seconds is not None:
        parts.append(f"healthy after {engine.health_seconds:g} s")
    if engine.running_backend is not None:
        parts.append(f"runs {engine.running_backend}")
    if engine.completion and engine.completion.tokens_per_s is not None:
        parts.append(f"{engine.completion.tokens_per_s:g} tokens/s")
    if engine.exit_code is not None:
        parts.append(f"ended with exit code {engine.exit_code}")
    return "\n".join([", ".join(parts), *engine.notes])
