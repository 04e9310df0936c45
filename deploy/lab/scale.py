"""What a rollout costs: time, CPU and memory of the controller, compared with plain Ansible (by_hand.yml)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.lab.controller import Run
from deploy.lab.routine import GIVEN, GPU
from deploy.lab.testbed import Testbed

HERE = Path(__file__).resolve().parent


def measure(testbed: Testbed) -> Iterator[dict[str, Any]]:
    """A row a run: a bare fleet installed, and the same again; first by hand, then with attnkit.fleet."""
    types: dict[str, dict[str, Any]] = {}
    for node in testbed.nodes:
        given = GIVEN[node.kind]
        types[node.name] = {
            "lab_type": node.kind,
            "lab_platform": given.platform,
            "lab_devices": list(given.devices),
            "lab_requests": [{name.lower(): value for name, value in request.items()} for request in GPU] if given.gpu else [],
            "lab_groups": list(given.groups),
        }
    for who, playbook, hosts in (("by hand", HERE / "by_hand.yml", types), ("attnkit.fleet", "rollout", {})):
        testbed.strip()
        for what in ("install", "the same again"):
            run = testbed.play(playbook, testbed.old, hosts=hosts)
            states = testbed.probe()
            working = sum(state.works and state.release == testbed.old for state in states.values())
            yield row(who, what, run, len(testbed.names), working)


def row(who: str, what: str, run: Run, nodes: int, working: int) -> dict[str, Any]:
    """One line of the table."""
    return {
        "who": who,
        "what": what,
        "code": run.code,
        "nodes": nodes,
        "working": working,
        "changed": sum(run.changed.values()),
        "seconds": round(run.seconds, 1),
        "seconds_a_node": round(run.seconds / nodes, 2),
        "controller_cpu_seconds": round(run.cpu_seconds, 1),
        "cpu_seconds_a_node": round(run.cpu_seconds / nodes, 2),
        "controller_peak_mb": round(run.peak_bytes / 1e6),
    }
