"""Asks every device how it is, with a deadline.

A vendor's library hangs where a GPU has fallen off the bus, so each accelerator of this machine is asked in a process of its
own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from attnkit.hardware.child import DEADLINE_SECONDS, answer_of, start_child, with_tuples
from attnkit.hardware.device import Device
from attnkit.hardware.health import Health, unread
from attnkit.hardware.health_nvml import nvml_health
from attnkit.hardware.health_sysfs import cpu_health, sysfs_health
from attnkit.hardware.tree import Tree


def read_health(device: Device, tree: Tree) -> Health:
    """Ask one device, in this process."""
    if device.kind == "cpu":
        return cpu_health(tree)
    if device.vendor == "nvidia" and tree.live:
        try:
            import pynvml
        except ImportError:
            return sysfs_health(tree, device, "nvidia-ml-py is not installed")
        try:
            return nvml_health(pynvml, device)
        except Exception as error:  # NVML raises its own classes
            return sysfs_health(tree, device, f"NVML says: {error}")
    return sysfs_health(tree, device)


def read_all(devices: Sequence[Device], root: Path | str = "/", *, deadline: float = DEADLINE_SECONDS) -> list[Health]:
    """Ask every device: accelerators of this machine each in a process of its own, all at once.

    Args:
        devices: what to ask.
        root: "/" for this machine, or a recorded tree.
        deadline: seconds for all of them; a device that has not answered by then is unread, and says so.
    """
    tree = Tree(root)
    ends = time.monotonic() + deadline
    children = [
        start_child("attnkit.hardware.health_probe", str(root), json.dumps(asdict(device)))
        if tree.live and device.kind != "cpu"
        else None
        for device in devices
    ]
    return [
        read_health(device, tree) if child is None else _answer(child, ends, deadline)
        for device, child in zip(devices, children, strict=True)
    ]


def _answer(child: subprocess.Popen[str], ends: float, deadline: float) -> Health:
    answer = answer_of(child, ends)
    if answer is None:
        return unread(f"the driver did not answer within {deadline:g} s: the device hangs, or has fallen off the bus")
    if answer.code != 0:
        return unread(f"the probe ended with {answer.code}: {answer.last}")
    return Health(**with_tuples(json.loads(answer.text)))


def main() -> None:
    """In the child: a device on stdin, its health on stdout."""
    device = Device(**with_tuples(json.load(sys.stdin)))
    json.dump(asdict(read_health(device, Tree(sys.argv[1]))), sys.stdout)
