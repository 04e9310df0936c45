"""NVIDIA GPUs: through NVML on this box, through /proc/driver/nvidia and PCI ids in a recorded tree or where NVML fails."""

from __future__ import annotations

import re
from typing import Any

from attnkit.hardware.bus import describe, obstacles
from attnkit.hardware.device import NO_DRIVER, Device, ProbeResult
from attnkit.hardware.ids import NVIDIA, UNKNOWN_ARCH, lookup
from attnkit.hardware.pci import PciDevice, gpus
from attnkit.hardware.tree import Tree

# Signs of a GPU that PCI does not show: the Windows subsystem for Linux has /dev/dxg and no NVIDIA function on its bus.
_NODES = ("dev/nvidiactl", "dev/dxg")
_CORES_PER_SM = {"sm_60": 64, "sm_70": 64, "sm_75": 64, "sm_80": 64}  # 128 in every other one since sm_61
_VERSION = re.compile(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b")


def probe(tree: Tree, pci: tuple[PciDevice, ...]) -> ProbeResult:
    """List the NVIDIA GPUs. NVML is asked only at the real root; its failure is a note and the PCI list stands in."""
    cards = gpus(pci, NVIDIA)
    notes: list[str] = []
    if tree.live and (cards or any(tree.exists(node) for node in _NODES)):
        try:
            devices = from_nvml(_load_nvml(), cards, notes)
            return ProbeResult("nvidia", devices, notes=tuple(notes))
        except ImportError:
            notes.append("nvidia-ml-py is not installed: GPUs are read from sysfs and PCI ids, without their memory sizes")
        except Exception as exc:  # NVML raises its own classes, known only once it is imported
            notes.append(f"NVML failed ({type(exc).__name__}: {exc}): GPUs are read from sysfs and PCI ids")
    devices = tuple(_from_pci(tree, card, index, notes) for index, card in enumerate(cards))
    return ProbeResult("nvidia", devices, notes=tuple(notes))


def driver_version(tree: Tree) -> str | None:
    """The version of the loaded kernel module, from /proc/driver/nvidia/version or the module's own file."""
    first = (tree.text("proc/driver/nvidia/version") or "").partition("\n")[0]
    found = _VERSION.search(first)
    return found.group(1) if found else tree.text("sys/module/nvidia/version")


def _load_nvml() -> Any:
    import pynvml

    return pynvml


def from_nvml(nvml: Any, cards: tuple[PciDevice, ...], notes: list[str]) -> tuple[Device, ...]:
    """List what NVML shows.

    Args:
        nvml: the module pynvml of nvidia-ml-py.
        cards: the NVIDIA functions on PCI, to say which of them NVML does not show.
        notes: gets one sentence for each thing worth knowing.

    Raises:
        nvml.NVMLError: no driver, no permission, library and driver of different versions.
    """
    nvml.nvmlInit()
    try:
        driver = _str(nvml.nvmlSystemGetDriverVersion())
        devices = []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                devices.append(_nvml_device(nvml, index, driver, notes))
            except nvml.NVMLError as exc:
                notes.append(f"GPU {index}: NVML cannot describe it ({exc}): left out")
    finally:
        nvml.nvmlShutdown()
    hidden = sorted({card.address for card in cards} - {d.pci_address for d in devices})
    if hidden:
        notes.append(f"on PCI but not shown by NVML (not passed into this container?): {', '.join(hidden)}")
    return tuple(devices)


def _nvml_device(nvml: Any, index: int, driver: str, notes: list[str]) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    place = nvml.nvmlDeviceGetPciInfo(handle)
    domain, _, rest = _str(place.busId).lower().partition(":")
    pci_id = f"{place.pciDeviceId & 0xFFFF:04x}:{place.pciDeviceId >> 16:04x}"
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    arch = f"sm_{major}{minor}"
    known = lookup(pci_id)
    if known and known.arch not in (arch, UNKNOWN_ARCH):
        notes.append(f"GPU {index}: NVML says {arch}, the id table says {known.arch} for {pci_id}; NVML is believed")
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    cores = _ask(nvml, nvml.nvmlDeviceGetNumGpuCores, handle)
    mig = _ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
    ecc = _ask(nvml, nvml.nvmlDeviceGetEccMode, handle)
    features = tuple(name for name, mode in (("mig", mig), ("ecc", ecc)) if mode and mode[0])
    if "mig" in features:
        notes.append(f"GPU {index}: MIG is on; a process gets an instance of it, with less memory than the whole GPU")
    return Device(
        vendor="nvidia",
        kind="gpu",
        name=_str(nvml.nvmlDeviceGetName(handle)),
        arch=arch,
        index=index,
        memory_bytes=int(memory.total) if memory else None,
        units=int(cores) // _CORES_PER_SM.get(arch, 128) if cores else None,
        features=features,
        pci_address=f"{int(domain, 16):04x}:{rest}",
        pci_id=pci_id,
        driver=driver,
        source="nvml",
    )


def _ask(nvml: Any, question: Any, handle: Any) -> Any:
    """An answer that some cards do not give (consumer cards have no ECC mode, old drivers no core count), or None."""
    try:
        return question(handle)
    except nvml.NVMLError:
        return None


def _str(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _from_pci(tree: Tree, card: PciDevice, index: int, notes: list[str]) -> Device:
    known = describe(card, "NVIDIA", notes)
    features = obstacles(tree, card, ("nvidia",), ("dev/nvidiactl",), notes)
    # The driver names a card better than the table: several products share some ids.
    model = tree.fields(f"proc/driver/nvidia/gpus/{card.address}/information", ":").get("Model")
    version = driver_version(tree)
    return Device(
        vendor="nvidia",
        kind="gpu",
        name=model or known.name,
        arch=known.arch,
        index=index,
        features=features,
        pci_address=card.address,
        pci_id=card.pci_id,
        driver=None if NO_DRIVER in features else version or card.driver,
        source="sysfs",
    )
