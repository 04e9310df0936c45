"""Intel GPUs: discrete Arc, Flex and Max, from PCI ids and the i915 or xe driver's sysfs files."""

from __future__ import annotations

from attnkit.hardware.bus import obstacle
from attnkit.hardware.device import NO_DRIVER, Device, ProbeResult
from attnkit.hardware.ids import INTEL, Known, lookup
from attnkit.hardware.pci import PciDevice, gpus
from attnkit.hardware.tree import Tree

_DRIVERS = ("xe", "i915")


def probe(tree: Tree, pci: tuple[PciDevice, ...]) -> ProbeResult:
    """List the discrete Intel GPUs. A display controller outside the table is taken for an integrated one: a note only."""
    notes: list[str] = []
    devices: list[Device] = []
    for card in gpus(pci, INTEL):
        known = lookup(card.pci_id, card.revision)
        if known is None:
            notes.append(f"{card.address}: Intel display controller {card.pci_id} is not a known discrete GPU; left out")
            continue
        devices.append(_device(tree, card, known, len(devices), notes))
    return ProbeResult("intel", tuple(devices), notes=tuple(notes))


def _device(tree: Tree, card: PciDevice, known: Known, index: int, notes: list[str]) -> Device:
    blocked = obstacle(tree, card, _DRIVERS, ("dev/dri",))
    if blocked is not None:
        notes.append(blocked[1])
    return Device(
        vendor="intel",
        kind="gpu",
        name=known.name,
        arch=known.arch,
        index=index,
        memory_bytes=_memory(tree, card.address) or None,
        units=known.units,
        features=(blocked[0],) if blocked else (),
        pci_address=card.address,
        pci_id=card.pci_id,
        driver=None if blocked and blocked[0] == NO_DRIVER else card.driver,
        source="sysfs",
        numa_node=card.numa_node,
        problem=blocked[1] if blocked else None,
    )


def _memory(tree: Tree, address: str) -> int:
    """Bytes of device memory: xe tells each tile's, i915 the card's (kernels that have the file); 0 where neither does."""
    base = f"sys/bus/pci/devices/{address}"
    tiles = [name for name in tree.names(base) if name.startswith("tile")]
    of_tiles = sum(tree.integer(f"{base}/{tile}/physical_vram_size_bytes") or 0 for tile in tiles)
    if of_tiles:
        return of_tiles
    cards = [name for name in tree.names(f"{base}/drm") if name.startswith("card")]
    return sum(tree.integer(f"{base}/drm/{card}/lmem_total_bytes") or 0 for card in cards)
