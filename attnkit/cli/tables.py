"""Tables for the terminal that fit 80 columns. JSON is for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from attnkit.cli.console import columns, console
from attnkit.wording import heads_text, layer_text, memory_text, short_reasons, spec_text

if TYPE_CHECKING:
    from attnkit.engines.vllm.census import Census
    from attnkit.engines.vllm.names import Resolution
    from attnkit.hardware.device import Device
    from attnkit.select.catalog import BackendRow
    from attnkit.select.node import Machine
    from attnkit.select.plan import Plan
    from attnkit.selftest.results import FaultResult


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
    """`attnkit backends`: what is usable here, then the rest by cause."""
    out = console()
    rows = list(rows)
    table = columns("usable here", "provider", "evidence", "what it is")
    for row in (row for row in rows if row.usable):
        provider = next(p for p in row.providers if p.usable)
        version = f"{provider.name} {provider.version or ''}".strip()
        table.add_row(Text(row.name, style="green"), version, row.evidence, Text(row.summary, style="dim"))
    out.print(table if table.row_count else Text("no backend is usable here", style="bold red"))
    causes: dict[tuple[bool, str], list[str]] = {}
    for row in (row for row in rows if not row.usable):
        causes.setdefault(_cause(row), []).append(row.name)
    for (_, cause), names in sorted(causes.items()):
        out.print()
        out.print(Text(cause, style="bold"))
        out.print(Text(f"  {', '.join(names)}", style="dim"))
    out.print()
    out.print(Text("Evidence is for this machine's architecture; --json lists every target, alias and reason.", style="dim"))


def _cause(row: BackendRow) -> tuple[bool, str]:
    """Why a backend is not usable, as several may have it; first what an installation would change."""
    for provider in row.providers:
        if not any(reason.code in ("device", "arch") for reason in provider.reasons):
            return False, "; ".join(reason.message for reason in provider.reasons)
    messages = [reason.message for p in row.providers for reason in p.reasons if reason.code in ("device", "arch")]
    return True, " or ".join(dict.fromkeys(message.partition(", not on")[0] for message in messages)) or row.why_not


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
    table = columns("", "backend", "why")
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
    table = columns("layers", "kind", "heads × size", "", "backend")
    for choice in plan.layers:
        name = Text(choice.chosen.backend, style="green") if choice.chosen else Text("none", style="red")
        kind = choice.kind
        table.add_row(str(kind.count), f"{kind.role} {kind.spec.dtype}", heads_text(kind.spec), layer_text(kind), name)
    for other in plan.requirements.other:
        table.add_row(str(other.count), "other", "", other.what, Text("not attention", style="dim"))
    out.print(table)


def show_environment(found: Mapping[str, Any]) -> None:
    """`attnkit env`."""
    out = console()
    out.print(Text(f"system     {found['system']}"))
    out.print(Text(f"node type  {found['node_type'] or 'unknown'}"))
    for name, count in Counter(found["devices"]).items():
        out.print(Text(f"device     {f'{count} × ' if count > 1 else ''}{name}"))
    table = columns("version of", "")
    for name, version in found["versions"].items():
        table.add_row(name, Text(version))
    out.print(table)
    for name, value in found["variables"].items():
        out.print(Text(f"{name}={value}", overflow="fold"))


def show_census(census: Census) -> None:
    """`attnkit census`."""
    out = console()
    ranks = f", one of {census.tensor} tensor-parallel ranks" if census.tensor > 1 else ""
    stages = f", one of {census.pipeline} pipeline stages" if census.pipeline > 1 else ""
    out.print(Text(f"{census.architecture or 'unknown architecture'}{ranks}{stages}  {census.model}"))
    out.print()
    table = columns("layers", "kind", "heads × size", "", "backend")
    for one in census.counted:
        kind = one.kind
        special = ", ".join(filter(None, (layer_text(kind), "" if one.scale_known else "scale not said")))
        shape = heads_text(kind.spec)
        table.add_row(str(kind.count), f"{kind.role} {kind.spec.dtype}", shape, special, one.backend or "not said")
    for other in census.other:
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


def show_fault_results(backend: str, results: Iterable[FaultResult]) -> None:
    """`attnkit selftest --inject-faults`: which case detects which fault."""
    out = console()
    out.print(Text(f"{backend}: injected faults", style="bold"))
    table = columns("", "fault", "detected by", "dtype")
    for result in results:
        mark = Text("✓", style="green") if result.caught else Text("✗", style="red")
        table.add_row(mark, result.fault, result.by or "nothing", result.dtype or "")
    out.print(table)
