"""Tables for the terminal that fit 80 columns. JSON is for programs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from attnkit.wording import (
    COLOURS,
    MARKS,
    heads_text,
    health_text,
    layer_text,
    memory_text,
    number,
    printable,
    short_reasons,
    spec_text,
)

if TYPE_CHECKING:
    from attnkit.boot.report import BootReport
    from attnkit.engines.vllm.names import Resolution
    from attnkit.hardware.device import Device
    from attnkit.select.catalog import BackendRow
    from attnkit.select.node import Machine
    from attnkit.select.plan import Plan
    from attnkit.selftest.results import FaultResult, Verdict

MAX_WIDTH = 100


class _PlainConsole(Console):
    """Text is text: no markup in it, and control characters are shown instead of sent."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `Console.render`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def console() -> Console:
    """A console on stdout: 80 columns where it is no terminal, at most 100 where it is."""
    made = _PlainConsole(highlight=False, markup=False, emoji=False)
    made.width = min(made.width, MAX_WIDTH)
    return made


def _table(*columns: str, **options: Any) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", **options)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("error", "bound"))
    return table


def show_machine(machine: Machine, profile_files: Iterable[Path]) -> None:
    """`attnkit detect`: equal devices in one line, and one line for each device that has something wrong."""
    out = console()
    devices = machine.detection.devices
    for group in _equal_devices(devices):
        first = group[0]
        count = f"{len(group)} × " if len(group) > 1 else ""
        state = "" if first.visible else ", hidden"
        parts = [
            _indices(group, bool(machine.detection.visibility)),
            memory_text(first.memory_bytes) + (" each" if len(group) > 1 and first.memory_bytes else ""),
            f"driver {first.driver}" if first.driver else "",
            _places(group),
        ]
        more = "".join(f" · {part}" for part in parts if part)
        out.print(Text.assemble((f"{count}{first.name} ({first.arch}{state})", "bold" if first.usable else "red"), more))
    out.print()
    for text in dict.fromkeys(f"{d.name}: {' '.join(d.features)}" for d in devices if d.features and d.usable):
        out.print(Text(text, style="dim"))
    problems = {device.problem for device in devices if device.problem}
    for device in devices:
        if device.obstacle is not None:
            out.print(Text.assemble(("✗ ", "red"), f"{device.vendor} {device.index}: {device.obstacle}"))
    for probe in machine.detection.probes:
        if probe.error:
            out.print(Text(f"probe {probe.probe}: {probe.error}", style="yellow"))
        for note in probe.notes:
            if note not in problems:
                out.print(Text(f"probe {probe.probe}: {note}", style="dim"))
    for name, value in machine.detection.visibility.items():
        out.print(Text(f"{name}={value}", style="dim"))
    for note in machine.detection.visibility_notes:
        out.print(Text(f"visible devices: {note}", style="yellow"))
    out.print()
    out.print(Text.assemble("node type  ", (machine.match.node or "unknown", "bold"), f" ({machine.match.why})"))
    _show_files(out, profile_files)


def _equal_devices(devices: Iterable[Device]) -> list[list[Device]]:
    """Devices that differ in nothing that a person looks for, together; those with something wrong are not among the others."""
    groups: dict[tuple[object, ...], list[Device]] = {}
    for d in devices:
        key = (d.vendor, d.name, d.arch, d.memory_bytes, d.driver, d.usable, d.visible, d.units, (d.part or "").split(" ")[0])
        groups.setdefault(key, []).append(d)
    return list(groups.values())


def _indices(group: list[Device], numbered: bool) -> str:
    """The devices' indices, and what a process calls them where a variable chooses: "1, 3 → 1, 0"."""
    if group[0].kind == "cpu":
        return ""
    ordinals = [device.ordinal for device in group]
    seen = ", ".join(map(str, ordinals)) if numbered and None not in ordinals else ""
    return _ranges(device.index for device in group) + (f" → {seen}" if seen else "")


def _places(group: list[Device]) -> str:
    """NUMA nodes with their devices, then what links them: "NUMA 0: 0-3, 1: 4-7 · 18 × NVLink"."""
    nodes: dict[int, list[int]] = {}
    for device in group:
        if device.numa_node is not None:
            nodes.setdefault(device.numa_node, []).append(device.index)
    numa = str(next(iter(nodes))) if len(nodes) == 1 else ", ".join(f"{n}: {_ranges(i)}" for n, i in sorted(nodes.items()))
    # Each GPU's xGMI names the others; of NVLinks there are as many on each.
    links = sorted({link.split(" to ")[0] for device in group for link in device.links})
    return " · ".join(text for text in (f"NUMA {numa}" if numa else "", ", ".join(links)) if text)


def _ranges(indices: Iterable[int]) -> str:
    """0-3, 6."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _show_files(out: Console, profile_files: Iterable[Path]) -> None:
    for file in profile_files:
        out.print(Text(f"profile    {file}", overflow="fold"))


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
    out.print(Text("Evidence is for this machine's architecture; --json lists every target, alias and reason.", style="dim"))


def show_plan(plan: Plan, profile_files: Iterable[Path]) -> None:
    """`attnkit select`."""
    out = console()
    decision = plan.decision
    node = plan.node
    node_type = node.profile.name if node.profile else "unknown"
    out.print(Text.assemble("node type  ", (node_type, "bold"), f" ({node.why})"))
    _show_files(out, profile_files)
    out.print(Text(f"device     {node.device.name} ({node.device.arch})"))
    out.print(Text(f"installed  {plan.installed_source}"))
    out.print(Text(f"order      {decision.order_source}"))
    for spec in plan.requirements.specs if not plan.layers else ():
        out.print(Text(f"requires   {spec_text(spec)}"))
    read = bool(plan.layers or plan.requirements.other)
    out.print(Text(f"{'model      ' if read else '           from '}{plan.requirements.source}"))
    for note in (*plan.requirements.notes, *decision.warnings):
        out.print(Text(f"note       {note}", style="yellow"))
    for text in plan.requirements.not_understood:
        out.print(Text.assemble(("not understood: ", "bold red"), text))
    _show_layers(out, plan)
    out.print()
    if node.device.obstacle is not None:
        out.print(Text.assemble(("no usable device: ", "bold red"), node.device.obstacle))
        return
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
    if decision.chosen is None and not plan.attention_free:
        out.print(Text("no usable backend", style="bold red"))


def _show_layers(out: Console, plan: Plan) -> None:
    """Every kind of layer with what is chosen for it."""
    if not plan.layers and not plan.requirements.other:
        return
    out.print()
    table = _table("layers", "kind", "heads × size", "", "backend")
    for choice in plan.layers:
        name = Text(choice.chosen.backend, style="green") if choice.chosen else Text("none", style="red")
        kind = choice.kind
        table.add_row(str(kind.count), f"{kind.role} {kind.spec.dtype}", heads_text(kind.spec), layer_text(kind), name)
    for other in plan.requirements.other:
        table.add_row(str(other.count), "other", "", other.what, Text("not attention", style="dim"))
    out.print(table)


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
        fault = f", injected fault {verdict.fault}" if verdict.fault else ""
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


def show_fault_results(backend: str, results: Iterable[FaultResult]) -> None:
    """`attnkit selftest --inject-faults`: which case detects which fault."""
    out = console()
    out.print(Text(f"{backend}: injected faults", style="bold"))
    table = _table("", "fault", "detected by", "dtype")
    for result in results:
        mark = Text("✓", style="green") if result.caught else Text("✗", style="red")
        table.add_row(mark, result.fault, result.by or "nothing", result.dtype or "")
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
        ("simulated", f"device is {report.planted_answer}, no kernel ran" if report.planted_answer else ""),
        ("injected", f"fault {report.planted_fault}" if report.planted_fault else ""),
        ("error", report.error or ""),
        ("seconds", "  ".join(f"{k} {v:g}" for k, v in report.boot_seconds.model_dump().items() if v is not None)),
        ("engine", _engine_text(report)),
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
    if report.collective is not None:
        found = report.collective
        out.print(Text(f"collective {found.outcome} over {found.backend or 'nothing'}: {found.reason or 'right to the bit'}"))
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


def _engine_text(report: BootReport) -> str:
    engine = report.engine
    if engine is None:
        return ""
    parts = [f"{engine.name or engine.argv[0]} {engine.version or ''}".rstrip()]
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
