"""What a probe finds, as plain data. No probe and no import of a vendor library here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Vendor: TypeAlias = Literal["nvidia", "amd", "intel", "google", "cpu"]
"""Vendors whose devices attnkit serves from."""
AnyVendor: TypeAlias = Vendor | Literal["other"]
Kind: TypeAlias = Literal["gpu", "tpu", "cpu", "accelerator"]

# Features that say why an accelerator which is there cannot be used from here.
NO_DRIVER = "no-driver"
NO_DEVICE_NODE = "no-device-node"
LOST = "lost"
DRIVER_FAILS = "driver-fails"
NO_INSTANCE = "no-mig-instance"
NOT_SERVED = "not-served"
HIDDEN = "hidden"
OBSTACLES = frozenset({NO_DRIVER, NO_DEVICE_NODE, LOST, DRIVER_FAILS, NO_INSTANCE, NOT_SERVED, HIDDEN})

# Features that say what a device is.
NO_TENSOR_CORES = "no-tensor-cores"
INTEGRATED = "integrated"
MIG = "mig"
MIG_SLICE = "mig-slice"


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
        features: CPU features (avx2, avx512f, avx512_bf16, amx_bf16 …) or device features (mig, ecc, cpx, no-tensor-cores …),
            and one of OBSTACLES where the accelerator is there but cannot be used from here.
        pci_address: 0000:3b:00.0. pci_id: 10de:2330.
        driver: driver version or module name and version, None where unknown.
        source: which probe and method found it: nvml, sysfs, kfd, amdsmi, devnode, devicetree, cpuinfo.
        uuid: GPU-…, MIG-…, as the vendor's tools and the visible-device variables spell it; None where unknown.
        part: which part of a card this is (MIG's "3g.40gb", "cpx 3/8"), None for a whole card.
        numa_node: the NUMA node whose memory is nearest, None where unknown.
        links: links to the other devices, one sentence each ("18 × NVLink", "xGMI to 1, 2, 3").
        visible: False where a variable such as CUDA_VISIBLE_DEVICES hides it from a process started here.
        ordinal: its index among the devices that such a process sees (cuda:0, xpu:1 …), None where it sees none or the order
            is not known.
        problem: why it cannot be used from here, one sentence; None where it can.
    """

    vendor: AnyVendor
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
    uuid: str | None = None
    part: str | None = None
    numa_node: int | None = None
    links: tuple[str, ...] = ()
    visible: bool = True
    ordinal: int | None = None
    problem: str | None = None

    @property
    def usable(self) -> bool:
        """False where the accelerator is there but cannot be used: no driver, no device node, lost, not served …"""
        return not OBSTACLES & set(self.features)

    @property
    def obstacle(self) -> str | None:
        """Why it is not usable, one sentence; None where it is."""
        if self.usable:
            return None
        what = ", ".join(name for name in self.features if name in OBSTACLES)
        return self.problem or f"{self.name} cannot be used from here: {what}"

    @property
    def label(self) -> str:
        """Which one it is, in words: "device 1 (GPU-…, 0000:3b:00.0)"."""
        known = ", ".join(filter(None, (self.part, self.uuid, self.pci_address)))
        return f"device {self.index}" + (f" ({known})" if known else "")

    @property
    def tensor_cores(self) -> bool:
        """False for a GPU whose matrix products run on its scalar units although its architecture has tensor cores."""
        return NO_TENSOR_CORES not in self.features


@dataclass(frozen=True)
class ProbeResult:
    """The outcome of one vendor's probe. A failure is a value here, never an exception."""

    probe: str
    devices: tuple[Device, ...] = ()
    error: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Detection:
    """Everything found in one machine.

    Args:
        devices: accelerators first (nvidia, amd, intel, google, other), the CPU last.
        probes: each probe's result with its error or notes.
        root: the tree that was read ("/" for this machine).
        host: kernel release, OS pretty name, hostname … as found.
        visibility: the variables that choose devices, as they are set (CUDA_VISIBLE_DEVICES …).
        visibility_notes: what they come to, and what about them is wrong or cannot be known.
        ambiguous: why it cannot be known which devices a variable names; None where it can.
    """

    devices: tuple[Device, ...]
    probes: tuple[ProbeResult, ...]
    root: str = "/"
    host: dict[str, str] = field(default_factory=dict)
    visibility: dict[str, str] = field(default_factory=dict)
    visibility_notes: tuple[str, ...] = ()
    ambiguous: str | None = None
