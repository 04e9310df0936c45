"""How a device is: errors counted, throttling, clocks, memory in use, temperature, power and links.

What cannot be read is None, with the reason beside it; never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Health:
    """The state of one device at one moment. Every field but the last three is None where it could not be read.

    Args:
        ecc_corrected_volatile, ecc_uncorrected_volatile: memory errors since the driver was loaded.
        ecc_corrected_aggregate, ecc_uncorrected_aggregate: over the device's life.
        throttle_reasons: why its clocks are not at their highest now ("gpu-idle", "hw-thermal-slowdown" …).
        clock_mhz, clock_max_mhz, memory_clock_mhz, memory_clock_max_mhz: of the compute units and of the memory.
        memory_used_bytes, memory_total_bytes: of the device's memory (main memory for a CPU).
        temperature_c, power_w, power_limit_w: degrees Celsius, watts.
        driver: version. numa_node: whose memory is nearest.
        links, links_max: NVLink or xGMI links that are up, and that there are. link_mb_per_s: of each, in one direction.
        pcie_generation, pcie_width, pcie_generation_max, pcie_width_max: now, and the most that card and slot can do. The
            generation falls while a device idles.
        full_speed: True where the device says that it runs at full speed now (so that its link should too).
        source: "nvml" or "sysfs", "" where nothing could be asked.
        recorded: True where a recorded tree was read, not this machine.
        unread: for each field that is None, why.
    """

    ecc_corrected_volatile: int | None = None
    ecc_uncorrected_volatile: int | None = None
    ecc_corrected_aggregate: int | None = None
    ecc_uncorrected_aggregate: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    clock_mhz: int | None = None
    clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    memory_clock_max_mhz: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    driver: str | None = None
    numa_node: int | None = None
    links: int | None = None
    links_max: int | None = None
    link_mb_per_s: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_generation_max: int | None = None
    pcie_width_max: int | None = None
    full_speed: bool | None = None
    source: str = ""
    recorded: bool = False
    unread: Mapping[str, str] = field(default_factory=dict)


READINGS = tuple(f.name for f in fields(Health) if f.name not in ("source", "recorded", "unread"))
"""The fields that are read of a device."""


class Readings:
    """A `Health` in the making: each field is read or has its reason."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.values: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}

    def take(self, name: str, read: Callable[[], Any]) -> None:
        """Field `name` as `read` gives it; None, and whatever it raises, is a reason."""
        try:
            value = read()
        except Exception as error:  # a vendor's library raises its own classes
            self.reasons[name] = str(error) or type(error).__name__
            return
        if value is None:
            self.reasons.setdefault(name, f"{self.source} does not say")
        else:
            self.values[name] = value

    def health(self, *, recorded: bool = False, default: str = "") -> Health:
        """The whole; a field that nobody asked for has `default` for a reason."""
        missing = {name: self.reasons.get(name, default) for name in READINGS if name not in self.values}
        return Health(**self.values, source=self.source, recorded=recorded, unread=missing)


def unread(reason: str, *, recorded: bool = False) -> Health:
    """The health of a device of which nothing could be read."""
    return Readings("").health(recorded=recorded, default=reason)
