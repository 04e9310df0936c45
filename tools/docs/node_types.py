"""docs/reference/node-types.md: what every built-in node type gets, as `attnkit select` decides it."""

from __future__ import annotations

from attnkit.profiles import NodeProfile, WorkloadProfile, all_nodes, load_workload, workload_names
from attnkit.select import evidence
from attnkit.select.node import find_node
from attnkit.select.plan import make_plan
from tools.docs.markdown import cell, page, table


def markdown() -> str:
    """The whole page."""
    nodes = all_nodes()
    workloads = [load_workload(name) for name in workload_names()]
    return page(
        "Node types and workloads",
        "A node type is a profile: which devices it describes, which image family runs on it, and which backends are",
        "tried, in",
        "order. The first backend of the table is what `attnkit select --node NAME --assume-installed` chooses for a",
        "usual decoder",
        "(32 heads of 128, 8 key/value heads). Evidence is the strongest [level](backends.md) for that provider on that",
        "architecture. Fields are explained in the [profile schema](profiles.md); to add a type, see",
        "[Add a node type](../how-to/add-a-node-type.md).",
        "",
        *table(
            ("node type", "devices", "architecture", "image", "first backend", "evidence", "then", "dtype"),
            (_node_row(node) for node in nodes),
        ),
        "",
        "## Workloads",
        "",
        "A workload changes settings of the node type. Select one with `--workload NAME` or `ATTNKIT_WORKLOAD`.",
        "",
        *table(
            ("workload", "for", "operation", "backends", "self-test", "model preset", "engine arguments"),
            map(_work_row, workloads),
        ),
    )


def _node_row(node: NodeProfile) -> tuple[str, ...]:
    where = find_node(node=node.name)
    chosen = make_plan(where, assume_installed=True).decision.chosen
    if chosen is None:
        raise ValueError(f"node type {node.name}: no backend of its chain can serve a usual decoder")
    first = f"[{chosen.backend}](backends.md#{chosen.backend.lower()}) ({chosen.provider})"
    rest = [name for name in node.backends if name != chosen.backend]
    return (
        f"`{node.name}`",
        cell(node.title),
        ", ".join(node.match.arch),
        f"[{node.platform}](images.md)",
        first,
        _evidence(chosen.backend, chosen.provider, (where.device.arch, *node.match.arch)),
        ", ".join(rest),
        node.dtype,
    )


def _evidence(backend: str, provider: str, archs: tuple[str, ...]) -> str:
    """The strongest evidence for this provider: on one of the architectures, or against the provider's real package."""
    items = [e for e in evidence.load() if (e.backend, e.provider) == (backend, provider)]
    items = [e for e in items if e.target in archs or e.word == "contract"]
    if not items:
        return "none"
    best = min(items, key=lambda e: (evidence.WORDS.index(e.word), e.subject, e.target))
    return f"{best.word} ({best.target if best.word == 'contract' else best.subject})"


def _work_row(work: WorkloadProfile) -> tuple[str, ...]:
    return (
        f"`{work.name}`",
        cell(work.title),
        work.op,
        ", ".join(work.backends or ()),
        work.level or "",
        work.model or "",
        f"`{' '.join(work.engine.args)}`" if work.engine.args else "",
    )
