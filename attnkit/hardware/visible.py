"""Which devices a process sees that is started with the variables of this environment, and under which index.

Each vendor's runtime reads variables of its own, by rules of its own; here they are read the same way without any runtime.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from attnkit.hardware.cuda_order import cuda_order
from attnkit.hardware.device import MIG, MIG_SLICE, Device

VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"),
    *("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
    *("ZE_AFFINITY_MASK", "ZE_FLAT_DEVICE_HIERARCHY", "ONEAPI_DEVICE_SELECTOR"),
    *("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES"),
)
"""What is read of the environment."""

CHOOSE: dict[str, tuple[str, ...]] = {
    "nvidia": ("CUDA_VISIBLE_DEVICES",),
    "amd": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
    "intel": ("ONEAPI_DEVICE_SELECTOR", "ZE_AFFINITY_MASK"),
    "google": ("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES"),
}
"""Vendor to the variables that choose among its devices."""


@dataclass
class Visibility:
    """The devices with `visible` and `ordinal` set, and what is worth knowing about the variables.

    Args:
        devices: all devices, in their order.
        variables: those of VARIABLES that are set.
        notes: one sentence each.
        ambiguous: why it cannot be known which devices a variable names.
        both: True where NVIDIA's and AMD's GPUs are in one machine.
    """

    devices: tuple[Device, ...]
    variables: dict[str, str]
    both: bool = False
    notes: list[str] = field(default_factory=list)
    ambiguous: str | None = None


def apply(devices: Sequence[Device], environment: Mapping[str, str]) -> Visibility:
    """Mark which devices a process of this environment sees.

    Args:
        devices: as the probes found them.
        environment: the process's variables; only VARIABLES are read.
    """
    result = Visibility((), {name: environment[name] for name in VARIABLES if name in environment})
    by_vendor: dict[str, Callable[[list[Device], Visibility], list[Device] | None]] = {
        "nvidia": _cuda,
        "amd": _hip,
        "intel": _level_zero,
        "google": _tpu,
    }
    vendors = {device.vendor for device in devices}
    result.both = {"nvidia", "amd"} <= vendors
    if result.both and "CUDA_VISIBLE_DEVICES" in result.variables:
        result.notes.append("CUDA_VISIBLE_DEVICES is taken for the NVIDIA GPUs alone; HIP_VISIBLE_DEVICES chooses the AMD ones")
    seen: dict[tuple[str, int], int] = {}
    unknown: set[str] = set()
    for vendor, order in by_vendor.items():
        usable = [device for device in devices if device.vendor == vendor and device.usable]
        chosen = order(usable, result) if usable else []
        if chosen is None:
            unknown.add(vendor)
        else:
            for ordinal, device in enumerate(chosen):
                seen.setdefault((vendor, device.index), ordinal)
    result.devices = tuple(_marked(device, by_vendor, seen, unknown) for device in devices)
    if "NVIDIA_VISIBLE_DEVICES" in result.variables and "nvidia" in vendors:
        value = result.variables["NVIDIA_VISIBLE_DEVICES"]
        result.notes.append(
            f"NVIDIA_VISIBLE_DEVICES={value} chooses what the container runtime passes in, not what a process sees"
        )
    return result


def _marked(device: Device, vendors: Mapping[str, object], seen: Mapping[tuple[str, int], int], unknown: set[str]) -> Device:
    if device.vendor not in vendors or not device.usable or device.vendor in unknown:
        return device
    ordinal = seen.get((device.vendor, device.index))
    return replace(device, visible=ordinal is not None, ordinal=ordinal)


def _cuda(usable: list[Device], result: Visibility) -> list[Device] | None:
    """CUDA's rules: indices, or UUIDs and unique prefixes of them; the list ends at the first entry that is none; an entry
    twice hides everything; of the MIG instances a process gets one."""
    wholes = [device for device in usable if MIG_SLICE not in device.features]
    slices = [device for device in usable if MIG_SLICE in device.features]
    by_address = {device.pci_address: [s for s in slices if s.pci_address == device.pci_address] for device in wholes}
    order = result.variables.get("CUDA_DEVICE_ORDER")
    if order not in (None, "FASTEST_FIRST", "PCI_BUS_ID"):
        result.notes.append(f"CUDA_DEVICE_ORDER={order} is neither FASTEST_FIRST nor PCI_BUS_ID: CUDA takes FASTEST_FIRST")
    numbered = cuda_order(wholes, order)
    value = result.variables.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        if numbered is None:
            result.notes.append("the GPUs differ, so CUDA's own numbering (fastest first) is not known; PCI_BUS_ID settles it")
            return None
        return _one_instance([part for whole in numbered for part in by_address[whole.pci_address] or [whole]], result)
    entries = [entry.strip() for entry in value.split(",")]
    named = [entry for entry in entries if entry.startswith(("GPU-", "MIG-"))]
    if named and not any(device.uuid for device in usable):
        alike = len({(device.arch, device.name) for device in wholes}) == 1
        unknown = f"CUDA_VISIBLE_DEVICES={value} names devices by UUID, and no UUID is known here (that takes nvidia-ml-py)"
        if alike:
            result.notes.append(f"{unknown}; all of these GPUs are alike")
        else:
            result.ambiguous = f"{unknown}: name them by index, with CUDA_DEVICE_ORDER=PCI_BUS_ID"
        return None
    if numbered is None and not named and re.match(r"\d", entries[0]):
        names = ", ".join(dict.fromkeys(device.name for device in wholes))
        result.ambiguous = (
            f"CUDA_VISIBLE_DEVICES={value} names devices by CUDA's own numbering, fastest first, which is not known here for "
            f"different GPUs ({names}): set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name them by UUID (nvidia-smi -L)"
        )
        return None
    chosen: list[Device] = []
    for position, entry in enumerate(entries):
        found = _cuda_entry(entry, numbered or wholes, slices, by_address)
        if isinstance(found, str):
            if position > 0 or entry not in ("", "-1"):
                result.notes.append(f"CUDA_VISIBLE_DEVICES={value} ends at its entry {position + 1}: {found}")
            break
        if found in chosen:
            result.notes.append(f"CUDA_VISIBLE_DEVICES={value} names a device twice: CUDA then shows none")
            return []
        chosen.append(found)
    return _one_instance(chosen, result)


def _cuda_entry(
    entry: str, wholes: list[Device], slices: list[Device], by_address: Mapping[str | None, list[Device]]
) -> Device | str:
    """What one entry names, or why it names nothing."""
    if entry.startswith(("GPU-", "MIG-")):
        candidates = wholes if entry.startswith("GPU-") else slices
        fitting = [device for device in candidates if device.uuid and device.uuid.casefold().startswith(entry.casefold())]
        if len(fitting) != 1:
            return f"{entry!r} is the beginning of {len(fitting)} UUIDs, not of one"
        device = fitting[0]
    else:
        number = re.match(r"[+-]?\d+", entry)  # as strtoul reads it
        index = int(number[0]) if number else -1
        if not 0 <= index < len(wholes):
            return f"{entry!r} is no index below {len(wholes)}"
        device = wholes[index]
    parts = by_address.get(device.pci_address) or []
    return parts[0] if MIG in device.features and parts else device


def _one_instance(chosen: list[Device], result: Visibility) -> list[Device]:
    """What of `chosen` a CUDA process gets: of the MIG instances the first alone."""
    first = next((device for device in chosen if MIG_SLICE in device.features), None)
    if first is None:
        return chosen
    kept = [device for device in chosen if MIG_SLICE not in device.features or device is first]
    if len(kept) < len(chosen):
        result.notes.append(
            f"a CUDA process sees one MIG instance, the first ({first.part}); CUDA_VISIBLE_DEVICES=MIG-… names another"
        )
    return kept


def _hip(usable: list[Device], result: Visibility) -> list[Device]:
    """ROCm's rules: ROCR_VISIBLE_DEVICES chooses first, HIP_VISIBLE_DEVICES (else CUDA_VISIBLE_DEVICES, else
    GPU_DEVICE_ORDINAL) among what that leaves; indices or UUIDs; a list ends at the first entry that is none."""
    variables = result.variables
    chosen = usable
    if "ROCR_VISIBLE_DEVICES" in variables:
        chosen = _listed("ROCR_VISIBLE_DEVICES", variables["ROCR_VISIBLE_DEVICES"], chosen, result)
    names = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
    taken = {"CUDA_VISIBLE_DEVICES"} if result.both else set()
    name = next((name for name in names if name in variables and name not in taken), None)
    return chosen if name is None else _listed(name, variables[name], chosen, result)


def _listed(name: str, value: str, devices: list[Device], result: Visibility) -> list[Device]:
    """The devices that a list of indices and UUIDs names, in its order, up to the first entry that names none."""
    chosen: list[Device] = []
    entries = [entry.strip() for entry in value.split(",")]
    for position, entry in enumerate(entries):
        if entry.upper().startswith("GPU-"):
            fitting = [device for device in devices if device.uuid and device.uuid.casefold() == entry.casefold()]
        else:
            fitting = [devices[int(entry)]] if entry.isascii() and entry.isdecimal() and int(entry) < len(devices) else []
        if not fitting:
            if position > 0 or entry not in ("", "-1"):
                result.notes.append(
                    f"{name}={value} ends at its entry {position + 1}: {entry!r} names none of {len(devices)} devices"
                )
            break
        if fitting[0] not in chosen:
            chosen.append(fitting[0])
    return chosen


_TILES = {"Max 1550": 2, "Max 1350": 2, "Max 1450": 2}


def _level_zero(usable: list[Device], result: Visibility) -> list[Device]:
    """Level Zero's rules: the mask keeps devices, or tiles of them, and leaves their order; SYCL's selector chooses after that.

    In the flat hierarchy, the default, every tile of a card is a device with an index of its own.
    """
    flat = result.variables.get("ZE_FLAT_DEVICE_HIERARCHY", "FLAT").upper() != "COMPOSITE"
    tiles = [device for device in usable for _ in range(tiles_of(device) if flat else 1)]
    kept = tiles
    mask = result.variables.get("ZE_AFFINITY_MASK")
    if mask:
        kept = _masked("ZE_AFFINITY_MASK", mask.split(","), tiles, result)
    selector = result.variables.get("ONEAPI_DEVICE_SELECTOR")
    if selector:
        kept = _selected(selector, kept, result)
    for device in dict.fromkeys(kept if flat else ()):
        if kept.count(device) < tiles_of(device):
            result.notes.append(
                f"{device.name} {device.index}: {kept.count(device)} of its {tiles_of(device)} tiles are visible"
            )
    return kept


def tiles_of(device: Device) -> int:
    """How many tiles an Intel card has, each a device of its own in the flat hierarchy."""
    return next((tiles for word, tiles in _TILES.items() if word in device.name), 1)


def _masked(name: str, entries: list[str], devices: list[Device], result: Visibility) -> list[Device]:
    """Devices by index ("1") or by a tile of them ("1.0"), in the driver's order."""
    wanted = set()
    for entry in entries:
        number = re.fullmatch(r"\s*(\d+)(?:\.(?:\d+|\*))*\s*", entry)
        if number is None or int(number[1]) >= len(devices):
            result.notes.append(f"{name}: {entry!r} is no index below {len(devices)}: it names nothing")
        else:
            wanted.add(int(number[1]))
    return [device for index, device in enumerate(devices) if index in wanted]


def _selected(selector: str, devices: list[Device], result: Visibility) -> list[Device]:
    """ONEAPI_DEVICE_SELECTOR: `backend:devices` terms with semicolons between; a term with ! takes away."""
    kept: list[Device] = []
    terms = [term.strip() for term in selector.split(";") if term.strip()]
    taking = [term for term in terms if not term.startswith("!")]
    for term in taking or ["*:*"]:
        kept += [device for device in _term(term, devices, result) if device not in kept]
    for term in terms:
        if term.startswith("!"):
            gone = _term(term[1:], devices, result)
            kept = [device for device in kept if device not in gone]
    return [device for device in devices if device in kept]


def _term(term: str, devices: list[Device], result: Visibility) -> list[Device]:
    backend, _, chosen = term.lower().partition(":")
    if backend not in ("level_zero", "*"):
        return []  # torch's xpu devices are Level Zero's
    if set(chosen.split(",")) & {"*", "gpu", ""}:
        return devices
    numbers = [entry for entry in chosen.split(",") if entry not in ("cpu", "fpga")]
    return _masked("ONEAPI_DEVICE_SELECTOR", numbers, devices, result)


def _tpu(usable: list[Device], result: Visibility) -> list[Device]:
    """libtpu's rule: a list of chip numbers; the older name counts where the newer is not set."""
    name = next((name for name in CHOOSE["google"] if result.variables.get(name)), None)
    return usable if name is None else _listed(name, result.variables[name], usable, result)
