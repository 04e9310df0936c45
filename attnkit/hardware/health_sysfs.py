"""The state of a device from the kernel's files: amdgpu's, xe's and i915's, PCI's of every card, and the CPU's."""

from __future__ import annotations

import re
from collections.abc import Callable

from attnkit.hardware.device import Device
from attnkit.hardware.health import Health, Readings
from attnkit.hardware.tree import Tree, parse_int

_GENERATIONS = {"2.5": 1, "5.0": 2, "5": 2, "8.0": 3, "8": 3, "16.0": 4, "16": 4, "32.0": 5, "32": 5, "64.0": 6, "64": 6}
"""PCIe generation by the transfer rate of a lane, GT/s."""


def sysfs_health(tree: Tree, device: Device, why: str = "") -> Health:
    """Read what the driver and PCI show of a card.

    Args:
        why: why its vendor's library was not asked, where it could have been.
    """
    readings = Readings("sysfs")
    base = f"sys/bus/pci/devices/{device.pci_address}"
    readings.take("driver", lambda: device.driver)
    readings.take("numa_node", lambda: device.numa_node)
    for field, file in (("pcie_width", "current_link_width"), ("pcie_width_max", "max_link_width")):
        _integer(readings, tree, field, f"{base}/{file}")
    for field, file in (("pcie_generation", "current_link_speed"), ("pcie_generation_max", "max_link_speed")):
        _text(readings, tree, field, f"{base}/{file}", lambda text: _GENERATIONS.get(text.split()[0]))
    default = why or "the kernel's files do not say"
    if device.vendor == "amd":
        _amd(readings, tree, base, device)
    elif device.vendor == "intel":
        _intel(readings, tree, base)
    elif device.vendor == "nvidia" and not why:
        default = "only NVML says, and a recorded tree has none"
    if device.vendor in ("amd", "intel"):
        _hwmon(readings, tree, base)
    return readings.health(recorded=not tree.live, default=default)


def cpu_health(tree: Tree) -> Health:
    """Main memory in use, and the memory errors that EDAC counts."""
    readings = Readings("sysfs")
    memory = {name: parse_int(text) for name, text in tree.fields("proc/meminfo", ":").items()}
    total, free = memory.get("MemTotal"), memory.get("MemAvailable")
    readings.take("memory_total_bytes", lambda: None if total is None else total * 1024)
    readings.take("memory_used_bytes", lambda: None if total is None or free is None else (total - free) * 1024)
    controllers = [name for name in tree.names("sys/devices/system/edac/mc") if re.fullmatch(r"mc\d+", name)]
    for field, file in (("ecc_corrected_volatile", "ce_count"), ("ecc_uncorrected_volatile", "ue_count")):
        counts = [tree.integer(f"sys/devices/system/edac/mc/{name}/{file}") for name in controllers]
        readings.take(field, lambda counts=counts: sum(counts) if counts and None not in counts else None)  # type: ignore[misc]
        if not controllers:
            readings.reasons[field] = "no EDAC driver counts memory errors here"
    return readings.health(recorded=not tree.live, default="not read of a CPU")


def _amd(readings: Readings, tree: Tree, base: str, device: Device) -> None:
    _integer(readings, tree, "memory_used_bytes", f"{base}/mem_info_vram_used")
    _integer(readings, tree, "memory_total_bytes", f"{base}/mem_info_vram_total")
    counted = [tree.fields(f"{base}/ras/{name}", ":") for name in tree.names(f"{base}/ras") if name.endswith("_err_count")]
    for field, key in (("ecc_corrected_volatile", "ce"), ("ecc_uncorrected_volatile", "ue")):
        counts = [parse_int(block.get(key)) for block in counted]
        if counts and None not in counts:
            readings.values[field] = sum(count or 0 for count in counts)
        else:
            readings.reasons[field] = f"{base}/ras has no counts"
    for kind in ("corrected", "uncorrected"):
        readings.reasons[f"ecc_{kind}_aggregate"] = "amdgpu counts errors since it was loaded only"
    readings.reasons["throttle_reasons"] = "only in gpu_metrics, a binary table that is not read"
    for prefix, file in (("clock", "pp_dpm_sclk"), ("memory_clock", "pp_dpm_mclk")):
        _text(readings, tree, f"{prefix}_mhz", f"{base}/{file}", lambda text: _level(text, current=True))
        _text(readings, tree, f"{prefix}_max_mhz", f"{base}/{file}", lambda text: _level(text, current=False))
    xgmi = [link for link in device.links if link.startswith("xGMI")]
    if xgmi:
        readings.values["links"] = readings.values["links_max"] = len(xgmi[0].split(","))
    for field in ("links", "links_max", "link_mb_per_s"):
        readings.reasons[field] = "KFD shows no xGMI link" if not xgmi else "KFD does not say"


def _level(text: str, *, current: bool) -> int | None:
    """MHz of the level that is marked, or of the highest, of amdgpu's "1: 2100Mhz *" lines."""
    levels = re.findall(r"(\d+)\s*Mhz[ \t]*(\*?)", text, re.IGNORECASE)
    found = [int(mhz) for mhz, mark in levels if mark or not current]
    return max(found, default=None)


def _intel(readings: Readings, tree: Tree, base: str) -> None:
    for field in ("ecc_corrected_volatile", "ecc_uncorrected_volatile", "ecc_corrected_aggregate", "ecc_uncorrected_aggregate"):
        readings.reasons[field] = "Intel's drivers show no error counts in sysfs"
    readings.reasons["memory_used_bytes"] = "Intel's drivers show the memory in use in debugfs alone"
    cards = [f"{base}/drm/{name}" for name in tree.names(f"{base}/drm") if name.startswith("card")]
    card = cards[0] if cards else f"{base}/drm/card0"
    xe = f"{base}/tile0/gt0/freq0"
    new = tree.exists(xe)
    _integer(readings, tree, "clock_mhz", f"{xe}/act_freq" if new else f"{card}/gt_act_freq_mhz")
    _integer(readings, tree, "clock_max_mhz", f"{xe}/rp0_freq" if new else f"{card}/gt_RP0_freq_mhz")
    folder, start = (f"{xe}/throttle", "reason_") if new else (f"{card}/gt/gt0", "throttle_reason_")
    names = [name for name in tree.names(folder) if name.startswith(start) and not name.endswith("status")]
    readings.take(
        "throttle_reasons",
        lambda: tuple(n.removeprefix(start) for n in names if tree.integer(f"{folder}/{n}")) if names else None,
    )


def _hwmon(readings: Readings, tree: Tree, base: str) -> None:
    names = tree.names(f"{base}/hwmon")
    folder = f"{base}/hwmon/{names[0] if names else 'hwmon0'}"
    files = {
        "temperature_c": ("temp1_input", "temp2_input"),
        "power_w": ("power1_average", "power1_input"),
        "power_limit_w": ("power1_cap", "power1_max"),
    }
    for field, candidates in files.items():
        unit = 1e3 if field == "temperature_c" else 1e6
        file = next((file for file in candidates if tree.exists(f"{folder}/{file}")), candidates[0])
        _text(readings, tree, field, f"{folder}/{file}", lambda text, unit=unit: int(text) / unit)  # type: ignore[misc]


def _integer(readings: Readings, tree: Tree, field: str, path: str) -> None:
    _text(readings, tree, field, path, parse_int)


def _text(readings: Readings, tree: Tree, field: str, path: str, parse: Callable[[str], object]) -> None:
    """Field `field` as `parse` reads the file's text; the path is part of the reason where it cannot."""
    text = tree.text(path)
    if text is None:
        readings.reasons[field] = f"there is no readable {path}"
        return
    readings.reasons[field] = f"{path} holds {text[:40]!r}"
    readings.take(field, lambda: parse(text))
