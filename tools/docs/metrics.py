"""docs/reference/metrics.md: events, metrics and node labels, from the code that writes them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from attnkit.boot import events
from tools.docs.markdown import SOURCE, cell, page, table

ROOT = Path(__file__).resolve().parents[2]
EVENTS = {
    "boot": "the boot starts: version, host, the engine's command",
    "detect": "devices, failed probes and the node type",
    "devices": "the state of every device that is to serve: errors, throttling, clocks, memory, links; what is wrong with it",
    "select": "the decision: the chain of candidates, and the reason of every rejection",
    "selftest.case": "one case: its error, its bound, its outcome; of several devices, on which",
    "selftest.verdict": "the self-test of one backend on one device is over",
    "device.left_out": "a bad device is hidden from the engine, and why",
    "collective": "the devices that serve one model together exchanged data: right or not, and how fast",
    "fallback": "the next backend of the chain is tried, and why",
    "report": "the boot report was written",
    "engine.start": "the serving engine is started: its whole command",
    "engine.healthy": "its health endpoint answered",
    "engine.completion": "the completion that was requested, with tokens per second",
    "engine.layers": "the attention layers that the engine's workers built, and whether they were validated",
    "engine.backend": "which implementation the engine's log names",
    "ready": "the readiness file says ready",
    "engine.exit": "the engine ended",
    "error": "why the boot ended",
}


def found() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Every gauge that the package writes: name, help, labels, file; in the order of the source."""
    for path in sorted((ROOT / "attnkit").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        scopes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) >= 2):
            first, second = call.args[:2]
            if not (isinstance(first, ast.Constant) and str(first.value).startswith("attnkit_")):
                continue
            if isinstance(second, ast.Constant):
                labels = _labels(call.args[2], scopes, call) if len(call.args) > 2 else ()
                yield str(first.value), str(second.value), labels, path.relative_to(ROOT).as_posix()


def _labels(node: ast.expr, scopes: dict[str, ast.FunctionDef], call: ast.Call) -> tuple[str, ...]:
    """The labels of a gauge: a tuple, or a name that the same function sets to one."""
    if isinstance(node, ast.Tuple):
        return tuple(str(item.value) for item in node.elts if isinstance(item, ast.Constant))
    for scope in scopes.values():
        if any(child is call for child in ast.walk(scope)) and isinstance(node, ast.Name):
            for step in ast.walk(scope):
                if isinstance(step, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in step.targets):
                    return _labels(step.value, {}, call)
    return ()


def markdown() -> str:
    """The whole page.

    Raises:
        ValueError: an event is not described here, or one is described that does not exist.
    """
    if set(EVENTS) != set(get_args(events.Name)):
        raise ValueError(f"{__file__}: describe exactly these events: {', '.join(get_args(events.Name))}")
    gauges = sorted({(f"`{name}`", ", ".join(labels), cell(text)) for name, text, labels, _ in found()})
    return page(
        "Events, metrics and labels",
        "## Events",
        "",
        "`attnkit boot` writes JSON lines on stdout, one event each, with the fields `event` and `time`. A terminal",
        "gets a form for",
        "people. The engine's own output goes to stderr. Names of events are a stable interface.",
        "",
        *table(("event", "meaning"), ((f"`{name}`", text) for name, text in EVENTS.items())),
        "",
        "## Metrics",
        "",
        "The boot writes Prometheus text next to its report (`report.prom`), for node_exporter's textfile collector.",
        f"`python -m attnkit.publish` ([source]({SOURCE}/attnkit/publish.py)) serves the same text on `/metrics`, with",
        "the state of now.",
        "All metrics are gauges.",
        "",
        *table(("metric", "labels", "meaning"), gauges),
        "",
        "## Node labels",
        "",
        "On Kubernetes the same program writes a feature file for Node Feature Discovery. The labels expire five",
        "minutes after it is",
        "gone.",
        "",
        *table(
            ("label", "value"),
            (
                ("`attnkit.io/backend`", "the backend that serves, or `none`"),
                ("`attnkit.io/verdict`", "the verdict of the boot report, or `none`"),
                ("`attnkit.io/ready`", "`true` or `false`"),
            ),
        ),
    )
