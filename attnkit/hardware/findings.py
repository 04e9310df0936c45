"""What is wrong with a device's state, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from attnkit.hardware.device import Device
from attnkit.hardware.health import Health

_SLOWED = ("slowdown", "thermal", "prochot", "ratl", "vr_")
"""Parts of the names of throttle reasons that mean trouble; idling, a power cap and chosen clocks do not."""


def findings(device: Device, health: Health, *, memory_share: float) -> list[str]:
    """What somebody who serves from the device should know.

    Args:
        device: which one it is.
        health: its state before serving.
        memory_share: fraction of its memory that serving takes (vLLM's --gpu-memory-utilization).
    """
    return [f"{device.label}: {text}" for text in _texts(health, memory_share if device.kind == "gpu" else 0.0)]


def _texts(health: Health, memory_share: float) -> Iterator[str]:
    used, total = health.memory_used_bytes, health.memory_total_bytes
    if used is not None and total and used > (1 - memory_share) * total:
        yield (
            f"{used / 2**30:.1f} of {total / 2**30:.1f} GiB of its memory are in use by others; serving takes "
            f"{memory_share:.0%} of it"
        )
    for span, count in (
        ("since the driver was loaded", health.ecc_uncorrected_volatile),
        ("in all", health.ecc_uncorrected_aggregate),
    ):
        if count:
            yield f"{count} uncorrected memory errors {span}"
    slowed = [reason for reason in health.throttle_reasons or () if any(word in reason for word in _SLOWED)]
    if slowed:
        yield f"its clocks are throttled: {', '.join(slowed)}"
    width, widest = health.pcie_width, health.pcie_width_max
    if width is not None and widest is not None and width < widest:
        yield f"its PCIe link is {width} lanes wide; {widest} would go"
    generation, newest = health.pcie_generation, health.pcie_generation_max
    if health.full_speed and generation is not None and newest is not None and generation < newest:
        yield f"its PCIe link runs at generation {generation} at full load; {newest} would go"
    if health.links is not None and health.links_max is not None and health.links < health.links_max:
        yield f"{health.links} of its {health.links_max} NVLinks are up"
    hung = next((reason for reason in health.unread.values() if "did not answer" in reason), None)
    if hung:
        yield hung
