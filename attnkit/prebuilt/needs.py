"""What a boot may have to test when no model is given: the usual requirements of a node type, and of every workload."""

from __future__ import annotations

from attnkit.profiles.files import workload_names
from attnkit.select.node import find_node
from attnkit.select.plan import make_plan
from attnkit.selftest.results import Level
from attnkit.spec import AttentionSpec

LEVEL: Level = "standard"
"""The level that node profiles ask for."""


def needs(target: str) -> tuple[AttentionSpec, ...]:
    """What a boot on `target` may have to test when no model is given."""
    where = find_node(arch=target)
    plans = [make_plan(where, workload=workload) for workload in (None, *workload_names())]
    return tuple(dict.fromkeys(spec for plan in plans for spec in plan.requirements.specs))
