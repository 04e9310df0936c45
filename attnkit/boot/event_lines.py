"""Boot events as lines for people."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from attnkit.wording import MARKS, health_text, number, printable, short_reasons


def event_text(fields: Mapping[str, Any]) -> str:
    """One event for people: a line, or a few."""
    writer = _EVENTS.get(fields["event"])
    if writer is None:
        rest = " ".join(f"{k}={v}" for k, v in fields.items() if k not in ("event", "time"))
        return printable(f"{fields['event']:<10} {rest}")
    lines = writer(fields)
    label = fields["event"].removeprefix("selftest.").removeprefix("engine.").removeprefix("device.")
    return "\n".join(f"{label if position == 0 else '':<11}{line}" for position, line in enumerate(_wrapped(lines)))


def _wrapped(lines: Iterable[str]) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(printable(line), width=68, subsequent_indent="  ") or [""]]


def _boot(f: Mapping[str, Any]) -> list[str]:
    fault = [f"INJECTED FAULT: {f['planted_fault']}"] if "planted_fault" in f else []
    answer = [f"SIMULATED DEVICE, NO KERNEL RUNS: {f['planted_answer']}"] if "planted_answer" in f else []
    return [f"attnkit {f['attnkit_version']} on {f['host']}", *fault, *answer]


def _detect(f: Mapping[str, Any]) -> list[str]:
    errors = [f"probe {name}: {error}" for name, error in f["probe_errors"].items()]
    counts = Counter(f"{d['name']} ({d['arch']})" for d in f["devices"])
    devices = [f"{count} × {device}" if count > 1 else device for device, count in counts.items()]
    return [f"{f['node_type'] or 'unknown node type'} ({f['why']})", *devices, *errors]


def _devices(f: Mapping[str, Any]) -> list[str]:
    return [
        line
        for row in f["devices"]
        for line in (f"{row['index']}: {health_text(SimpleNamespace(**row['health']))}", *row["findings"])
    ]


def _select(f: Mapping[str, Any]) -> list[str]:
    chosen = [f"{f['chosen']} through {f['provider']} (order: {f['order_source']})"] if f["chosen"] else ["no usable backend"]
    others = [f"then {', '.join(a['backend'] for a in f['accepted'][1:])}"] if f["accepted"][1:] else []
    rejected = [f"not {r['backend']}: {'; '.join(short_reasons(r['reasons']))}" for r in f["rejected"]]
    return [*chosen, *others, *rejected, *(f"note: {w}" for w in f["warnings"])]


def _case(f: Mapping[str, Any]) -> list[str]:
    compared = f" {number(f['max_error'])} of {number(f['max_bound'])}" if f["max_bound"] is not None else ""
    reason = f" {f['reason']}" if f["reason"] else ""
    which = f"[{f['device_index']}] " if "device_index" in f else ""
    return [f"{MARKS[f['outcome']]} {which}{f['case']}{compared}{reason}"]


def _verdict(f: Mapping[str, Any]) -> list[str]:
    counts = ", ".join(f"{n} {outcome}" for outcome, n in f["cases"].items() if n)
    which = f" on {f['device']}" if "device " in f["device"] else ""
    return [f"{MARKS[f['verdict']]} {f['backend']} {f['verdict']} ({counts}) in {f['seconds']:.1f} s{which}"]


def _collective(f: Mapping[str, Any]) -> list[str]:
    rate = "" if f["bus_bytes_per_s"] is None else f", {f['bus_bytes_per_s'] / 1e9:.1f} GB/s"
    promised = "" if f["promised_bytes_per_s"] is None else f" of {f['promised_bytes_per_s'] / 1e9:.0f}"
    reason = f": {f['reason']}" if f["reason"] else ""
    head = f"{MARKS[f['outcome']]} {len(f['ranks'])} ranks over {f['backend'] or 'nothing'}{rate}{promised}{reason}"
    return [head, *f["findings"]]


def _start(f: Mapping[str, Any]) -> list[str]:
    return [" ".join(f["argv"]), *(f"{k}={v}" for k, v in f["env"].items()), *(f"note: {n}" for n in f["notes"])]


def _completion(f: Mapping[str, Any]) -> list[str]:
    speed = f", {f['tokens_per_s']:g} tokens/s" if f["tokens_per_s"] is not None else ""
    return [f"{f['completion_tokens']} tokens from {f['model']}{speed}"]


def _running(f: Mapping[str, Any]) -> list[str]:
    if f["problem"]:
        return [f"{MARKS['fail' if f['running'] else 'inconclusive']} {f['problem']}"]
    return [f"{MARKS['pass']} the engine runs {f['running']}, as validated"]


def _layers(f: Mapping[str, Any]) -> list[str]:
    rows = [
        f"{MARKS['pass' if row['validated'] else 'skipped']} {row['count']} {row['role']} {row['backend']}: {row['layer']}"
        for row in f["layers"]
    ]
    problem = [f"{MARKS['fail']} {f['problem']}"] if f["problem"] else []
    return [*rows, *problem, *(f"note: {text}" for text in f["warnings"])]


def _ready(f: Mapping[str, Any]) -> list[str]:
    own = f["backend"]
    if f["engine_backend"]:
        own = f"the engine uses its own {f['engine_backend']}, only {own} was validated"
    return [f"after {f['seconds']:.1f} s: {f['why']}; {own}"]


_EVENTS: dict[str, Any] = {
    "boot": _boot,
    "detect": _detect,
    "devices": _devices,
    "select": _select,
    "selftest.case": _case,
    "selftest.verdict": _verdict,
    "device.left_out": lambda f: [f"{f['device']}: {f['reason']}"],
    "collective": _collective,
    "fallback": lambda f: [f"{f['from']} → {f['to'] or 'nothing left'}: {f['reason']}"],
    "report": lambda f: [f"{f['verdict']}, {f['path']}"],
    "engine.start": _start,
    "engine.healthy": lambda f: [f"after {f['seconds']:.1f} s"],
    "engine.completion": _completion,
    "engine.layers": _layers,
    "engine.backend": _running,
    "ready": _ready,
    "engine.exit": lambda f: [f"{f['how']}" + (f": {f['reason']}" if f["reason"] else "")],
    "error": lambda f: [*str(f["message"]).splitlines()],
}
