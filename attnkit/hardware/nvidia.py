"""NVIDIA GPUs: through NVML on this machine, through /proc/driver/nvidia and PCI ids in a recorded tree or where NVML fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from attnkit.hardware.bus import describe, obstacle
from attnkit.hardware.device import (
    DRIVER_FAILS,
    LOST,
    MIG,
    MIG_SLICE,
    NO_DRIVER,
    NO_INSTANCE,
    NO_TENSOR_CORES,
    Device,
    ProbeResult,
)
from attnkit.hardware.ids import NVIDIA, UNKNOWN_ARCH, lookup, without_tensor_cores
from attnkit.hardware.pci import PciDevice, gpus
from attnkit.hardware.tegra import probe_tegra
from attnkit.hardware.tree import Tree, parse_int

# Signs of a GPU that PCI does not show: the Windows subsystem for Linux has /dev/dxg and no NVIDIA function on its bus.
_NODES = ("dev/nvidiactl", "dev/dxg")
_CORES_PER_SM = {"sm_60": 64, "sm_70": 64, "sm_75": 64, "sm_80": 64}  # 128 in every other one since sm_61
_VERSION = re.compile(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b")
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib")
_ERROR_LIBRARY_NOT_FOUND, _ERROR_GPU_IS_LOST = 12, 15  # of NVML
_MAX_LINKS = 18


def probe(tree: Tree, pci: tuple[PciDevice, ...]) -> ProbeResult:
    """List the NVIDIA GPUs. NVML is asked only at the real root; where it cannot be asked the PCI list stands in.

    Where NVML itself says that nothing works (driver and library of different versions, GPUs lost), the GPUs are listed as not
    usable, with its words.
    """
    cards = gpus(pci, NVIDIA)
    notes: list[str] = []
    failure: str | None = None
    if asks_nvml(tree, pci):
        try:
            nvml = _load_nvml()
            answer = _read_nvml(nvml, cards, notes)
            numa = {card.address: card.numa_node for card in cards}
            shown = [replace(d, numa_node=numa.get(d.pci_address or "")) for d in answer.devices]
            lost = _lost(tree, answer, cards, len(shown), notes)
            if shown or lost or not cards:
                return ProbeResult("nvidia", (*shown, *lost) or probe_tegra(tree, notes), notes=tuple(notes))
            failure = "NVML shows no GPU: it was lost, or is not passed into this container"
        except ImportError:
            notes.append("nvidia-ml-py is not installed: GPUs are read from sysfs and PCI ids, without their memory sizes")
        except Exception as exc:  # NVML raises its own classes, known only once it is imported
            notes.append(f"NVML failed ({type(exc).__name__}: {exc}): GPUs are read from sysfs and PCI ids")
            if type(exc).__name__.startswith("NVMLError") and getattr(exc, "value", None) != _ERROR_LIBRARY_NOT_FOUND:
                failure = f"NVML says: {exc}"
    return without_nvml(tree, pci, failure, notes)


def asks_nvml(tree: Tree, pci: tuple[PciDevice, ...]) -> bool:
    """Whether NVML is asked: at the real root, where there is any sign of a GPU."""
    return tree.live and bool(gpus(pci, NVIDIA) or any(tree.exists(node) for node in _NODES))


def without_nvml(tree: Tree, pci: tuple[PciDevice, ...], failure: str | None, notes: list[str]) -> ProbeResult:
    """List the NVIDIA GPUs as PCI and /proc/driver/nvidia show them.

    Args:
        failure: why none of them works though the driver is loaded, None where that is not known.
        notes: gets one sentence for each thing worth knowing.
    """
    cards = gpus(pci, NVIDIA)
    failure = failure or _versions_differ(tree)
    listed: list[Device] = []
    for card in cards:
        listed.extend(_from_pci(tree, card, len(listed), failure, notes))
    listed += _vanished(tree, {card.address for card in cards}, len(listed), failure)
    return ProbeResult("nvidia", probe_tegra(tree, notes) if not cards and not listed else tuple(listed), notes=tuple(notes))


def driver_version(tree: Tree) -> str | None:
    """The version of the loaded kernel module, from /proc/driver/nvidia/version or the module's own file."""
    first = (tree.text("proc/driver/nvidia/version") or "").partition("\n")[0]
    found = _VERSION.search(first)
    return found.group(1) if found else tree.text("sys/module/nvidia/version")


def _vanished(tree: Tree, on_pci: set[str], index: int, failure: str | None) -> list[Device]:
    """GPUs that the driver still lists, or has device nodes of, and PCI does not show any more."""
    wheres = [name for name in tree.names("proc/driver/nvidia/gpus") if name.lower() not in on_pci]
    if not wheres and not on_pci and (failure or driver_version(tree)):
        wheres = [f"/dev/{name}" for name in tree.names("dev") if re.fullmatch(r"nvidia\d+", name)]
    devices: list[Device] = []
    for where in wheres:
        about = tree.fields(f"proc/driver/nvidia/gpus/{where}/information", ":") if not where.startswith("/") else {}
        fell = f"{where}: {failure or 'PCI does not show this GPU any more: it has fallen off the bus'}"
        device = Device(
            "nvidia", "gpu", about.get("Model") or "NVIDIA GPU", UNKNOWN_ARCH, index + len(devices), features=(LOST,)
        )
        address = None if where.startswith("/") else where.lower()
        devices.append(replace(device, pci_address=address, driver=driver_version(tree), source="sysfs", problem=fell))
    return devices


def _versions_differ(tree: Tree) -> str | None:
    """A sentence where the library's file names say another version than the kernel module; NVML says the same when asked."""
    module = driver_version(tree)
    names = [name for folder in _LIBRARIES for name in tree.names(folder)]
    versions = {
        found[1] for name in names if (found := re.fullmatch(r"lib(?:nvidia-ml|cuda)\.so\.(\d{3,}\.\d+(?:\.\d+)?)", name))
    }
    if module is None or not versions or module in versions:
        return None
    library = ", ".join(sorted(versions))
    return (
        f"Driver/library version mismatch: the kernel module is {module}, the library {library}; reboot or load the new module"
    )


def _load_nvml() -> Any:
    import pynvml

    return pynvml


@dataclass
class _Answer:
    """What NVML said: whole GPUs and MIG slices, its words about GPUs that it cannot describe, and what PCI shows beyond."""

    devices: list[Device] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    driver: str = ""


def from_nvml(nvml: Any, functions: tuple[PciDevice, ...], notes: list[str]) -> tuple[Device, ...]:
    """List what NVML shows, whole GPUs each followed by its MIG slices.

    Args:
        nvml: the module pynvml of nvidia-ml-py.
        functions: the NVIDIA functions on PCI, to say which of them NVML does not show.
        notes: gets one sentence for each thing worth knowing.

    Raises:
        nvml.NVMLError: no driver, no permission, library and driver of different versions.
    """
    return tuple(_read_nvml(nvml, functions, notes).devices)


def _read_nvml(nvml: Any, cards: tuple[PciDevice, ...], notes: list[str]) -> _Answer:
    answer = _Answer()
    nvml.nvmlInit()
    try:
        answer.driver = _str(nvml.nvmlSystemGetDriverVersion())
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                answer.devices.extend(_nvml_devices(nvml, index, len(answer.devices), answer.driver, notes))
            except nvml.NVMLError as exc:
                notes.append(f"GPU {index}: NVML cannot describe it ({exc}): left out")
                answer.failures.append(str(exc))
        shown = {d.pci_address for d in answer.devices}
        for card in cards:
            if card.address not in shown:
                words = _why_lost(nvml, card.address)
                if words is None:
                    answer.hidden.append(card.address)
                else:
                    answer.lost[card.address] = words
    finally:
        _ask(nvml, nvml.nvmlShutdown)
    if answer.hidden:
        notes.append(f"on PCI but not shown by NVML (not passed into this container?): {', '.join(sorted(answer.hidden))}")
    return answer


def _why_lost(nvml: Any, address: str) -> str | None:
    """NVML's words about a GPU that fell off the bus; None where it does not know the GPU at all."""
    try:
        nvml.nvmlDeviceGetHandleByPciBusId(address.encode())
    except AttributeError:  # a stand-in, or a very old library
        return None
    except nvml.NVMLError as exc:
        return str(exc) if getattr(exc, "value", None) == _ERROR_GPU_IS_LOST or "lost" in str(exc).lower() else None
    return None


def _lost(tree: Tree, answer: _Answer, cards: tuple[PciDevice, ...], index: int, notes: list[str]) -> list[Device]:
    """The GPUs that NVML counts and cannot describe, as devices that are not usable: by address where that is known."""
    lost = dict(answer.lost)
    unexplained = answer.failures[len(lost) :]
    if unexplained and len(unexplained) >= len(answer.hidden):
        # As many as PCI shows beyond NVML's list, so it must be these.
        lost |= dict(zip(answer.hidden, unexplained, strict=False))
    by_address = {card.address: card for card in cards}
    devices = [
        device
        for offset, (address, words) in enumerate(lost.items())
        for device in _from_pci(tree, by_address[address], index + offset, f"NVML says: {words}", notes, LOST)
    ]
    if not cards and not answer.devices and any("support" not in words.lower() for words in answer.failures):
        devices = [
            Device(
                "nvidia",
                "gpu",
                "NVIDIA GPU",
                UNKNOWN_ARCH,
                n,
                features=(LOST,),
                source="nvml",
                problem=f"GPU {n}: NVML says: {w}",
            )
            for n, w in enumerate(answer.failures)
        ]
    return devices


def _nvml_devices(nvml: Any, number: int, index: int, driver: str, notes: list[str]) -> list[Device]:
    """GPU `number` of NVML, as device `index` of the list, and its MIG slices behind it."""
    handle = nvml.nvmlDeviceGetHandleByIndex(number)
    pci = nvml.nvmlDeviceGetPciInfo(handle)
    domain, _, rest = _str(pci.busId).lower().partition(":")
    pci_id = f"{pci.pciDeviceId & 0xFFFF:04x}:{pci.pciDeviceId >> 16:04x}"
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    arch = f"sm_{major}{minor}"
    known = lookup(pci_id)
    if known and known.arch not in (arch, UNKNOWN_ARCH):
        notes.append(f"GPU {number}: NVML says {arch}, the id table says {known.arch} for {pci_id}; NVML's is used")
    name = _str(nvml.nvmlDeviceGetName(handle))
    memory = _ask(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    cores = _ask(nvml, lambda: nvml.nvmlDeviceGetNumGpuCores(handle))
    mig = _ask(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle))
    ecc = _ask(nvml, lambda: nvml.nvmlDeviceGetEccMode(handle))
    features = [name for name, mode in ((MIG, mig), ("ecc", ecc)) if mode and mode[0]]
    if arch == "sm_75" and ((known and NO_TENSOR_CORES in known.features) or without_tensor_cores(name)):
        features.append(NO_TENSOR_CORES)
    if MIG in features:
        notes.append(f"GPU {number}: MIG is on; a process gets an instance of it, with less memory than the whole GPU")
    whole = Device(
        vendor="nvidia",
        kind="gpu",
        name=name,
        arch=arch,
        index=index,
        memory_bytes=int(memory.total) if memory else None,
        units=int(cores) // _CORES_PER_SM.get(arch, 128) if cores else None,
        features=tuple(features),
        pci_address=f"{int(domain, 16):04x}:{rest}",
        pci_id=pci_id,
        driver=driver,
        source="nvml",
        uuid=_text(_ask(nvml, lambda: nvml.nvmlDeviceGetUUID(handle))),
        links=_nvlinks(nvml, handle),
    )
    count = _ask(nvml, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle))
    if MIG not in features or count is None:
        return [whole]
    slices = _slices(nvml, handle, count, whole)
    if not slices:
        problem = f"{whole.pci_address}: MIG is on and no instance was made: nvidia-smi mig -cgi … -C makes them"
        whole = replace(whole, features=(*whole.features, NO_INSTANCE), problem=problem)
    return [whole, *slices]


def _slices(nvml: Any, handle: Any, count: int, whole: Device) -> list[Device]:
    """The MIG instances of a GPU, each with its own memory and multiprocessors; not every place for one is taken."""
    slices: list[Device] = []
    for number in range(count):
        part = _slice(nvml, handle, number, whole)
        if part is not None:
            slices.append(replace(part, index=whole.index + 1 + len(slices)))
    return slices


def _slice(nvml: Any, handle: Any, number: int, whole: Device) -> Device | None:
    part = _ask(nvml, lambda: nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
    if part is None:
        return None
    memory = _ask(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(part))
    attributes = _ask(nvml, lambda: nvml.nvmlDeviceGetAttributes(part))
    name = _text(_ask(nvml, lambda: nvml.nvmlDeviceGetName(part))) or f"{whole.name} MIG"
    return replace(
        whole,
        name=name,
        memory_bytes=int(memory.total) if memory else attributes.memorySizeMB * 2**20 if attributes else None,
        units=int(attributes.multiprocessorCount) if attributes else None,
        features=(*(f for f in whole.features if f != MIG), MIG_SLICE),
        uuid=_text(_ask(nvml, lambda: nvml.nvmlDeviceGetUUID(part))),
        part=name.rpartition(" MIG ")[2] if " MIG " in name else f"instance {number}",
        links=(),
    )


def _nvlinks(nvml: Any, handle: Any) -> tuple[str, ...]:
    """How many NVLinks are up, in words."""
    states = (_link_state(nvml, handle, link) for link in range(_MAX_LINKS))
    active = sum(map(bool, takewhile(lambda state: state is not None, states)))
    return (f"{active} × NVLink",) if active else ()


def _link_state(nvml: Any, handle: Any, link: int) -> Any:
    return _ask(nvml, lambda: nvml.nvmlDeviceGetNvLinkState(handle, link))


def _ask(nvml: Any, question: Callable[[], Any]) -> Any:
    """An answer that some GPUs and library versions do not give (consumer GPUs have no ECC mode), or None."""
    try:
        return question()
    except (nvml.NVMLError, AttributeError):
        return None


def _str(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _text(value: Any) -> str | None:
    return None if value is None else _str(value)


def _from_pci(
    tree: Tree, card: PciDevice, index: int, failure: str | None, notes: list[str], kind: str = DRIVER_FAILS
) -> list[Device]:
    """A card as PCI and /proc/driver/nvidia show it, and its MIG slices behind it.

    Args:
        failure: why no card works though the driver is loaded; `kind` is the feature that says so.
    """
    known = describe(card, "NVIDIA", notes)
    about = tree.fields(f"proc/driver/nvidia/gpus/{card.address}/information", ":")
    blocked = obstacle(tree, card, ("nvidia",), ("dev/nvidiactl",))
    if blocked is None and (failure or "???" in about.get("GPU UUID", "") or card.revision == "ff"):
        fell = failure or "it does not answer (its UUID or revision reads as nothing): it has fallen off the bus"
        blocked = (kind if failure else LOST, f"{card.address} ({card.pci_id}): {fell}")
    if blocked is not None:
        notes.append(blocked[1])
    # The driver names a card better than the table: several products share some ids.
    name = about.get("Model") or known.name
    without = known.arch == "sm_75" and without_tensor_cores(name)
    features = [NO_TENSOR_CORES] if NO_TENSOR_CORES in known.features or without else []
    uuid = about.get("GPU UUID", "")
    minor = parse_int(about.get("Device Minor"))
    slices = [] if blocked or minor is None else _mig_instances(tree, minor)
    whole = Device(
        vendor="nvidia",
        kind="gpu",
        name=name,
        arch=known.arch,
        index=index,
        features=(*features, *((MIG,) if slices else ()), *((blocked[0],) if blocked else ())),
        pci_address=card.address,
        pci_id=card.pci_id,
        driver=None if blocked and blocked[0] == NO_DRIVER else driver_version(tree) or card.driver,
        source="sysfs",
        uuid=uuid if uuid.startswith("GPU-") and "?" not in uuid else None,
        numa_node=card.numa_node,
        problem=blocked[1] if blocked else None,
    )
    if slices:
        notes.append(f"{card.address}: MIG is on; the sizes of its instances are NVML's to say")
    parts = [
        replace(
            whole,
            name=f"{name} MIG {part}",
            index=index + 1 + n,
            features=(*features, MIG_SLICE),
            part=part,
            uuid=f"MIG-{whole.uuid}/{part[2:].replace(' ci', '/')}" if whole.uuid else None,
        )
        for n, part in enumerate(slices)
    ]
    return [whole, *parts]


def _mig_instances(tree: Tree, minor: int) -> list[str]:
    """The MIG instances of a GPU as the driver's capabilities list them: "gi1 ci0"."""
    base = f"proc/driver/nvidia/capabilities/gpu{minor}/mig"
    return [
        f"{gpu} {compute}"
        for gpu in tree.names(base)
        if re.fullmatch(r"gi\d+", gpu)
        for compute in tree.names(f"{base}/{gpu}")
        if re.fullmatch(r"ci\d+", compute)
    ]
