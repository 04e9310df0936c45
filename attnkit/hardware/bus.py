"""What the GPU probes share: describe a card by its PCI entry, and say why a card that is there cannot be used."""

from __future__ import annotations

from attnkit.hardware.device import NO_DEVICE_NODE, NO_DRIVER
from attnkit.hardware.ids import UNKNOWN_ARCH, Known, lookup
from attnkit.hardware.pci import PciDevice
from attnkit.hardware.tree import Tree

_FOR_MACHINES = ("vfio-pci", "pci-stub", "xen-pciback")


def describe(card: PciDevice, maker: str, notes: list[str]) -> Known:
    """The table's entry for a card, or a nameless one of unknown architecture with a note that says so."""
    known = lookup(card.pci_id, card.revision)
    if known is None:
        notes.append(f"{card.address}: {maker} id {card.pci_id} is not in the id table: architecture {UNKNOWN_ARCH!r}")
        return Known(f"{maker} {card.pci_id}", UNKNOWN_ARCH)
    return known


def obstacle(tree: Tree, card: PciDevice, drivers: tuple[str, ...], nodes: tuple[str, ...]) -> tuple[str, str] | None:
    """Why a card cannot be used from here: the feature and one sentence; None where nothing is in the way.

    Args:
        tree: where to look for device nodes.
        card: the PCI entry.
        drivers: kernel modules that can compute on it ("i915", "xe").
        nodes: paths of which one must exist, relative to the root; looked at only where the root has a dev folder,
            because a recorded tree may come without one.
    """
    wanted = " or ".join(drivers)
    where = f"{card.address} ({card.pci_id})"
    if card.driver is None:
        return NO_DRIVER, f"{where}: present on PCI but driver not loaded (wanted: {wanted})"
    if card.driver not in drivers:
        kept = "; it is kept for a virtual machine" if card.driver in _FOR_MACHINES else ""
        return NO_DRIVER, f"{where}: present on PCI but driver not loaded: bound to {card.driver!r}, wanted: {wanted}{kept}"
    if tree.exists("dev") and not any(tree.exists(node) for node in nodes):
        absent = f"driver {card.driver} is loaded but there is no /{' or /'.join(nodes)} here"
        return NO_DEVICE_NODE, f"{where}: {absent}: the device is not passed into this container"
    return None
