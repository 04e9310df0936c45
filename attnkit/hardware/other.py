"""Accelerators that attnkit does not serve from: found so that their machine is not taken for one without an accelerator.

By PCI id and class, and by the device nodes that their drivers make where PCI shows nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from attnkit.hardware.device import NOT_SERVED, Device, ProbeResult
from attnkit.hardware.ids import AMD, GOOGLE, INTEL, NVIDIA
from attnkit.hardware.pci import COMPUTE_CLASSES, PciDevice
from attnkit.hardware.tree import Tree


class Maker(NamedTuple):
    """A vendor of accelerators.

    Args:
        name: what people call its accelerators.
        devices: pattern of the device ids that are accelerators, whatever their class ("": decided by `classes`).
        classes: PCI classes of its accelerators.
    """

    name: str
    devices: str = ""
    classes: frozenset[str] = COMPUTE_CLASSES


_PROCESSING = frozenset({"1200"})

MAKERS = {
    "1da3": Maker("Intel Gaudi (Habana)"),
    "1d0f": Maker("AWS Neuron", "7[0-9a-f]6[0-9a-f]", frozenset()),
    "19e5": Maker(
        "Huawei Ascend", "d[0-9a-f]{3}", frozenset()
    ),  # its other functions are storage, networks, a display, ZIP engines
    "17cb": Maker("Qualcomm Cloud AI", "a080|a100|a110", _PROCESSING),
    "1d95": Maker("Graphcore IPU", ".*"),
    "cabc": Maker("Cambricon MLU", ".*"),
    "1e52": Maker("Tenstorrent", ".*"),
    "1e60": Maker("Hailo", ".*"),
    "1ac1": Maker("Google Coral Edge TPU", "089a"),
    "1ed5": Maker("Moore Threads"),
    "9999": Maker("MetaX"),
    "1e3e": Maker("Iluvatar CoreX"),
    "1e36": Maker("Enflame", ".*"),
    "1eff": Maker("Rebellions", ".*"),
    "1ed2": Maker("FuriosaAI", ".*"),
    "1de0": Maker("Groq", ".*"),
    "1e0d": Maker("SambaNova", ".*"),
    "1f56": Maker("SAPEON"),
    "1f82": Maker("d-Matrix", "0011"),
    "1f9d": Maker("Axelera", ".*"),
    "1fe9": Maker("MemryX", ".*"),
    "1ff4": Maker("DEEPX"),
    "209f": Maker("Mobilint"),
    "20a1": Maker("Etched", ".*"),
    "1e67": Maker("Untether AI", ".*"),
    "1e38": Maker("Blaize", ".*"),
    "1ec6": Maker("Vastai"),
    "1d22": Maker("Baidu Kunlun", "368[0-9a-f]"),
    "1ea0": Maker("Tencent", "2a(16|20|22|24|26)"),
    "1e30": Maker("Sophgo", "168[0-9a-f]"),
    "1f1c": Maker("Sophgo", "168[0-9a-f]"),
    "cdfa": Maker("NextSilicon", ".*"),
    "4c54": Maker("Lisuan"),
    "1eca": Maker("Lightmatter", ".*"),
    "1d94": Maker("Hygon DCU"),
}
"""Vendor id to its accelerators. Sources: the PCI ID database, the vendors' Linux drivers (Huawei, Qualcomm, AWS)."""

# Processing accelerators that compute no attention: FPGAs, compression, video, and the NPUs inside processors.
_NO_ATTENTION = frozenset(
    {INTEL, "1022", "10ee", "1172", "19e5", "1d0f", "1d82", "14e4", "177d", "15b3", "1dd8", "1ded", "1ea0"}
)
_SERVED = frozenset({NVIDIA, AMD, GOOGLE})

# Device nodes in /dev by pattern. Coral's and Intel's NPU's nodes are /dev/apex_0 and /dev/accel/accel0.
_NODES = (
    (r"neuron\d+", "AWS Neuron"),
    (r"davinci\d+", "Huawei Ascend"),
    (r"hl\d+", "Intel Gaudi (Habana)"),
    (r"accel\d+", "an accelerator of unknown make"),
    (r"accel/accel\d+", "an accelerator of unknown make"),
    (r"ipu\d+", "Graphcore IPU"),
    (r"cambricon_dev\d+", "Cambricon MLU"),
    (r"tenstorrent/\d+", "Tenstorrent"),
    (r"hailo\d+", "Hailo"),
    (r"apex_\d+", "Google Coral Edge TPU"),
    (r"rbln\d+", "Rebellions"),
    (r"rngd/.*|npu\d+", "FuriosaAI"),
    (r"mtgpu\.\d+", "Moore Threads"),
    (r"iluvatar\d+", "Iluvatar CoreX"),
    (r"gcu\d+", "Enflame"),
    (r"xpu\d+", "Baidu Kunlun"),
)
_FOLDERS = ("accel", "tenstorrent", "rngd")
_INTEGRATED_DRIVERS = frozenset({"intel_vpu", "amdxdna"})


def probe(tree: Tree, pci: tuple[PciDevice, ...]) -> ProbeResult:
    """List the accelerators of vendors that attnkit does not serve; NPUs inside processors are a note."""
    notes: list[str] = []
    devices: list[Device] = []
    for card in pci:
        name = _accelerator(card)
        if name is not None:
            devices.append(_device(name, len(devices), card))
        elif _is_npu(card):
            notes.append(f"{card.address}: {card.pci_id} is an NPU inside a processor: left out, nothing serves from it")
        elif card.pci_class == "1200" and card.vendor not in _SERVED:
            notes.append(f"{card.address}: {card.pci_id} computes no attention (an FPGA or a fixed-function engine): left out")
    if not devices:
        explained = any((c.vendor == GOOGLE and c.pci_class in ("ff00", "1200")) or _is_npu(c) for c in pci)
        devices = [_device(name, index, node=node) for index, (node, name) in enumerate(_nodes(tree, explained))]
    return ProbeResult("other", tuple(devices), notes=tuple(notes))


def _is_npu(card: PciDevice) -> bool:
    inside = card.pci_class == "1200" and card.vendor in (INTEL, "1022")
    return inside or card.driver in _INTEGRATED_DRIVERS or card.pci_id in ("1022:1502", "1022:17f0")


def _accelerator(card: PciDevice) -> str | None:
    """What kind of accelerator a PCI function is, None where it is none or one that another probe lists."""
    maker = MAKERS.get(card.vendor)
    device = card.pci_id.partition(":")[2]
    if maker is not None and (card.pci_class in maker.classes or (maker.devices and re.fullmatch(maker.devices, device))):
        return f"{maker.name} {card.pci_id}"
    if card.vendor in _SERVED or card.vendor in _NO_ATTENTION or maker is not None:
        return None
    # A 3D controller without a display, or a processing accelerator, of a vendor that nobody here knows.
    return f"an accelerator of unknown make {card.pci_id}" if card.pci_class in ("0302", "1200") else None


def _nodes(tree: Tree, explained: bool) -> list[tuple[str, str]]:
    """Device nodes of accelerators, with their kind; not accel* where a TPU or an NPU on PCI explains them."""
    listed = tree.names("dev") + [f"{folder}/{name}" for folder in _FOLDERS for name in tree.names(f"dev/{folder}")]
    found = []
    for node in listed:
        name = next((name for pattern, name in _NODES if re.fullmatch(pattern, node)), None)
        if name is None or (explained and node.startswith("accel")):
            continue
        driver = tree.link_name(f"sys/class/accel/{node.rpartition('/')[2]}/device/driver")
        if driver not in _INTEGRATED_DRIVERS:
            found.append((node, "Intel Gaudi (Habana)" if driver == "habanalabs" else name))
    return found


def _device(name: str, index: int, card: PciDevice | None = None, node: str = "") -> Device:
    where = card.address if card else f"/dev/{node}"
    return Device(
        vendor="other",
        kind="accelerator",
        name=name,
        arch="unknown",
        index=index,
        features=(NOT_SERVED,),
        pci_address=card.address if card else None,
        pci_id=card.pci_id if card else None,
        driver=card.driver if card else None,
        source="sysfs" if card else "devnode",
        problem=f"{where}: {name}: attnkit does not serve from accelerators of this kind",
    )
