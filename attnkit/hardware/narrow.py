"""The visible-device variables that leave a process some of the devices: the inverse of `attnkit.hardware.visible`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attnkit.errors import UsageError
from attnkit.hardware.device import MIG_SLICE, Device
from attnkit.hardware.visible import apply, tiles_of

_HIP = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


def narrow(devices: Sequence[Device], chosen: Sequence[Device], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a process must be started with, beside those of `environment`, to see `chosen` alone.

    Args:
        devices: all of the machine, as `apply` marked them for `environment`.
        chosen: some of them, of one vendor, all visible.
        environment: what the process would be started with.

    Returns:
        Nothing where it sees exactly these already, and for CPUs and TPUs, which one process has whole.

    Raises:
        UsageError: no variable says so (read again by the runtime's rules, it chooses others).
    """
    vendor = chosen[0].vendor
    by_vendor: dict[str, Callable[[list[Device], Sequence[Device], Mapping[str, str]], dict[str, str]]] = {
        "nvidia": _cuda,
        "amd": _hip,
        "intel": _level_zero,
    }
    wanted = [device.index for device in chosen]
    if vendor not in by_vendor or wanted == _seen(devices, vendor, environment):
        return {}
    usable = [device for device in devices if device.vendor == vendor and device.usable]
    variables = by_vendor[vendor](usable, chosen, environment)
    if _seen(devices, vendor, {**environment, **variables}) != wanted:
        labels = ", ".join(device.label for device in chosen)
        raise UsageError(
            f"no variable makes a process see {labels} alone here: choose the devices before attnkit is started "
            "(CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES, ZE_AFFINITY_MASK)"
        )
    return variables


def _seen(devices: Sequence[Device], vendor: str, environment: Mapping[str, str]) -> list[int] | None:
    """Indices of the vendor's devices that a process sees, in its order; None where that is not known."""
    seen = [device for device in apply(devices, environment).devices if device.vendor == vendor and device.usable]
    visible = [device for device in seen if device.visible]
    if len(visible) > 1 and any(device.ordinal is None for device in visible):
        return None
    return [device.index for device in sorted(visible, key=lambda device: device.ordinal or 0)]


def _cuda(usable: list[Device], chosen: Sequence[Device], environment: Mapping[str, str]) -> dict[str, str]:
    """By index where CUDA's numbering is known, since engines read indices best; else by UUID, else by PCI address."""
    ordinals = [device.ordinal for device in chosen if device.ordinal is not None]
    if len(ordinals) == len(chosen) and not any(MIG_SLICE in device.features for device in usable):
        return {"CUDA_VISIBLE_DEVICES": _entries(environment.get("CUDA_VISIBLE_DEVICES"), ordinals)}
    uuids = [device.uuid for device in chosen if device.uuid]
    if len(uuids) == len(chosen):
        return {"CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    by_address = sorted(usable, key=lambda device: device.pci_address or "")
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(str(by_address.index(device)) for device in chosen),
    }


def _hip(usable: list[Device], chosen: Sequence[Device], environment: Mapping[str, str]) -> dict[str, str]:
    name = next((name for name in _HIP if name in environment), _HIP[0])
    ordinals = [device.ordinal for device in chosen if device.ordinal is not None]
    return {name: _entries(environment.get(name), ordinals)}


def _level_zero(usable: list[Device], chosen: Sequence[Device], environment: Mapping[str, str]) -> dict[str, str]:
    flat = environment.get("ZE_FLAT_DEVICE_HIERARCHY", "FLAT").upper() != "COMPOSITE"
    tiles = [device for device in usable for _ in range(tiles_of(device) if flat else 1)]
    before = {entry.strip().partition(".")[0] for entry in environment.get("ZE_AFFINITY_MASK", "").split(",")} - {""}
    kept = [str(n) for n, device in enumerate(tiles) if device in chosen and (not before or str(n) in before)]
    # SYCL's selector counts what the mask leaves: the indices in it would mean others.
    selector = {"ONEAPI_DEVICE_SELECTOR": "level_zero:gpu"} if environment.get("ONEAPI_DEVICE_SELECTOR") else {}
    return {"ZE_AFFINITY_MASK": ",".join(kept), **selector}


def _entries(value: str | None, ordinals: Sequence[int]) -> str:
    """Those entries of a variable's list that name these devices; their own numbers where it is not set."""
    if value is None:
        return ",".join(map(str, ordinals))
    entries = list(dict.fromkeys(entry.strip() for entry in value.split(",")))
    return ",".join(entries[ordinal] for ordinal in ordinals if ordinal < len(entries))
