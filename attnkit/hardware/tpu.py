"""Google TPUs: the chips on PCI, and the device nodes through which the runtime opens them."""

from __future__ import annotations

import re

from attnkit.hardware.device import NO_DEVICE_NODE, Device, ProbeResult
from attnkit.hardware.ids import GOOGLE, UNKNOWN_ARCH, Known, lookup
from attnkit.hardware.pci import PciDevice
from attnkit.hardware.tree import Tree

# Google's vendor id is on its network and storage functions too; what is no chip has a class of its own (02 network,
# 01 storage), the TPU has ff00 (unassigned) or 1200 (processing accelerator).
_CHIP_CLASSES = frozenset({"ff00", "1200"})


def probe(tree: Tree, pci: tuple[PciDevice, ...]) -> ProbeResult:
    """List the TPU chips, one device a chip (v7x shows two functions a chip)."""
    notes: list[str] = []
    nodes = _nodes(tree)
    devices: list[Device] = []
    seen: set[str] = set()
    for card in (d for d in pci if d.vendor == GOOGLE):
        chip = card.address.rpartition(".")[0]
        known = lookup(card.pci_id, card.subsystem)
        if chip in seen or (known is None and card.pci_class not in _CHIP_CLASSES):
            continue
        seen.add(chip)
        if known is None:
            known = Known(f"Google TPU {card.pci_id}", UNKNOWN_ARCH)
            notes.append(f"{card.address}: Google id {card.pci_id} is not in the id table; listed with architecture 'unknown'")
        devices.append(_device(card, known, len(devices), bool(nodes)))
    if devices and not nodes:
        notes.append("TPU chips are on PCI but there is no /dev/accel* and no /dev/vfio/N: not passed into this container")
    if nodes and not devices and any(n.startswith("accel") for n in nodes):
        notes.append(f"there is /dev/{nodes[0]} but no Google chip on PCI: not taken for a TPU")
    return ProbeResult("tpu", tuple(devices), notes=tuple(notes))


def _nodes(tree: Tree) -> list[str]:
    """Device nodes of TPUs: accel0 … up to v4, vfio/0 … (the number is the IOMMU group's) since v5."""
    accel = [name for name in tree.names("dev") if re.fullmatch(r"accel\d+", name)]
    vfio = [f"vfio/{name}" for name in tree.names("dev/vfio") if name.isdecimal()]
    return accel + vfio


def _device(card: PciDevice, known: Known, index: int, has_node: bool) -> Device:
    return Device(
        vendor="google",
        kind="tpu",
        name=known.name,
        arch=known.arch,
        index=index,
        memory_bytes=known.memory_bytes,
        units=known.units,
        features=() if has_node else (NO_DEVICE_NODE,),
        pci_address=card.address,
        pci_id=card.pci_id,
        driver=card.driver,
        source="devnode" if has_node else "sysfs",
        numa_node=card.numa_node,
        problem=None
        if has_node
        else f"{card.address}: no /dev/accel* and no /dev/vfio/N here: the chip is not passed into this container",
    )
