"""Equal devices compared with one another: one that is much slower than its equals is broken, throttled or shared.

The speed floor of the self-test is a fraction of what the very device shows, so that a device which is slow as a whole passes
it. Its equals in the same machine say what it should show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attnkit.hardware.device import Device
from attnkit.selftest.results import CaseResult, Verdict

SLOW = 0.5
"""Fraction of the fastest equal device's own rate, under which a device fails. Equal cards differ by a few percent."""


def compare_devices(devices: Sequence[Device], verdicts: Sequence[tuple[Verdict, ...]]) -> tuple[tuple[Verdict, ...], ...]:
    """The verdicts, with a failed case in those of a device whose own rate is far under that of an equal one.

    Args:
        devices: what was tested at the same time.
        verdicts: those of each device.
    """
    fastest: dict[tuple[object, ...], tuple[float, Device]] = {}
    for device, found in zip(devices, verdicts, strict=True):
        for key, rate in _rates(device, found):
            if key not in fastest or rate > fastest[key][0]:
                fastest[key] = rate, device
    return tuple(
        tuple(_compared(device, verdict, fastest) for verdict in found) for device, found in zip(devices, verdicts, strict=True)
    )


def _rates(device: Device, verdicts: Sequence[Verdict]) -> list[tuple[tuple[object, ...], float]]:
    """The device's own rates, each with what makes it comparable."""
    return [
        ((device.name, device.memory_bytes, verdict.backend, speed.work), speed.ceiling)
        for verdict in verdicts
        for speed in verdict.speed
        if speed.ceiling
    ]


def _compared(device: Device, verdict: Verdict, fastest: dict[tuple[object, ...], tuple[float, Device]]) -> Verdict:
    cases = []
    for key, rate in _rates(device, (verdict,)):
        best, other = fastest[key]
        if rate < SLOW * best:
            reason = (
                f"{device.label} shows {rate / best:.0%} of the rate of its equal, {other.label}: broken, throttled or shared"
            )
            cases.append(CaseResult(f"device-speed-{key[-1]}", "a device that is slow as a whole", "fail", reason))
    return replace(verdict, outcome="fail", cases=(*verdict.cases, *cases)) if cases else verdict
