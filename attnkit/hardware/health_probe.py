"""Asks every device how it is, with a deadline.

A vendor's library hangs where a GPU has fallen off the bus, so each accelerator of this machine is asked in a process of its
own (`python -m attnkit.hardware.health_probe ROOT`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attnkit.hardware.device import Device
from attnkit.hardware.health import Health, unread
from attnkit.hardware.health_nvml import nvml_health
from attnkit.hardware.health_sysfs import cpu_health, sysfs_health
from attnkit.hardware.tree import Tree

DEADLINE_SECONDS = 20.0
_KILLED_SECONDS = 1.0
"""A process that hangs in the driver cannot be killed; nobody waits for it longer than this."""


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
    children = [_ask(device, root) if tree.live and device.kind != "cpu" else None for device in devices]
    return [
        read_health(device, tree) if child is None else _answer(child, ends, deadline)
        for device, child in zip(devices, children, strict=True)
    ]


def _ask(device: Device, root: Path | str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "attnkit.hardware.health_probe", str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    with suppress(BrokenPipeError), child.stdin:
        child.stdin.write(json.dumps(asdict(device)))
    child.stdin = None  # communicate would write to it
    return child


def _answer(child: subprocess.Popen[str], ends: float, deadline: float) -> Health:
    left = None if child.poll() is not None else max(0.0, ends - time.monotonic())
    try:
        out, err = child.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(_KILLED_SECONDS)
        return unread(f"the driver did not answer within {deadline:g} s: the device hangs, or has fallen off the bus")
    if child.returncode != 0:
        last = err.strip().splitlines()[-1:] or ["no message"]
        return unread(f"the probe ended with {child.returncode}: {last[0]}")
    return Health(**_with_tuples(json.loads(out)))


def _with_tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}


def main() -> None:
    """In the child: a device on stdin, its health on stdout."""
    device = Device(**_with_tuples(json.load(sys.stdin)))
    json.dump(asdict(read_health(device, Tree(sys.argv[1]))), sys.stdout)


if __name__ == "__main__":
    main()
