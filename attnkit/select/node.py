"""Device and node profile: where attention is to run."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from attnkit.backends.registry import plugin_findings
from attnkit.errors import UsageError, did_you_mean
from attnkit.hardware import detect
from attnkit.hardware.archs import named, pretend
from attnkit.hardware.device import Detection, Device, ProbeResult
from attnkit.jsonio import to_plain
from attnkit.profiles.files import all_nodes, family_names, load_node, node_names, read_nodes
from attnkit.profiles.match import NodeMatch, hidden, in_order, match_node, serving, specificity, together
from attnkit.profiles.schema import NodeProfile

PLATFORM_VARIABLE = "ATTNKIT_PLATFORM"
"""What an image was built for; set in every image, empty elsewhere."""


@dataclass(frozen=True)
class Machine:
    """A machine as found, and the node type that matches it."""

    detection: Detection
    match: NodeMatch

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found: dict[str, Any] = to_plain(self.detection)
        return {
            "node_type": self.match.node,
            "why": self.match.why,
            "mixed": self.match.mixed,
            "candidates": to_plain(self.match.candidates),
        } | found


@dataclass(frozen=True)
class Node:
    """The machine, real or asked about, that attention is to run on.

    Args:
        device: the device selection looks at.
        profile: the node profile, None where none matches.
        source: "detected" (matched by what is in the machine), "given" (--node) or "device" (--device).
        why: one sentence on how the profile was found.
        detection: what is in this machine, None where another is asked about.
        here: True where the device is in this machine.
        devices: what serves: `device` and those of its kind; empty where another box is asked about.
    """

    device: Device
    profile: NodeProfile | None
    source: str
    why: str
    detection: Detection | None
    here: bool
    devices: tuple[Device, ...] = ()


def inspect_machine(root: Path | str = "/") -> Machine:
    """What is in the machine whose sys and proc lie under `root`.

    In an image (`ATTNKIT_PLATFORM`) the node type is that of the devices that the image is made for, where there are any.
    Backend plugins that are not used, and profiles that cannot be read, are errors among the probes.
    """
    detection = detect(root)
    unused = (ProbeResult("backend-plugins", error=str(finding)) for finding in plugin_findings())
    profiles, problems = read_nodes()
    unread = (ProbeResult("profiles", error=str(problem)) for problem in problems)
    detection = replace(detection, probes=(*detection.probes, *unused, *unread))
    platform = os.environ.get(PLATFORM_VARIABLE)
    vendors = {profile.match.vendor for profile in profiles if profile.platform == platform} if platform else None
    return Machine(detection, match_node(detection, vendors or None))


def find_node(
    *, root: Path | str = "/", node: str | None = None, arch: str | None = None, machine: Machine | None = None
) -> Node:
    """Find the device and the profile.

    Args:
        root: an alternative root for /sys and /proc.
        node: a node type; None: what the machine is detected as.
        arch: an architecture (sm_75, gfx942 …): ask about such a device instead of this machine.
        machine: what is in the machine under `root`, where that is known already.

    Raises:
        UsageError: unknown node type or architecture, or the two do not fit each other; different devices of which nothing says
            which are to serve.
    """
    if arch is not None:
        return _elsewhere(_known(arch), node)
    machine = machine or inspect_machine(root)
    if node is None:
        all_nodes()  # the one that cannot be read may be this machine's
        if machine.match.mixed:
            raise UsageError(machine.match.why)
        profile = load_node(machine.match.node) if machine.match.node else None
        devices = together(machine.detection, machine.match.device)
        return Node(machine.match.device, profile, "detected", machine.match.why, machine.detection, True, devices)
    profile = load_node(node)
    device = _of_type(machine.detection, profile)
    if device is not None:
        why = f"node type {profile.name} was given"
        devices = together(machine.detection, device, profile.match)
        return Node(device, profile, "given", why, machine.detection, True, devices)
    pretended = replace(pretend(_first_arch(profile), profile.title), features=tuple(profile.match.any_feature[:1]))
    return Node(
        pretended, profile, "given", f"node type {profile.name} was given; this machine has no such device", None, here=False
    )


def fits(profile: NodeProfile, device: Device) -> bool:
    """True where the device has the vendor and an architecture that the profile names."""
    return profile.match.vendor == device.vendor and any(fnmatchcase(device.arch, pattern) for pattern in profile.match.arch)


def _of_type(detection: Detection, profile: NodeProfile) -> Device | None:
    """The device that a node type means: one that can serve and is seen, the best fit first; else the reason why none can."""
    fitting = sorted(
        (d for d in detection.devices if fits(profile, d)), key=lambda d: (-specificity(profile.match, d), in_order(d))
    )
    able = serving(fitting)
    seen = next((d for d in able if d.visible), None)
    return seen or (hidden(detection, able[0], able) if able else next(iter(fitting), None))


def _known(arch: str) -> str:
    """A known architecture: those that exist, and those that a node type of the user's own names."""
    try:
        return named(arch)
    except UsageError as unknown:
        if any(arch in profile.match.arch for profile in all_nodes()):
            return arch
        near = did_you_mean(arch, node_names())
        raise UsageError(f"{unknown}." + (f" A node type is given with --node.{near}" if near else "")) from None


def _elsewhere(arch: str, node: str | None) -> Node:
    if node is not None:
        profile = load_node(node)
        device = pretend(arch, profile.title)
        if not fits(profile, device):
            raise UsageError(f"node type {node} has {' or '.join(profile.match.arch)}, not {arch}")
        return Node(device, profile, "given", f"node type {node} and device {arch} were given", None, here=False)
    device = pretend(arch, arch)
    # A node type with a file of its own stands for its architecture before those of a family.
    fitting = sorted((profile for profile in all_nodes() if fits(profile, device)), key=lambda p: p.name in family_names())
    if not fitting:
        return Node(device, None, "device", f"no node type has a {arch} device", None, here=False)
    chosen, *rest = fitting
    others = f"; also {', '.join(p.name for p in rest)} (--node picks one)" if rest else ""
    return Node(
        replace(device, name=chosen.title),
        chosen,
        "device",
        f"the first node type with a {arch} device{others}",
        None,
        here=False,
    )


def _first_arch(profile: NodeProfile) -> str:
    return profile.match.arch[0]
