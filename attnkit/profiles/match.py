"""Which node type a machine is: what its devices are, whether they can be used, and whether they are alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from attnkit.errors import UsageError
from attnkit.hardware.device import HIDDEN, INTEGRATED, MIG, MIG_SLICE, Detection, Device
from attnkit.hardware.visible import CHOOSE
from attnkit.profiles.files import load_node, read_nodes
from attnkit.profiles.schema import Match
from attnkit.wording import memory_text

_NO_NODE_TYPE = (
    ("nvidia", "sm_[356]?", "GPUs before Volta are too old for the kernels of every image"),
    ("nvidia", "sm_7[02]", "no image has kernels for Volta"),
    ("amd", "gfx90[0-8c]", "ROCm's attention kernels are made for gfx90a and newer"),
    ("amd", "gfx10*", "ROCm's attention kernels are made for gfx11 and gfx12, not for RDNA 1 and 2"),
    ("google", "tpu-*", "the TPU image is made for v5e and v6e"),
    ("*", "unknown", "what it is, attnkit's tables do not say"),
)
"""Vendor and architecture pattern: why no node type is shipped for it."""


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
        node: its name; None where no profile describes what is there, where it cannot be used, or where it is mixed.
        device: the device it was matched on.
        why: one sentence.
        candidates: every node type with this vendor's devices, the most specific match first.
        mixed: True where different devices could each serve, and nothing says which are to.
    """

    node: str | None
    device: Device
    why: str
    candidates: tuple[MatchAttempt, ...] = ()
    mixed: bool = False


def match_node(detection: Detection, vendors: Collection[str] | None = None) -> NodeMatch:
    """The most specific node type for a machine: PCI id before name before architecture, accelerators before the CPU.

    An accelerator that no profile describes, or that cannot be used, is a clear no: nothing is guessed, and its CPU does not
    serve in its place. Devices that a variable hides (CUDA_VISIBLE_DEVICES …) do not count. Among different devices nothing is
    chosen; the variables choose, or the profiles, where they describe one kind alone or prefer one over the others.

    Args:
        detection: what is in the machine.
        vendors: look at these vendors' devices alone, where there are any (an image is made for some).

    Raises:
        UsageError: nothing at all was detected.
    """
    if not detection.devices:
        raise UsageError(
            f"no device was detected under {detection.root}, not even a CPU: give a folder with a machine's sys and proc"
        )
    devices = [d for d in detection.devices if vendors is None or d.vendor in vendors] or list(detection.devices)
    accelerators = [d for d in devices if d.kind != "cpu" and INTEGRATED not in d.features]
    if not accelerators:
        cpus = [d for d in devices if d.kind == "cpu"]
        return _match((cpus or devices)[0])
    usable = serving(accelerators)
    broken = [d for d in accelerators if not d.usable]
    if not usable:
        return _refused(
            accelerators[0], f"{_problems(broken)}; the CPU does not serve in its place unless --node cpu asks for it"
        )
    if detection.ambiguous:
        return NodeMatch(None, usable[0], detection.ambiguous, mixed=True)
    visible = sorted((d for d in usable if d.visible), key=in_order)
    if not visible:
        return _refused(hidden(detection, usable[0], usable), None)
    found = _one_kind(detection, list(zip(visible, _matches(visible), strict=True)))
    if broken:
        return NodeMatch(
            found.node, found.device, f"{found.why}; not usable: {_problems(broken)}", found.candidates, found.mixed
        )
    return found


def in_order(device: Device) -> tuple[bool, int]:
    """A key that sorts devices as a process numbers them."""
    return device.ordinal is None, device.ordinal or 0


def serving(devices: Iterable[Device]) -> list[Device]:
    """The usable accelerators, a GPU in MIG mode replaced by its slices."""
    devices = list(devices)
    sliced = {d.pci_address for d in devices if MIG_SLICE in d.features}
    return [d for d in devices if d.usable and not (MIG in d.features and d.pci_address in sliced)]


def together(detection: Detection, device: Device, given: Match | None = None) -> tuple[Device, ...]:
    """The devices that serve along with `device`, itself among them, as a process numbers them: visible, usable, and of its
    node type (by detection, or as specifically of the node type `given`).

    A CPU is one device; TPUs are one too, whose chips one process drives.
    """
    if device.kind != "gpu":
        return (device,)
    kind = (device.vendor, device.arch, INTEGRATED in device.features)
    able = [d for d in serving(detection.devices) if d.visible and (d.vendor, d.arch, INTEGRATED in d.features) == kind]
    if given is not None:
        alike = [d for d in able if specificity(given, d) == specificity(given, device)]
    else:
        node = _match(device).node
        alike = [d for d, match in zip(able, _matches(able), strict=True) if match.node == node]
    return tuple(sorted(alike, key=in_order)) or (device,)


def hidden(detection: Detection, device: Device, devices: Sequence[Device] = ()) -> Device:
    """The device with the sentence that says which variable hides it (and `devices`), as one that is not usable."""
    of = devices or (device,)
    problem = f"{_count(of)} hidden by {_variables(detection, of)}; change it, or name --node cpu to serve from the CPU"
    return replace(device, features=(*device.features, HIDDEN), problem=problem)


def specificity(match: Match, device: Device) -> int:
    """How specifically `match` fits: 0 not at all, 1 architecture, 2 name, 3 PCI id."""
    return _weigh(match, device)[0] if match.vendor == device.vendor else 0


def _one_kind(detection: Detection, matches: list[tuple[Device, NodeMatch]]) -> NodeMatch:
    """The match of the one kind of devices that is to serve, or a refusal that says how to choose."""
    kinds: dict[tuple[str, str, str | None], list[tuple[Device, NodeMatch]]] = {}
    for device, match in matches:
        kinds.setdefault((device.vendor, device.arch, match.node), []).append((device, match))
    named = {vendor for vendor, _, _ in kinds if _chosen_by_variable(detection, vendor)}
    if named and len({vendor for vendor, _, _ in kinds}) > len(named):
        kinds = {kind: group for kind, group in kinds.items() if kind[0] in named}
    described = {kind: group for kind, group in kinds.items() if kind[2] is not None}
    for kind, group in described.items():
        others = {node for _, _, node in described} - {kind[2]}
        if others and others <= set(load_node(str(kind[2])).match.preferred_over):
            described = {kind: group}
            break
    if len(described) == 1 or len(kinds) == 1:
        group = next(iter((described or kinds).values()))
        left = [device for device, match in matches if (device, match) not in group]
        chosen = group[0][1]
        of_it = [device for device, _ in group]
        why = chosen.why + (f"; different ones of this type are here: {_alike(of_it)}" if _alike(of_it) else "")
        why += f"; left out: {_count(left)}" if left and chosen.node is not None else ""
        return replace(chosen, why=why)
    listed = ", ".join(
        f"{_count(device for device, _ in group)} ({node or f'no node type, {arch}'})"
        for (_, arch, node), group in kinds.items()
    )
    first, match = matches[0]
    variables = " or ".join(dict.fromkeys(CHOOSE[vendor][0] for vendor, _, _ in kinds if vendor in CHOOSE))
    nodes = " or ".join(dict.fromkeys(f"--node {node}" for _, _, node in kinds if node))
    advice = f"choose the devices ({variables}{', by UUID' if 'CUDA' in variables else ''})" + (
        f" or the node type ({nodes})" if nodes else ""
    )
    return NodeMatch(
        None,
        first,
        f"different devices are here: {listed}; nothing says which are to serve: {advice}",
        match.candidates,
        mixed=True,
    )


def _chosen_by_variable(detection: Detection, vendor: str) -> bool:
    both = {"nvidia", "amd"} <= {device.vendor for device in detection.devices}
    return any(
        name in detection.visibility
        for name in CHOOSE.get(vendor, ())
        if not (both and vendor == "amd" and name.startswith("CUDA"))
    )


def _variables(detection: Detection, devices: Iterable[Device]) -> str:
    names = dict.fromkeys(name for d in devices for name in CHOOSE.get(d.vendor, ()) if name in detection.visibility)
    return " and ".join(f"{name}={detection.visibility[name]!r}" for name in names)


def _refused(device: Device, why: str | None) -> NodeMatch:
    return NodeMatch(None, device, why or device.obstacle or "", _match(device).candidates)


def _problems(devices: list[Device]) -> str:
    """What is wrong with devices: the first one's problem, and how many more there are of each kind."""
    first = devices[0]
    others = _count(devices[1:])
    return f"{first.name} ({first.arch}): {first.obstacle}" + (f"; likewise {others}" if others else "")


def _count(devices: Iterable[Device]) -> str:
    """2 × NVIDIA H100, Tesla T4."""
    counted = Counter(device.name for device in devices)
    return ", ".join(f"{number} × {name}" if number > 1 else name for name, number in counted.items())


def _alike(devices: list[Device]) -> str:
    """Names and sizes of devices that are of one node type and yet not equal; '' where they are equal (or slices of a card)."""
    kinds = Counter((device.name, device.memory_bytes) for device in devices if device.part is None)
    if len(kinds) < 2:
        return ""
    return ", ".join(f"{n} × {name} {memory_text(size)}".rstrip() for (name, size), n in kinds.items())


def _matches(devices: list[Device]) -> list[NodeMatch]:
    """The match of each device; of equal ones that of the first, for its own device."""
    known: dict[tuple[object, ...], NodeMatch] = {}
    found = []
    for device in devices:
        key = (device.vendor, device.name, device.arch, device.pci_id, device.features)
        if key not in known:
            known[key] = _match(device)
        found.append(replace(known[key], device=device))
    return found


def _match(device: Device) -> NodeMatch:
    weighed = sorted(
        (
            (*_weigh(p.match, device), len(p.match.any_feature) or 99, p.name)
            for p in read_nodes()[0]
            if p.match.vendor == device.vendor
        ),
        key=lambda w: (-w[0], w[2], w[3]),
    )
    candidates = tuple(MatchAttempt(name, score > 0, why) for score, why, _, name in weighed)
    found = f"{device.name} ({device.arch}{', ' + device.pci_id if device.pci_id else ''})"
    best = candidates[0] if candidates and candidates[0].fits else None
    if best is None:
        said = next((why for v, a, why in _NO_NODE_TYPE if fnmatchcase(device.vendor, v) and fnmatchcase(device.arch, a)), None)
        because = f" ({said})" if said else ""
        advice = "add nodes/NAME.yaml for it to a folder in ATTNKIT_PROFILES, or give a node type (--node)"
        return NodeMatch(None, device, f"no node type describes {found}{because}; {advice}", candidates)
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
