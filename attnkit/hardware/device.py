"""What a probe finds, as plain data. No probe and no import of a vendor library here."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from attnkit.errors import UsageError

Vendor: TypeAlias = Literal["nvidia", "amd", "intel", "google", "cpu"]
Kind: TypeAlias = Literal["gpu", "tpu", "cpu"]

# Features that say why an accelerator which is there cannot be used from here.
NO_DRIVER = "no-driver"
NO_DEVICE_NODE = "no-device-node"


@dataclass(frozen=True)
class Device:
    """One accelerator, or the CPU.

    Args:
        vendor: who makes the accelerator; "cpu" for the host processor whatever its maker.
        kind: gpu, tpu or cpu.
        name: marketing name, as found ("NVIDIA H100 80GB HBM3") or from the id table.
        arch: sm_90, gfx942, xe-hpg, xe-hpc, tpu-v5e, x86_64, aarch64 …
        index: position among devices of the same vendor.
        memory_bytes: device memory (CPU: main memory), None where unknown.
        units: multiprocessors, compute units, Xe cores, TPU cores or CPU cores, None where unknown.
        features: CPU features (avx2, avx512f, avx512_bf16, amx_bf16 …) or device features (mig, ecc …), and "no-driver" or
            "no-device-node" where the accelerator is there but cannot be used from here.
        pci_address: 0000:3b:00.0. pci_id: 10de:2330.
        driver: driver version or module name and version, None where unknown.
        source: which probe and method found it: nvml, sysfs, kfd, amdsmi, devnode, cpuinfo.
    """

    vendor: Vendor
    kind: Kind
    name: str
    arch: str
    index: int = 0
    memory_bytes: int | None = None
    units: int | None = None
    features: tuple[str, ...] = ()
    pci_address: str | None = None
    pci_id: str | None = None
    driver: str | None = None
    source: str = ""

    @property
    def usable(self) -> bool:
        """False where the accelerator is on the bus but has no driver loaded, or no device node in this container."""
        return NO_DRIVER not in self.features and NO_DEVICE_NODE not in self.features


@dataclass(frozen=True)
class ProbeResult:
    """The outcome of one vendor's probe. A failure is a value here, never an exception."""

    probe: str
    devices: tuple[Device, ...] = ()
    error: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Detection:
    """Everything found in one box.

    Args:
        devices: accelerators first (nvidia, amd, intel, google), the CPU last.
        probes: each probe's result with its error or notes.
        root: the tree that was read ("/" for this box).
        host: kernel release, OS pretty name, hostname … as found.
    """

    devices: tuple[Device, ...]
    probes: tuple[ProbeResult, ...]
    root: str = "/"
    host: dict[str, str] = field(default_factory=dict)


_VENDOR_BY_ARCH: tuple[tuple[str, Vendor, Kind], ...] = (
    ("sm_*", "nvidia", "gpu"),
    ("gfx*", "amd", "gpu"),
    ("xe*", "intel", "gpu"),
    ("tpu*", "google", "tpu"),
    ("x86_64", "cpu", "cpu"),
    ("aarch64", "cpu", "cpu"),
    ("ppc64le", "cpu", "cpu"),
    ("s390x", "cpu", "cpu"),
)


def pretend(arch: str, name: str) -> Device:
    """A device of `arch` as selection sees it, without a box around it."""
    for pattern, vendor, kind in _VENDOR_BY_ARCH:
        if fnmatchcase(arch, pattern):
            return Device(vendor=vendor, kind=kind, name=name, arch=arch, source="given")
    known = ", ".join(pattern for pattern, _, _ in _VENDOR_BY_ARCH)
    raise UsageError(f"unknown device architecture {arch!r}. Known forms: {known}")
