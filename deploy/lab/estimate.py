"""How long a rollout of many nodes takes: a simulation, fed with what the lab measured and with assumptions that are named.

Ansible's linear strategy is what is simulated: in a batch, every task waits until all nodes have done it, and at most `forks`
nodes do it at a time. A pull shares the sources' bandwidth with the pulls beside it; a boot takes a random time.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable
from dataclasses import dataclass

SEED = 7
NODE_TYPES = 7
SHARES = (0.1, 0.5, 1.0)
"""The batches of playbooks/rollout.yml, as shares of the nodes that are no canary."""


@dataclass(frozen=True)
class Assumed:
    """What a site has.

    Args:
        image_gb: size of the part of an image that a node does not have yet.
        node_gbit: what a node takes from the network.
        source_gbit: what one registry or mirror gives.
        sources: how many there are.
        boot_s: the middle of the time from the start of a service to its completion (weights, self-test, engine).
        boot_spread: standard deviation of its logarithm.
        forks: of every controller.
        controllers: that work side by side, each on its share of the nodes.
        cores: of every controller.
    """

    image_gb: float = 4.0
    node_gbit: float = 10.0
    source_gbit: float = 10.0
    sources: int = 1
    boot_s: float = 240.0
    boot_spread: float = 0.25
    forks: int = 25
    controllers: int = 1
    cores: int = 2


def makespan(jobs: Iterable[float], workers: int) -> float:
    """When the last job ends if each free worker takes the next one."""
    free: list[float] = []
    end = 0.0
    for job in jobs:
        start = heapq.heappop(free) if len(free) >= workers else 0.0
        end = max(end, start + job)
        heapq.heappush(free, start + job)
    return end


def batches(nodes: int, canaries: int) -> list[int]:
    """The sizes of the batches."""
    rest = nodes - canaries
    sizes = [1] * canaries
    for share in SHARES:
        size = min(max(1, int((nodes - canaries) * share)), rest)
        if size > 0:
            sizes.append(size)
        rest -= size
    return sizes


def rollout(nodes: int, assumed: Assumed, cpu_seconds_a_node: float) -> dict[str, float]:
    """Simulate one.

    Args:
        nodes: of the fleet.
        assumed: the site.
        cpu_seconds_a_node: CPU time that the controller spends on a node, as measured.

    Returns:
        Hours in all, and of them what went into pulls, boots and the controller's own work.
    """
    dice = random.Random(SEED)
    share = -(-nodes // assumed.controllers)
    workers = assumed.forks * assumed.controllers
    spent = {"pull": 0.0, "boot": 0.0, "controller": 0.0}
    for size in batches(nodes, NODE_TYPES):
        at_once = min(size, workers)
        gbit = min(assumed.node_gbit, assumed.source_gbit * assumed.sources / at_once)
        spent["pull"] += makespan([assumed.image_gb * 8 / gbit] * size, at_once)
        boots = [assumed.boot_s * dice.lognormvariate(0.0, assumed.boot_spread) for _ in range(size)]
        spent["boot"] += makespan(boots, at_once)
        spent["controller"] += min(size, share) * cpu_seconds_a_node / assumed.cores
    hours = {name: seconds / 3600 for name, seconds in spent.items()}
    return {"hours": sum(hours.values()), **hours}


PLANS: tuple[tuple[str, int, Assumed], ...] = (
    ("as it is: one registry, 25 forks", 1000, Assumed()),
    ("100 forks on 8 cores", 1000, Assumed(forks=100, cores=8)),
    ("the same with a mirror for every 50 nodes", 1000, Assumed(forks=100, cores=8, sources=20)),
    ("the same, 400 forks on 16 cores", 1000, Assumed(forks=400, cores=16, sources=20)),
    ("8 controllers of 100 forks, 8 cores (AWX, or a part of the inventory each)", 1000,
     Assumed(forks=100, cores=8, sources=20, controllers=8)),
    ("the same for 5000 nodes, 100 mirrors", 5000, Assumed(forks=100, cores=8, sources=100, controllers=8)),
)  # fmt: skip
