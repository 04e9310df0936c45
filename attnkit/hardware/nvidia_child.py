"""The NVIDIA probe in a process of its own, whose result comes back as JSON."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict

from attnkit.hardware import nvidia
from attnkit.hardware.child import DEADLINE_SECONDS, answer_of, start_child, with_tuples
from attnkit.hardware.device import Device, ProbeResult
from attnkit.hardware.pci import PciDevice, read_pci
from attnkit.hardware.tree import Tree


def probe(tree: Tree, pci: tuple[PciDevice, ...], *, deadline: float = DEADLINE_SECONDS) -> ProbeResult:
    """`attnkit.hardware.nvidia.probe`; where it asks NVML, in a child with a deadline.

    A child that does not answer in `deadline` seconds, or dies, leaves the GPUs listed as not usable, with the reason.
    """
    if not nvidia.asks_nvml(tree, pci):
        return nvidia.probe(tree, pci)
    answer = answer_of(start_child("attnkit.hardware.nvidia_child", str(tree.root)), time.monotonic() + deadline)
    if answer is not None and answer.code == 0:
        plain = json.loads(answer.text)
        devices = tuple(Device(**with_tuples(device)) for device in plain["devices"])
        return ProbeResult(plain["probe"], devices, plain["error"], tuple(plain["notes"]))
    hung = f"NVML did not answer within {deadline:g} s: a GPU hangs, or has fallen off the bus"
    failure = hung if answer is None else f"NVML's process ended with {answer.code}: {answer.last}"
    return nvidia.without_nvml(tree, pci, failure, [failure])


def main() -> None:
    """In the child."""
    tree = Tree(sys.argv[1])
    result = nvidia.probe(tree, read_pci(tree))
    json.dump(asdict(result) | {"notes": [*result.notes, *tree.problems]}, sys.stdout)
