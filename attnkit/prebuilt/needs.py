"""What a boot may have to prove when no model is given: the usual need of a node type, and of every workload."""

from __future__ import annotations

from attnkit.profiles.files import workload_names
from attnkit.select.node import place
from attnkit.select.plan import make_plan
from attnkit.selftest.results import Level
from attnkit.spec import AttentionSpec

LEVEL: Level = "standard"
"""The level that node profiles ask for."""


def needs(target: str) -> tuple[AttentionSpec, ...]:
    """What a boot on `target` may have to prove when no model is given."""
    where = place(arch=target)
    plans = [make_plan(where, workload=workload) for workload in (None, *workload_names())]
    return tuple(dict.fromkeys(spec for plan in plans for spec in plan.need.specs))
