"""The PCI devices of a machine, read from sysfs once for all vendors."""

from __future__ import annotations

import re
from dataclasses import dataclass

from attnkit.hardware.ids import GOOGLE, cannot_compute
from attnkit.hardware.tree import Tree

_DEVICES = "sys/bus/pci/devices"
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")

# Class codes (first four hexadecimal digits) of what can hold an accelerator: VGA, 3D and other display controllers,
# processing accelerators (MI300X).
COMPUTE_CLASSES = frozenset({"0300", "0302", "0380", "1200"})


@dataclass(frozen=True)
class PciDevice:
    """One function on the PCI bus.

    Args:
        address: 0000:3b:00.0.
        pci_id: vendor:device in lower-case hexadecimal, 10de:2330.
        pci_class: class and subclass, four hexadecimal digits, 0302.
        driver: the kernel module bound to it, None where none is.
        revision, subsystem: two and four hexadecimal digits, None where not readable.
        numa_node: the NUMA node it hangs on, None where the kernel does not say.
    """

    address: str
    pci_id: str
    pci_class: str
    driver: str | None = None
    revision: str | None = None
    subsystem: str | None = None
    numa_node: int | None = None

    @property
    def vendor(self) -> str:
        """The vendor's four hexadecimal digits."""
        return self.pci_id.partition(":")[0]


def read_pci(tree: Tree) -> tuple[PciDevice, ...]:
    """Every PCI function with readable ids, in the order of addresses. Unreadable ones are left out (see tree.problems)."""
    devices = []
    for address in tree.names(_DEVICES):
        if not _ADDRESS.fullmatch(address.lower()):
            continue
        base = f"{_DEVICES}/{address}"
        vendor, device = _hex(tree.text(f"{base}/vendor"), 4), _hex(tree.text(f"{base}/device"), 4)
        pci_class = _hex(tree.text(f"{base}/class"), 6)
        if vendor is None or device is None or pci_class is None:
            tree.problems.append(f"{base}: vendor, device or class is missing or not a hexadecimal number; passed over")
            continue
        interesting = pci_class[:2] in ("03", "12") or vendor == GOOGLE
        numa_node = tree.integer(f"{base}/numa_node") if interesting else None
        devices.append(
            PciDevice(
                address=address.lower(),
                pci_id=f"{vendor}:{device}",
                pci_class=pci_class[:4],
                driver=_driver(tree, base) if interesting else None,
                revision=_hex(tree.text(f"{base}/revision"), 2) if interesting else None,
                subsystem=_hex(tree.text(f"{base}/subsystem_device"), 4) if interesting else None,
                numa_node=numa_node if numa_node is not None and numa_node >= 0 else None,
            )
        )
    return tuple(devices)


def gpus(devices: tuple[PciDevice, ...], vendor: str) -> tuple[PciDevice, ...]:
    """One vendor's display controllers and processing accelerators, without the chips that cannot compute."""
    return tuple(d for d in devices if d.vendor == vendor and d.pci_class in COMPUTE_CLASSES and not cannot_compute(d.pci_id))


def _driver(tree: Tree, base: str) -> str | None:
    return tree.link_name(f"{base}/driver") or tree.fields(f"{base}/uevent").get("DRIVER") or None


def _hex(text: str | None, digits: int) -> str | None:
    try:
        value = int(text or "", 16)
    except ValueError:
        return None
    return f"{value:0{digits}x}" if 0 <= value < 16**digits else None
