"""The state of an NVIDIA GPU through NVML (nvidia-ml-py)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from typing import Any

from attnkit.hardware.device import MIG_SLICE, Device
from attnkit.hardware.health import Health, Readings

_THROTTLE = {
    0x1: "gpu-idle",
    0x2: "applications-clocks-setting",
    0x4: "sw-power-cap",
    0x8: "hw-slowdown",
    0x10: "sync-boost",
    0x20: "sw-thermal-slowdown",
    0x40: "hw-thermal-slowdown",
    0x80: "hw-power-brake-slowdown",
    0x100: "display-clocks-setting",
}
"""nvmlClocksEventReasons by bit (nvml.h)."""

# Constants of nvml.h, which old versions of nvidia-ml-py do not all have.
_CORRECTED, _UNCORRECTED, _VOLATILE, _AGGREGATE = 0, 1, 0, 1
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_NVLINK_MB_PER_S = 90  # NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON
_FULL_SPEED_STATE = 0  # P0
_MOST_LINKS = 64


def nvml_health(nvml: Any, device: Device) -> Health:
    """Ask NVML about one GPU; of a MIG slice the memory is its own and the rest that of its card.

    Args:
        nvml: the module pynvml of nvidia-ml-py.
        device: as detection found it, with its PCI address.

    Raises:
        nvml.NVMLError: NVML does not work, or does not know this GPU.
    """
    nvml.nvmlInit()
    try:
        return _read(nvml, device)
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _read(nvml: Any, device: Device) -> Health:
    card = nvml.nvmlDeviceGetHandleByPciBusId((device.pci_address or "").encode())
    part = card
    if MIG_SLICE in device.features and device.uuid:
        part = nvml.nvmlDeviceGetHandleByUUID(device.uuid.encode())
    readings = Readings("nvml")

    def take(name: str, function: str, *arguments: Any, then: Callable[[Any], Any] = lambda value: value) -> None:
        readings.take(name, lambda: then(getattr(nvml, function)(card, *arguments)))

    for kind, error in (("corrected", _CORRECTED), ("uncorrected", _UNCORRECTED)):
        for span, counter in (("volatile", _VOLATILE), ("aggregate", _AGGREGATE)):
            take(f"ecc_{kind}_{span}", "nvmlDeviceGetTotalEccErrors", error, counter, then=int)
    event = "nvmlDeviceGetCurrentClocksEventReasons"
    throttle = event if hasattr(nvml, event) else "nvmlDeviceGetCurrentClocksThrottleReasons"
    take("throttle_reasons", throttle, then=_reasons)
    for prefix, clock in (("clock", _CLOCK_SM), ("memory_clock", _CLOCK_MEMORY)):
        take(f"{prefix}_mhz", "nvmlDeviceGetClockInfo", clock, then=int)
        take(f"{prefix}_max_mhz", "nvmlDeviceGetMaxClockInfo", clock, then=int)
    readings.take("memory_used_bytes", lambda: int(nvml.nvmlDeviceGetMemoryInfo(part).used))
    readings.take("memory_total_bytes", lambda: int(nvml.nvmlDeviceGetMemoryInfo(part).total))
    take("temperature_c", "nvmlDeviceGetTemperature", 0, then=float)
    take("power_w", "nvmlDeviceGetPowerUsage", then=_watts)
    take("power_limit_w", "nvmlDeviceGetEnforcedPowerLimit", then=_watts)
    readings.take("driver", lambda: device.driver)
    readings.take("numa_node", lambda: device.numa_node)
    states = list(takewhile(lambda state: state is not None, (_link_state(nvml, card, link) for link in range(_MOST_LINKS))))
    readings.take("links_max", lambda: len(states))
    readings.take("links", lambda: sum(map(bool, states)))
    readings.take("link_mb_per_s", lambda: _link_speed(nvml, card) if states else None)
    if not states:
        readings.reasons["link_mb_per_s"] = "it has no NVLink"
    take("pcie_generation", "nvmlDeviceGetCurrPcieLinkGeneration", then=int)
    take("pcie_width", "nvmlDeviceGetCurrPcieLinkWidth", then=int)
    take("pcie_generation_max", "nvmlDeviceGetMaxPcieLinkGeneration", then=int)
    take("pcie_width_max", "nvmlDeviceGetMaxPcieLinkWidth", then=int)
    take("full_speed", "nvmlDeviceGetPerformanceState", then=lambda state: state == _FULL_SPEED_STATE)
    return readings.health()


def _reasons(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _THROTTLE.items() if bits & bit)


def _watts(milliwatts: int) -> float:
    return milliwatts / 1000


def _link_state(nvml: Any, card: Any, link: int) -> int | None:
    """1 for a link that is up, 0 for one that is down, None where there is no link of this number."""
    try:
        return int(nvml.nvmlDeviceGetNvLinkState(card, link))
    except (nvml.NVMLError, AttributeError):
        return None


def _link_speed(nvml: Any, card: Any) -> int | None:
    """MB/s of each NVLink in one direction."""
    (answer,) = nvml.nvmlDeviceGetFieldValues(card, [_NVLINK_MB_PER_S])
    return int(answer.value.uiVal) or None if answer.nvmlReturn == 0 else None
