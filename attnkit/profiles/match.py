"""The node type that describes a set of devices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from attnkit.errors import UsageError
from attnkit.hardware.device import Detection, Device
from attnkit.profiles.files import all_nodes
from attnkit.profiles.schema import Match


@dataclass(frozen=True)
class MatchAttempt:
    """A node type that was compared with a device, and the outcome."""

    node: str
    fits: bool
    why: str


@dataclass(frozen=True)
class NodeMatch:
    """The node type of a machine.

    Args:
        node: its name; None where no profile describes the devices.
        device: the device it was matched on.
        why: one sentence.
        candidates: every node type with this vendor's devices, the most specific match first.
    """

    node: str | None
    device: Device
    why: str
    candidates: tuple[MatchAttempt, ...] = ()


def match_node(detection: Detection) -> NodeMatch:
    """The most specific node type for a machine: PCI id before name before architecture, accelerators before the CPU.

    An accelerator that no profile describes is a clear no: nothing is guessed, and its CPU does not serve in its place.

    Raises:
        UsageError: nothing at all was detected.
    """
    if not detection.devices:
        raise UsageError(
            f"no device was detected under {detection.root}, not even a CPU: give a folder with a machine's sys and proc"
        )
    accelerators = [d for d in detection.devices if d.kind != "cpu"]
    results = [_match(device) for device in accelerators or detection.devices]
    return next((r for r in results if r.node is not None), results[0])


def _match(device: Device) -> NodeMatch:
    weighed = sorted(
        ((*_weigh(profile.match, device), profile.name) for profile in all_nodes() if profile.match.vendor == device.vendor),
        key=lambda w: (-w[0], w[2]),
    )
    candidates = tuple(MatchAttempt(name, score > 0, why) for score, why, name in weighed)
    found = f"{device.name} ({device.arch}{', ' + device.pci_id if device.pci_id else ''})"
    best = candidates[0] if candidates and candidates[0].fits else None
    if best is None:
        advice = "add nodes/NAME.yaml for it to a folder in ATTNKIT_PROFILES, or give a node type (--node)"
        return NodeMatch(None, device, f"no node type describes {found}; {advice}", candidates)
    return NodeMatch(best.node, device, f"{found}: {best.why}", candidates)


def _weigh(match: Match, device: Device) -> tuple[int, str]:
    """How specifically `match` fits (0: not at all; 1 architecture, 2 name, 3 PCI id), and why."""
    if not any(fnmatchcase(device.arch, pattern) for pattern in match.arch):
        return 0, f"needs {' or '.join(match.arch)}"
    if match.any_feature and not set(match.any_feature) & set(device.features):
        return 0, f"needs {' or '.join(match.any_feature)}"
    if device.pci_id and device.pci_id in match.pci_ids:
        return 3, f"PCI id {device.pci_id}"
    if match.name and re.search(match.name, device.name, re.IGNORECASE):
        return 2, f"name matches {match.name!r}"
    if match.pci_ids or match.name:
        return 0, "neither the PCI id nor the name matches"
    return 1, f"architecture {device.arch}"
