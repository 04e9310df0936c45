"""Which PCI id is which product, and which die is which architecture.

Ids and product names come from the PCI ID database, in pci_ids.tsv (`tools/hardware/pci_ids.py` writes it). Here are the rules
by hand: the architecture of each die, products that the database does not tell apart, and what the vendors' own tools
call them. An id that nobody knows is still listed by the probes, with architecture "unknown". Sources: the CUDA GPU list and
NVIDIA's open kernel modules (dies), LLVM's AMDGPU processor table (gfx names), libdrm's amdgpu.ids (revisions of one AMD id),
Intel's hardware table (Xe cores), jax's hardware_utils.py and Google's tpu-info (TPU ids, memory, cores a chip).
"""

from __future__ import annotations

import pkgutil
import re
from functools import cache
from typing import NamedTuple

from attnkit.hardware.device import NO_TENSOR_CORES

NVIDIA, AMD, INTEL, GOOGLE = "10de", "1002", "8086", "1ae0"

UNKNOWN_ARCH = "unknown"


class Known(NamedTuple):
    """What the table says about one PCI id.

    Args:
        name: marketing name.
        arch: sm_90, gfx942, xe-hpg, tpu-v5e …
        units: Xe cores or TPU cores of the product; None where the id alone does not settle it.
        memory_bytes: device memory; None where the id alone does not settle it.
        features: what the die lacks ("no-tensor-cores").
    """

    name: str
    arch: str
    units: int | None = None
    memory_bytes: int | None = None
    features: tuple[str, ...] = ()


DIES: dict[str, dict[str, str]] = {
    NVIDIA: {
        **dict.fromkeys(("GK104", "GK106", "GK107"), "sm_30"),
        **dict.fromkeys(("GK110", "GK180", "GK208"), "sm_35"),
        "GK210": "sm_37",
        **dict.fromkeys(("GM107", "GM108"), "sm_50"),
        **dict.fromkeys(("GM200", "GM204", "GM206"), "sm_52"),
        "GP100": "sm_60",
        **dict.fromkeys(("GP102", "GP104", "GP106", "GP107", "GP108"), "sm_61"),
        "GV100": "sm_70",
        **dict.fromkeys(("TU102", "TU104", "TU106", "TU116", "TU117"), "sm_75"),
        "GA100": "sm_80",
        **dict.fromkeys(("GA102", "GA103", "GA104", "GA106", "GA107"), "sm_86"),
        **dict.fromkeys(("AD102", "AD103", "AD104", "AD106", "AD107"), "sm_89"),
        "GH100": "sm_90",
        **dict.fromkeys(("GB100", "GB102"), "sm_100"),
        "GB110": "sm_103",
        "GB10B": "sm_110",
        **dict.fromkeys(("GB202", "GB203", "GB205", "GB206", "GB207"), "sm_120"),
        "GB20B": "sm_121",
    },
    AMD: {
        "Vega 10": "gfx900",
        "Vega 12": "gfx904",
        "Vega 20": "gfx906",
        "Arcturus": "gfx908",
        "Aldebaran": "gfx90a",
        "Aqua Vanjaram": "gfx942",
        "Navi 10": "gfx1010",
        "Navi 12": "gfx1011",
        "Navi 14": "gfx1012",
        "Navi 21": "gfx1030",
        "Navi 22": "gfx1031",
        "Navi 23": "gfx1032",
        "Navi 24": "gfx1034",
        "Navi 31": "gfx1100",
        "Navi 32": "gfx1101",
        "Navi 33": "gfx1102",
        "Navi 44": "gfx1200",
        "Navi 48": "gfx1201",
        "Strix Halo": "gfx1151",
        # Part of a processor, for its display; `integrated` says so.
        **dict.fromkeys(("Kaveri", "Spectre"), "gfx700"),
        **dict.fromkeys(("Kabini", "Temash", "Mullins"), "gfx703"),
        **dict.fromkeys(("Carrizo", "Wani", "Bristol Ridge"), "gfx801"),
        "Stoney": "gfx810",
        "Raven Ridge": "gfx902",
        "Picasso": "gfx902",
        "Renoir": "gfx90c",
        "Lucienne": "gfx90c",
        "Cezanne": "gfx90c",
        "Barcelo": "gfx90c",
        "VanGogh": "gfx1033",
        "Rembrandt": "gfx1035",
        "Raphael": "gfx1036",
        "Granite Ridge": "gfx1036",
        "Mendocino": "gfx1037",
        "Phoenix": "gfx1103",
        "Phoenix1": "gfx1103",
        "Phoenix2": "gfx1103",
        "HawkPoint1": "gfx1103",
        "HawkPoint2": "gfx1103",
        "Strix": "gfx1150",
        "Krackan": "gfx1152",
        "Krackan2": "gfx1152",
    },
    INTEL: {
        "DG2": "xe-hpg",
        "ATS-M": "xe-hpg",
        "Battlemage G21": "xe2-hpg",
        "Battlemage G31": "xe2-hpg",
        "Ponte Vecchio": "xe-hpc",
    },
}
"""Vendor, then the die as the PCI ID database calls it, to the architecture. The longest name that begins a line counts."""

_WITHOUT_TENSOR_CORES = frozenset({"TU116", "TU117"})
_INTEGRATED = frozenset(
    {"Kaveri", "Spectre", "Kabini", "Temash", "Mullins", "Carrizo", "Wani", "Bristol Ridge", "Stoney"}
    | {"Raven Ridge", "Picasso", "Renoir", "Lucienne", "Cezanne", "Barcelo", "VanGogh", "Rembrandt", "Raphael", "Granite Ridge"}
    | {"Mendocino", "Phoenix", "Phoenix1", "Phoenix2", "HawkPoint1", "HawkPoint2", "Strix", "Krackan", "Krackan2"}
)

# What the database lacks, or says otherwise than the vendor's tool does: id or id:revision to (name, architecture).
_BY_HAND = {
    "10de:20b2": ("NVIDIA A100-SXM4-80GB", "sm_80"),
    "10de:2321": ("NVIDIA H100 NVL", "sm_90"),
    "10de:2330": ("NVIDIA H100 80GB HBM3", "sm_90"),
    "10de:2335": ("NVIDIA H200", "sm_90"),
    "10de:233a": ("NVIDIA H800 NVL", "sm_90"),
    "10de:2920": ("NVIDIA B100", "sm_100"),
    "1002:66a1": ("AMD Instinct MI60 / MI50", "gfx906"),
    "1002:74a2": ("AMD Instinct MI308X", "gfx942"),
    "1002:74a8": ("AMD Instinct MI308X HF", "gfx942"),
    "1002:74b6": ("AMD Instinct MI308X", "gfx942"),
    # The database calls the die of the MI350 series Aqua Vanjaram, too.
    "1002:75a0": ("AMD Instinct MI350X", "gfx950"),
    "1002:75a3": ("AMD Instinct MI355X", "gfx950"),
    "1002:75a8": ("AMD Instinct MI350P", "gfx950"),
    "1002:75b0": ("AMD Instinct MI350X VF", "gfx950"),
    "1002:75b3": ("AMD Instinct MI355X VF", "gfx950"),
    "1002:744c:c8": ("AMD Radeon RX 7900 XTX", "gfx1100"),
    "1002:744c:cc": ("AMD Radeon RX 7900 XT", "gfx1100"),
    "1002:744c:ce": ("AMD Radeon RX 7900 GRE", "gfx1100"),
    "1002:744c:cf": ("AMD Radeon RX 7900M", "gfx1100"),
    "1002:744c": ("AMD Radeon RX 7900 series", "gfx1100"),
    "1002:7480": ("AMD Radeon RX 7600 series", "gfx1102"),
    "1002:747e:c8": ("AMD Radeon RX 7800 XT", "gfx1101"),
    "1002:747e:ff": ("AMD Radeon RX 7700 XT", "gfx1101"),
    "1002:7550": ("AMD Radeon RX 9070 series", "gfx1201"),
    "1002:7550:c0": ("AMD Radeon RX 9070 XT", "gfx1201"),
    "1002:7550:c3": ("AMD Radeon RX 9070", "gfx1201"),
    "1002:7551:c0": ("AMD Radeon AI PRO R9700", "gfx1201"),
    "1002:7551:c8": ("AMD Radeon AI PRO R9600D", "gfx1201"),
}

# Xe cores of the whole PCI device, by what its name contains.
_XE_CORES = {
    **{
        "Arc A770": 32,
        "Arc A750 ": 28,
        "Arc A580 ": 24,
        "Arc A380 ": 8,
        "Arc A310 ": 6,
        "Arc Pro A40/A50": 8,
        "Arc Pro A60 ": 16,
    },
    **{"Flex 170 ": 32, "Flex 140": 8, "Arc B580": 20, "Arc B570": 18, "Arc Pro B60": 20, "Arc Pro B50": 16},
    **{"Max 1550 ": 128, "Max 1100 ": 56},
}

# id, or id:subsystem where generations share one id: (generation, GiB of HBM a chip, cores a chip)
_TPU_CHIPS = {
    "0027:004e": ("v2", 16, 2),
    "0027:004f": ("v3", 32, 2),
    "005e": ("v4", 32, 2),
    "0062": ("v5p", 95, 2),
    "0063": ("v5e", 16, 1),
    "006f": ("v6e", 32, 1),
    "0076": ("v7x", 192, 2),
}

# Display controllers that cannot compute: server management chips and plain framebuffers, left out without a word.
_NO_COMPUTE_VENDORS = frozenset({"1a03", "102b", "1234", "1b36", "1af4", "15ad", "1013", "1414", "80ee"})
_NO_COMPUTE_IDS = frozenset({"1002:515e", "1002:4752"})


def _name(vendor: str, die: str, product: str) -> str:
    """A product as its vendor's tool spells it: "NVIDIA GeForce RTX 4070 Laptop GPU"."""
    product = re.sub(r" (?:Rev\. \w+|Lite Hash Rate)$", "", product)
    product = re.sub(r" (?:Max-Q / Mobile|Mobile / Max-Q|Max-Q|Mobile)\b", " Laptop GPU", product)
    if vendor == INTEL:
        product = product.removeprefix("Intel ") or die
        return f"Intel {product}{' Graphics' if product.startswith('Arc') else ''}"
    maker = "AMD" if vendor == AMD else "NVIDIA"
    if product.startswith((maker, "Tesla", "Quadro")):
        return product
    return f"{maker} {product or die}"


def without_tensor_cores(name: str) -> bool:
    """True for a Turing product whose name says so: some GTX 1650 are made of dies with tensor cores, turned off."""
    return re.search(r"GTX 16\d0|\bMX[45]50\b|\bT(?:400|500|550|600|1000|1200)\b|Quadro T\d+|CMP 30HX", name) is not None


TABLE = "pci_ids.tsv"


class Row(NamedTuple):
    """One device of the PCI ID database; `product` is '' where it has no name."""

    vendor: str
    die: str
    device: str
    product: str


def rows() -> tuple[Row, ...]:
    """The lines of pci_ids.tsv. A node reads them out of the archive that Ansible sent, so this opens no path."""
    data = pkgutil.get_data("attnkit.hardware", TABLE) or b""
    return tuple(Row(*line.split("\t")) for line in data.decode().splitlines() if not line.startswith("#"))


@cache
def _known() -> tuple[dict[str, Known], dict[str, Known]]:
    """By PCI id: accelerators, and GPUs that are part of a processor."""
    serving: dict[str, Known] = {}
    integrated: dict[str, Known] = {}
    for vendor, die, device, product in rows():
        name, arch = _name(vendor, die, product), DIES[vendor][die]
        if die in _INTEGRATED:
            integrated[f"{vendor}:{device}"] = Known(name, arch)
            continue
        turing = vendor == NVIDIA and die.startswith("TU")
        features = (NO_TENSOR_CORES,) if die in _WITHOUT_TENSOR_CORES or (turing and without_tensor_cores(name)) else ()
        units = next((n for word, n in _XE_CORES.items() if vendor == INTEL and word in f"{name} "), None)
        serving[f"{vendor}:{device}"] = Known(name, arch, units, None, features)
    serving.update({key: Known(name, arch) for key, (name, arch) in _BY_HAND.items()})
    for key, (generation, gib, cores) in _TPU_CHIPS.items():
        serving[f"{GOOGLE}:{key}"] = Known(f"Google TPU {generation}", f"tpu-{generation}", cores, gib * 2**30)
    return serving, integrated


def known_ids() -> dict[str, Known]:
    """Every accelerator: "vendor:device", or "vendor:device:revision" (for Google :subsystem), to what it is."""
    return dict(_known()[0])


def lookup(pci_id: str, detail: str | None = None) -> Known | None:
    """Find a PCI id.

    Args:
        pci_id: "vendor:device" in lower-case hexadecimal, as 10de:2330.
        detail: the revision ("c8"; Google: the subsystem device, "004e"), where one id covers several products.

    Returns:
        The most exact entry, or None where the table has none.
    """
    serving, integrated = _known()
    exact = serving.get(f"{pci_id}:{detail}") if detail else None
    return exact or serving.get(pci_id) or integrated.get(pci_id)


def integrated_ids(vendor: str) -> tuple[str, ...]:
    """A vendor's GPUs that are part of a processor: the four digits of each device."""
    return tuple(sorted(key.partition(":")[2] for key in _known()[1] if key.startswith(vendor)))


def integrated(pci_id: str) -> bool:
    """True for a GPU that is part of a processor and there for its display (not for Strix Halo, which people serve from)."""
    return pci_id in _known()[1]


def cannot_compute(pci_id: str) -> bool:
    """True for the display chips of server management controllers and virtual machines."""
    return pci_id.partition(":")[0] in _NO_COMPUTE_VENDORS or pci_id in _NO_COMPUTE_IDS
