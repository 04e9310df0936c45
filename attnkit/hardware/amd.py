"""AMD GPUs: from the kernel's KFD topology, which knows the ISA; from PCI ids where the driver is not loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attnkit.hardware.bus import describe, obstacle
from attnkit.hardware.device import INTEGRATED, NO_DEVICE_NODE, NO_DRIVER, Device, ProbeResult
from attnkit.hardware.ids import AMD, UNKNOWN_ARCH, integrated
from attnkit.hardware.pci import PciDevice, gpus
from attnkit.hardware.tree import Tree, parse_int

_NODES = "sys/class/kfd/kfd/topology/nodes"
_VENDOR_ID = int(AMD, 16)
_FRAME_BUFFER_HEAPS = frozenset({"1", "2"})  # HSA heap types: 0 system, 1 and 2 the card's own memory (public, private)
_XGMI = 11  # HSA's type of a link; 2 is PCIe
_PARTITIONS = {"spx": 1, "dpx": 2, "tpx": 3, "qpx": 4, "cpx": 8}


def probe(tree: Tree, pci: tuple[PciDevice, ...]) -> ProbeResult:
    """List the AMD GPUs: KFD's nodes in KFD's order (that is HIP's), then those that KFD does not show."""
    notes: list[str] = []
    cards = {card.address: card for card in gpus(pci, AMD)}
    version = tree.text("sys/module/amdgpu/version")
    devices: list[Device] = []
    for node in sorted(tree.names(_NODES), key=lambda name: (parse_int(name) or 0, name)):
        device = _from_kfd(tree, node, cards, version, len(devices), notes)
        if device:
            devices.append(device)
    devices = _with_parts(devices)
    shown = {device.pci_address for device in devices}
    for address, card in cards.items():
        if address not in shown:
            devices.append(_from_pci(tree, card, version, len(devices), notes))
    if devices and tree.live:
        devices = _named_by_amdsmi(devices, notes)
    return ProbeResult("amd", tuple(devices), notes=tuple(notes))


def gfx_name(target_version: int) -> str:
    """KFD's gfx_target_version as LLVM spells it, minor and stepping in hex: 90402 → gfx942, 90010 → gfx90a."""
    major, minor, stepping = target_version // 10000, target_version // 100 % 100, target_version % 100
    return f"gfx{major}{minor:x}{stepping:x}"


def _from_kfd(
    tree: Tree, node: str, cards: dict[str, PciDevice], version: str | None, index: int, notes: list[str]
) -> Device | None:
    base = f"{_NODES}/{node}"
    properties = {key: parse_int(value) or 0 for key, value in tree.fields(f"{base}/properties", " ").items()}
    target = properties.get("gfx_target_version", 0)
    simds = properties.get("simd_count", 0)
    # CPU nodes have no SIMDs; a GPU that a container may not use has properties that cannot be read.
    if not target or not simds or properties.get("vendor_id", _VENDOR_ID) != _VENDOR_ID:
        return None
    address, card = _card(properties, cards)
    arch = gfx_name(target)
    known = describe(card, "AMD", [])
    if known.arch == UNKNOWN_ARCH:
        notes.append(f"{address}: AMD id {card.pci_id} is not in the id table; KFD says it is {arch}")
    elif known.arch != arch:
        notes.append(f"{address}: KFD says {arch}, the id table says {known.arch} for {card.pci_id}; KFD's is used")
    problem = None
    if tree.exists("dev") and not tree.exists("dev/kfd"):
        problem = f"{address}: amdgpu is loaded but there is no /dev/kfd here: the device is not passed into this container"
        notes.append(problem)
    modes = [tree.text(f"sys/bus/pci/devices/{address}/current_{kind}_partition") for kind in ("compute", "memory")]
    features = [mode.lower() for mode in modes if mode]
    features += [INTEGRATED] if integrated(card.pci_id) else []
    features += [NO_DEVICE_NODE] if problem else []
    unique = properties.get("unique_id", 0)
    return Device(
        vendor="amd",
        kind="gpu",
        name=_name(tree, card, known.name, known.arch),
        arch=arch,
        index=index,
        memory_bytes=_memory(tree, base) or None,
        units=simds // (properties.get("simd_per_cu") or (4 if target < 100000 else 2)),
        features=tuple(features),
        pci_address=address,
        pci_id=card.pci_id,
        driver=version or card.driver or "amdgpu",
        source="kfd",
        uuid=f"GPU-{unique:016x}" if unique > 0 else None,
        numa_node=card.numa_node,
        links=_xgmi(tree, base),
        problem=problem,
    )


def _card(properties: dict[str, int], cards: dict[str, PciDevice]) -> tuple[str, PciDevice]:
    """The PCI function of a KFD node, and its address.

    A partition of a card (CPX, DPX …) is a node of its own, and its number is in the location: in bits 28 to 31, or, by older
    drivers, in those of the PCI function, which then exists nowhere.
    """
    where = properties.get("location_id", 0) & 0xFFFF
    base = f"{properties.get('domain', 0) & 0xFFFFFFFF:04x}:{where >> 8 & 0xFF:02x}:{where >> 3 & 0x1F:02x}"
    address = f"{base}.{where & 7}"
    if address not in cards and f"{base}.0" in cards:
        address = f"{base}.0"
    pci_id = f"{AMD}:{properties.get('device_id', 0) & 0xFFFF:04x}"
    return address, cards.get(address) or PciDevice(address, pci_id, "0380", driver="amdgpu")


def _with_parts(devices: list[Device]) -> list[Device]:
    """The same devices, those that share a card named by their part of it: "cpx 3/8"."""
    per_card: dict[str | None, int] = {}
    for device in devices:
        per_card[device.pci_address] = per_card.get(device.pci_address, 0) + 1
    seen: dict[str | None, int] = {}
    named = []
    for device in devices:
        mode = next((name for name in device.features if name in _PARTITIONS), None)
        count = per_card[device.pci_address]
        seen[device.pci_address] = number = seen.get(device.pci_address, 0) + 1
        if count > 1 or (mode is not None and _PARTITIONS[mode] > 1):
            named.append(replace(device, part=f"{mode or 'partition'} {number}/{max(count, _PARTITIONS.get(mode or '', 1))}"))
        else:
            named.append(device)
    return named


def _xgmi(tree: Tree, base: str) -> tuple[str, ...]:
    """The KFD nodes that this one reaches over xGMI, in words."""
    links = (tree.fields(f"{base}/io_links/{link}/properties", " ") for link in tree.names(f"{base}/io_links"))
    peers = sorted(
        {node for link in links if parse_int(link.get("type")) == _XGMI and (node := parse_int(link.get("node_to")))}
    )
    return (f"xGMI to KFD node {', '.join(map(str, peers))}",) if peers else ()


def _memory(tree: Tree, base: str) -> int:
    """Bytes of the card's own memory: the banks whose heap is a frame buffer."""
    banks = (tree.fields(f"{base}/mem_banks/{bank}/properties", " ") for bank in tree.names(f"{base}/mem_banks"))
    return sum(parse_int(b.get("size_in_bytes")) or 0 for b in banks if b.get("heap_type") in _FRAME_BUFFER_HEAPS)


def _from_pci(tree: Tree, card: PciDevice, version: str | None, index: int, notes: list[str]) -> Device:
    known = describe(card, "AMD", notes)
    feature, problem = obstacle(tree, card, ("amdgpu",), ("dev/kfd",)) or (
        NO_DEVICE_NODE,
        f"{card.address} ({card.pci_id}): amdgpu is loaded but KFD does not show this GPU: it cannot compute here",
    )
    notes.append(problem)
    return Device(
        vendor="amd",
        kind="gpu",
        name=_name(tree, card, known.name, known.arch),
        arch=known.arch,
        index=index,
        memory_bytes=tree.integer(f"sys/bus/pci/devices/{card.address}/mem_info_vram_total"),
        features=(*((INTEGRATED,) if integrated(card.pci_id) else ()), feature),
        pci_address=card.address,
        pci_id=card.pci_id,
        driver=None if feature == NO_DRIVER else version or card.driver,
        source="sysfs",
        numa_node=card.numa_node,
        problem=problem,
    )


def _name(tree: Tree, card: PciDevice, from_table: str, table_arch: str) -> str:
    if table_arch != UNKNOWN_ARCH:
        return from_table
    return tree.text(f"sys/bus/pci/devices/{card.address}/product_name") or from_table


def _named_by_amdsmi(devices: list[Device], notes: list[str]) -> list[Device]:
    """The same devices with amdsmi's market names, where amdsmi is installed; sysfs has already said the rest."""
    try:
        import amdsmi
    except ImportError:
        return devices
    except Exception as exc:  # amdsmi loads its C library on import and raises whatever that raises
        notes.append(f"amdsmi cannot be imported ({type(exc).__name__}: {exc}): names are from the id table")
        return devices
    try:
        return with_market_names(amdsmi, devices)
    except Exception as exc:  # amdsmi raises its own classes
        notes.append(f"amdsmi failed ({type(exc).__name__}: {exc}): names are from the id table")
        return devices


def with_market_names(amdsmi: Any, devices: list[Device]) -> list[Device]:
    """Replace names by what amdsmi calls the GPUs.

    Args:
        amdsmi: the vendor's module.
        devices: as found in sysfs, matched by PCI address.

    Raises:
        amdsmi.AmdSmiException: no driver, no permission.
    """
    amdsmi.amdsmi_init()
    try:
        names = {}
        for handle in amdsmi.amdsmi_get_processor_handles():
            address = str(amdsmi.amdsmi_get_gpu_device_bdf(handle)).lower()
            names[address] = str(amdsmi.amdsmi_get_gpu_asic_info(handle).get("market_name") or "").strip()
    finally:
        amdsmi.amdsmi_shut_down()
    # N/A is amdsmi's word for what it cannot tell.
    return [
        replace(d, name=names[d.pci_address]) if d.pci_address and names.get(d.pci_address, "N/A") not in ("", "N/A") else d
        for d in devices
    ]
