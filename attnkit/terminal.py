"""What people see in a terminal: tables and event lines that fit 80 columns. JSON is for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from attnkit.catalog import BackendRow
    from attnkit.engines.vllm_names import Resolution
    from attnkit.plan import Box, Plan
    from attnkit.proving import Proof
    from attnkit.report import BootReport
    from attnkit.selftest.model import Verdict

MAX_WIDTH = 100
MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "skipped": "·", "planted": "◌"}
COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow", "skipped": "dim", "planted": "magenta"}


def console() -> Console:
    """A console on stdout: 80 columns where it is no terminal, at most 100 where it is."""
    made = Console(highlight=False)
    made.width = min(made.width, MAX_WIDTH)
    return made


def _table(*columns: str, **options: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", **options)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("error", "bound"))
    return table


def show_box(box: Box) -> None:
    """`attnkit detect`."""
    out = console()
    table = _table("device", "arch", "memory", "driver", "found by")
    for device in box.detection.devices:
        table.add_row(device.name, device.arch, memory_text(device.memory_bytes), device.driver or "", device.source)
    out.print(table)
    for device in box.detection.devices:
        if device.features:
            out.print(Text(f"{device.name}: {' '.join(device.features)}", style="dim"))
    for probe in box.detection.probes:
        if probe.error:
            out.print(Text(f"probe {probe.probe}: {probe.error}", style="yellow"))
        for note in probe.notes:
            out.print(Text(f"probe {probe.probe}: {note}", style="dim"))
    out.print()
    out.print(Text.assemble(("node type ", ""), (box.match.node or "unknown", "bold"), f": {box.match.why}"))


def show_catalog(rows: Iterable[BackendRow]) -> None:
    """`attnkit backends`."""
    out = console()
    table = _table("backend", "here", "provider", "evidence", "why not")
    for row in rows:
        usable = next((p for p in row.providers if p.usable), None)
        provider = f"{usable.name} {usable.version or ''}".strip() if usable else ""
        mark = Text("yes", style="green") if row.usable else Text("no", style="dim")
        table.add_row(row.name, mark, provider, row.evidence, Text(row.why_not, style="dim"))
    out.print(table)
    out.print(Text("Evidence is for this box's architecture; --json has every target, alias and reason.", style="dim"))


def show_plan(plan: Plan) -> None:
    """`attnkit select`."""
    out = console()
    decision = plan.decision
    where = plan.place
    node = where.profile.name if where.profile else "unknown"
    out.print(Text.assemble("node type  ", (node, "bold"), f" ({where.why})"))
    out.print(Text(f"device     {where.device.name} ({where.device.arch})"))
    out.print(Text(f"installed  {plan.installed_source}"))
    out.print(Text(f"order      {decision.order_source}"))
    for spec in plan.need.specs:
        out.print(Text(f"need       {spec_text(spec)}"))
    out.print(Text(f"           from {plan.need.source}"))
    for note in (*plan.need.notes, *decision.warnings):
        out.print(Text(f"note       {note}", style="yellow"))
    out.print()
    table = _table("", "backend", "why")
    for position, accepted in enumerate(decision.accepted):
        mark = Text("→" if position == 0 else str(position + 1), style="green")
        table.add_row(
            mark, Text(accepted.backend, style="bold" if position == 0 else ""), f"{accepted.provider}: {accepted.reason}"
        )
    for rejected in decision.rejected:
        for position, reason in enumerate(short_reasons(rejected.reasons)):
            name = rejected.backend if position == 0 else ""
            table.add_row(Text("✗" if position == 0 else "", style="red"), name, Text(reason, style="dim"))
    out.print(table)
    if decision.chosen is None:
        out.print(Text("no usable backend", style="bold red"))


def show_resolution(found: Resolution, platform: str) -> None:
    """`attnkit resolve`."""
    out = console()
    head = f"{found.name} in vLLM {found.vllm_version} on {platform}"
    if found.flag:
        out.print(Text.assemble(f"{head}: ", (" ".join(found.flag), "bold green")))
    if found.env:
        out.print(Text.assemble(f"{head}: ", (" ".join(f"{k}={v}" for k, v in found.env.items()), "bold green")))
    if not found.flag and not found.env:
        out.print(Text(f"{head}: no switch" + (f"; now {found.now}" if found.now else "")))
    if found.note:
        out.print(Text(found.note))


def show_verdicts(verdicts: Iterable[Verdict]) -> None:
    """`attnkit selftest`: every case with its error and bound."""
    out = console()
    for verdict in verdicts:
        fault = f", planted fault {verdict.fault}" if verdict.fault else ""
        title = f"{verdict.backend} through {verdict.provider} on {verdict.device}, {verdict.level}{fault}"
        out.print(Text.assemble((MARKS[verdict.outcome] + " ", COLOURS[verdict.outcome]), (title, "bold")))
        kernels = dict.fromkeys(case.kernel for case in verdict.cases if case.kernel)
        if kernels:
            out.print(Text(f"  ran {', '.join(kernels)}", style="dim"))
        table = _table("", "case", "error", "bound", "")
        table.columns[1].no_wrap = True
        for case in verdict.cases:
            mark = Text(MARKS[case.outcome], style=COLOURS[case.outcome])
            table.add_row(mark, case.case, number(case.max_error), number(case.max_bound), case.reason)
        out.print(table)
        for text in verdict.unseen:
            out.print(Text(f"not seen at this level: {text}", style="dim"))
        out.print(Text(f"{verdict.outcome} in {verdict.seconds:.1f} s", style=COLOURS[verdict.outcome]))
        out.print()


def show_proofs(backend: str, proofs: Iterable[Proof]) -> None:
    """`attnkit selftest --prove`: which case catches which planted fault."""
    out = console()
    out.print(Text(f"{backend}: faults planted on purpose", style="bold"))
    table = _table("", "fault", "caught by", "dtype")
    for proof in proofs:
        mark = Text("✓", style="green") if proof.caught else Text("✗", style="red")
        table.add_row(mark, proof.fault, proof.by or "nothing", proof.dtype or "")
    out.print(table)


def show_report(report: BootReport) -> None:
    """`attnkit report FILE`."""
    out = console()
    colour = COLOURS[report.verdict]
    out.print(Text.assemble((f"{MARKS[report.verdict]} {report.verdict}", f"bold {colour}"), f"  {report.created}"))
    rows = [
        ("node type", f"{report.node_type or 'unknown'} ({report.node_type_source}: {report.node_type_why})"),
        ("device", f"{report.decision.device.name} ({report.decision.device.arch})" if report.decision else ""),
        ("backend", f"{report.backend} through {report.provider}" if report.backend else "none"),
        ("order", f"{', '.join(report.decision.order)} ({report.decision.order_source})" if report.decision else ""),
        ("planted", f"{report.planted_answer}: the device's answer, no kernel ran" if report.planted_answer else ""),
        ("fault", f"{report.planted_fault}, planted on purpose" if report.planted_fault else ""),
        ("error", report.error or ""),
        ("seconds", "  ".join(f"{k} {v:g}" for k, v in report.boot_seconds.model_dump().items() if v is not None)),
    ]
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, text in rows:
        if text:
            table.add_row(Text(name, style="dim"), Text(text))
    out.print(table)
    for step in report.fallbacks:
        out.print(Text(f"fallback   {step.from_backend} → {step.to_backend or 'nothing left'}: {step.reason}", style="yellow"))
    out.print()
    show_verdicts(report.selftest)
    if report.decision:
        table = _table("rejected", "why")
        for rejected in report.decision.rejected:
            table.add_row(rejected.backend, Text("; ".join(short_reasons(rejected.reasons)), style="dim"))
        if report.decision.rejected:
            out.print(table)
    if report.engine:
        out.print()
        out.print(Text(engine_text(report)))


def engine_text(report: BootReport) -> str:
    """The engine in one or two lines."""
    engine = report.engine
    if engine is None:
        return "no engine"
    parts = [f"engine     {engine.name or engine.argv[0]} {engine.version or ''}".rstrip()]
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
    return ", ".join(parts) + "".join(f"\n           {note}" for note in engine.notes)


def memory_text(size: int | None) -> str:
    """GiB with one digit; '' where unknown."""
    return "" if size is None else f"{size / 2**30:.1f} GiB"


def number(value: float | None) -> str:
    """Two significant digits; '' where nothing was compared."""
    return "" if value is None else f"{value:.1e}"


def spec_text(spec: Any) -> str:
    """A need in one line: paged bfloat16 32/8 heads of 128, blocks of 16."""
    value_dim = f"/{spec.head_dim_v}" if spec.head_dim_v not in (None, spec.head_dim) else ""
    parts = [f"{spec.op} {spec.dtype}, {spec.num_heads}/{spec.num_kv_heads} heads of {spec.head_dim}{value_dim}"]
    if spec.block_size is not None:
        parts.append(f"blocks of {spec.block_size}")
    if spec.kv_cache_dtype != "auto":
        parts.append(f"cache {spec.kv_cache_dtype}")
    if spec.features:
        parts.append(" ".join(sorted(spec.features)))
    return ", ".join(parts)


def short_reasons(reasons: Iterable[Any]) -> list[str]:
    """Reasons as people want them: where the device already rules a backend out, that alone, once for all its providers.

    Args:
        reasons: `Reason`s, or their plain form.
    """
    pairs = [(r["code"], r["message"]) if isinstance(r, Mapping) else (r.code, r.message) for r in reasons]
    about_device = [message.partition(": ")[2] or message for code, message in pairs if code in ("device", "arch")]
    return list(dict.fromkeys(about_device or [message for _, message in pairs]))


def event_text(fields: Mapping[str, Any]) -> str:
    """One event for people: a line, or a few."""
    writer = _EVENTS.get(fields["event"])
    if writer is None:
        return f"{fields['event']:<10} " + " ".join(f"{k}={v}" for k, v in fields.items() if k not in ("event", "time"))
    lines = writer(fields)
    label = fields["event"].removeprefix("selftest.").removeprefix("engine.")
    return "\n".join(f"{label if position == 0 else '':<11}{line}" for position, line in enumerate(_wrapped(lines)))


def _wrapped(lines: Iterable[str]) -> list[str]:
    import textwrap

    return [part for line in lines for part in textwrap.wrap(line, width=68, subsequent_indent="  ") or [""]]


def _boot(f: Mapping[str, Any]) -> list[str]:
    fault = [f"FAULT PLANTED ON PURPOSE: {f['planted_fault']}"] if "planted_fault" in f else []
    answer = [f"NO KERNEL RUNS, THE DEVICE'S ANSWER IS PLANTED: {f['planted_answer']}"] if "planted_answer" in f else []
    return [f"attnkit {f['attnkit_version']} on {f['host']}", *fault, *answer]


def _detect(f: Mapping[str, Any]) -> list[str]:
    errors = [f"probe {name}: {error}" for name, error in f["probe_errors"].items()]
    devices = [f"{d['name']} ({d['arch']})" for d in f["devices"]]
    return [f"{f['node_type'] or 'unknown node type'} ({f['why']})", *devices, *errors]


def _select(f: Mapping[str, Any]) -> list[str]:
    chosen = [f"{f['chosen']} through {f['provider']} (order: {f['order_source']})"] if f["chosen"] else ["no usable backend"]
    others = [f"then {', '.join(a['backend'] for a in f['accepted'][1:])}"] if f["accepted"][1:] else []
    rejected = [f"not {r['backend']}: {'; '.join(short_reasons(r['reasons']))}" for r in f["rejected"]]
    return [*chosen, *others, *rejected, *(f"note: {w}" for w in f["warnings"])]


def _case(f: Mapping[str, Any]) -> list[str]:
    compared = f" {number(f['max_error'])} of {number(f['max_bound'])}" if f["max_bound"] is not None else ""
    reason = f" {f['reason']}" if f["reason"] else ""
    return [f"{MARKS[f['outcome']]} {f['case']}{compared}{reason}"]


def _verdict(f: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{n} {outcome}" for outcome, n in f["cases"].items() if n)
    return [f"{MARKS[f['verdict']]} {f['backend']} {f['verdict']} ({counts}) in {f['seconds']:.1f} s"]


def _start(f: Mapping[str, Any]) -> list[str]:
    return [" ".join(f["argv"]), *(f"{k}={v}" for k, v in f["env"].items()), *(f"note: {n}" for n in f["notes"])]


def _completion(f: Mapping[str, Any]) -> list[str]:
    speed = f", {f['tokens_per_s']:g} tokens/s" if f["tokens_per_s"] is not None else ""
    return [f"{f['completion_tokens']} tokens from {f['model']}{speed}"]


def _running(f: Mapping[str, Any]) -> list[str]:
    if f["problem"]:
        return [f"{MARKS['fail' if f['running'] else 'inconclusive']} {f['problem']}"]
    return [f"{MARKS['pass']} the engine runs {f['running']}, as proven"]


def _ready(f: Mapping[str, Any]) -> list[str]:
    own = (
        f"attention by the engine's own {f['engine_backend']}, {f['backend']} is proven"
        if f["engine_backend"]
        else f["backend"]
    )
    return [f"after {f['seconds']:.1f} s: {f['why']}; {own}"]


_EVENTS: dict[str, Any] = {
    "boot": _boot,
    "detect": _detect,
    "select": _select,
    "selftest.case": _case,
    "selftest.verdict": _verdict,
    "fallback": lambda f: [f"{f['from']} → {f['to'] or 'nothing left'}: {f['reason']}"],
    "report": lambda f: [f"{f['verdict']}, {f['path']}"],
    "engine.start": _start,
    "engine.healthy": lambda f: [f"after {f['seconds']:.1f} s"],
    "engine.completion": _completion,
    "engine.backend": _running,
    "ready": _ready,
    "engine.exit": lambda f: [f"{f['how']}" + (f": {f['reason']}" if f["reason"] else "")],
    "error": lambda f: [*str(f["message"]).splitlines()],
}
