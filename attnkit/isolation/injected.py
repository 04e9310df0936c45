"""Faults injected through the debug switch `--fault NAME[@INDEX[,INDEX]]`: which, and on which devices.

A fault of `attnkit.selftest.FAULTS` makes an attention kernel wrong. Two more break the self-test's process itself, and one is
for the collective check, where a rank that delivers another's data must be caught.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from attnkit.errors import UsageError, unknown_name
from attnkit.hardware.device import Device
from attnkit.selftest import FAULTS

CRASH, HANG = "crash", "hang"
PROCESS_FAULTS = (CRASH, HANG)
"""The self-test's process dies of SIGSEGV, or never ends."""
WRONG_RANK = "wrong-rank"


@dataclass(frozen=True)
class Injected:
    """A fault, and the devices that have it.

    Args:
        name: a name of FAULTS, of PROCESS_FAULTS, or WRONG_RANK.
        devices: their indices, as `attnkit detect` shows them; empty: every device.
    """

    name: str
    devices: tuple[int, ...] = ()

    def on(self, device: Device) -> bool:
        """Whether `device` has it."""
        return not self.devices or device.index in self.devices

    def in_selftest(self, device: Device) -> str | None:
        """The fault that the self-test of `device` injects, None where it has none."""
        return self.name if self.on(device) and self.name != WRONG_RANK else None


def parse_fault(text: str) -> Injected:
    """NAME or NAME@INDEX[,INDEX].

    Raises:
        UsageError: an unknown fault, or indices that are no numbers.
    """
    name, devices = split_devices(text)
    known = (*FAULTS, *PROCESS_FAULTS, WRONG_RANK)
    if name not in known:
        raise unknown_name("fault", name, known)
    return Injected(name, devices)


def split_devices(text: str) -> tuple[str, tuple[int, ...]]:
    """NAME@INDEX[,INDEX] in its two parts; no index where none is given.

    Raises:
        UsageError: an index that is no number.
    """
    name, at, listed = text.partition("@")
    entries = [entry.strip() for entry in listed.split(",")] if at else []
    if not all(entry.isascii() and entry.isdecimal() for entry in entries):
        raise UsageError(f"{text!r}: devices are given by index, as `attnkit detect` shows them: {name}@1 or {name}@0,2")
    return name, tuple(map(int, entries))


def check_devices(indices: Sequence[int], devices: Sequence[Device]) -> None:
    """Make sure that a fault's devices are there: one that has nowhere to go would look like a pass.

    Raises:
        UsageError: an index that none of `devices` has.
    """
    known = [device.index for device in devices]
    missing = [index for index in indices if index not in known]
    if missing:
        raise UsageError(f"there is no device {missing[0]} to serve from; the indices are {', '.join(map(str, known))}")


def break_process(how: str | None) -> None:
    """Be a device that crashes or hangs, where `how` says so."""
    if how == CRASH:
        os.kill(os.getpid(), signal.SIGSEGV)
    while how == HANG:
        time.sleep(3600)
