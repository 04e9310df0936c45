"""The PCI ids that attnkit knows by name, as data: marketing name and architecture of each.

Grouped by vendor and then by architecture, so that one look shows what a generation holds. An id that is missing here is
still listed by the probes, with architecture "unknown". Sources: the PCI ID database (names, dies), libdrm's amdgpu.ids
(revisions of one AMD id), the CUDA GPU list (compute capability of each die), LLVM's AMDGPU processor table (gfx names),
Intel's hardware table (Xe cores), jax's hardware_utils.py and Google's tpu-info (TPU ids, memory, cores a chip).
"""

from __future__ import annotations

from typing import NamedTuple

NVIDIA, AMD, INTEL, GOOGLE = "10de", "1002", "8086", "1ae0"

UNKNOWN_ARCH = "unknown"


class Known(NamedTuple):
    """What the table says about one PCI id.

    Args:
        name: marketing name, spelled as the vendor's own tool spells it where it has one.
        arch: sm_90, gfx942, xe-hpg, tpu-v5e …
        units: Xe cores or TPU cores of the product; None where the id alone does not settle it.
        memory_bytes: device memory; None where the id alone does not settle it.
    """

    name: str
    arch: str
    units: int | None = None
    memory_bytes: int | None = None


_NVIDIA_BY_ARCH = {
    "sm_60": {
        "15f7": "Tesla P100-PCIE-12GB",
        "15f8": "Tesla P100-PCIE-16GB",
        "15f9": "Tesla P100-SXM2-16GB",
    },
    "sm_61": {
        "1b06": "NVIDIA GeForce GTX 1080 Ti",
        "1b38": "Tesla P40",
    },
    "sm_70": {
        "1d81": "NVIDIA TITAN V",
        "1db1": "Tesla V100-SXM2-16GB",
        "1db4": "Tesla V100-PCIE-16GB",
        "1db5": "Tesla V100-SXM2-32GB",
        "1db6": "Tesla V100-PCIE-32GB",
        "1db8": "Tesla V100-SXM3-32GB",
        "1df6": "Tesla V100S-PCIE-32GB",
    },
    "sm_75": {
        "1e02": "NVIDIA TITAN RTX",
        "1e03": "NVIDIA GeForce RTX 2080 Ti",
        "1e04": "NVIDIA GeForce RTX 2080 Ti",
        "1e07": "NVIDIA GeForce RTX 2080 Ti",
        "1e30": "Quadro RTX 6000/8000",
        "1e36": "Quadro RTX 6000",
        "1e78": "Quadro RTX 6000/8000",
        "1e81": "NVIDIA GeForce RTX 2080 SUPER",
        "1e82": "NVIDIA GeForce RTX 2080",
        "1e84": "NVIDIA GeForce RTX 2070 SUPER",
        "1e87": "NVIDIA GeForce RTX 2080",
        "1eb0": "Quadro RTX 5000",
        "1eb1": "Quadro RTX 4000",
        "1eb4": "NVIDIA T4G",
        "1eb8": "Tesla T4",
        "1f02": "NVIDIA GeForce RTX 2070",
        "1f03": "NVIDIA GeForce RTX 2060",
        "1f06": "NVIDIA GeForce RTX 2060 SUPER",
        "1f07": "NVIDIA GeForce RTX 2070",
        "1f08": "NVIDIA GeForce RTX 2060",
        "1f82": "NVIDIA GeForce GTX 1650",
        "2182": "NVIDIA GeForce GTX 1660 Ti",
        "2184": "NVIDIA GeForce GTX 1660",
        "21c4": "NVIDIA GeForce GTX 1660 SUPER",
    },
    "sm_80": {
        "20b0": "NVIDIA A100-SXM4-40GB",
        "20b1": "NVIDIA A100-PCIE-40GB",
        "20b2": "NVIDIA A100-SXM4-80GB",
        "20b3": "NVIDIA A100-SXM-64GB",
        "20b5": "NVIDIA A100 80GB PCIe",
        "20b7": "NVIDIA A30",
        "20b8": "NVIDIA A100X",
        "20b9": "NVIDIA A30X",
        "20bd": "NVIDIA A800-SXM4-40GB",
        "20f1": "NVIDIA A100-PCIE-40GB",
        "20f3": "NVIDIA A800-SXM4-80GB",
        "20f5": "NVIDIA A800 80GB PCIe",
        "20f6": "NVIDIA A800 40GB PCIe",
    },
    "sm_86": {
        "2203": "NVIDIA GeForce RTX 3090 Ti",
        "2204": "NVIDIA GeForce RTX 3090",
        "2206": "NVIDIA GeForce RTX 3080",
        "2207": "NVIDIA GeForce RTX 3070 Ti",
        "2208": "NVIDIA GeForce RTX 3080 Ti",
        "220a": "NVIDIA GeForce RTX 3080",
        "2216": "NVIDIA GeForce RTX 3080",
        "2230": "NVIDIA RTX A6000",
        "2231": "NVIDIA RTX A5000",
        "2232": "NVIDIA RTX A4500",
        "2233": "NVIDIA RTX A5500",
        "2235": "NVIDIA A40",
        "2236": "NVIDIA A10",
        "2237": "NVIDIA A10G",
        "2238": "NVIDIA A10M",
        "2482": "NVIDIA GeForce RTX 3070 Ti",
        "2484": "NVIDIA GeForce RTX 3070",
        "2486": "NVIDIA GeForce RTX 3060 Ti",
        "2487": "NVIDIA GeForce RTX 3060",
        "2488": "NVIDIA GeForce RTX 3070",
        "2489": "NVIDIA GeForce RTX 3060 Ti",
        "24b0": "NVIDIA RTX A4000",
        "2503": "NVIDIA GeForce RTX 3060",
        "2504": "NVIDIA GeForce RTX 3060",
        "2531": "NVIDIA RTX A2000",
        "2571": "NVIDIA RTX A2000 12GB",
        "2582": "NVIDIA GeForce RTX 3050",
        "25b6": "NVIDIA A2 / A16",
    },
    "sm_89": {
        "2684": "NVIDIA GeForce RTX 4090",
        "2685": "NVIDIA GeForce RTX 4090 D",
        "26b1": "NVIDIA RTX 6000 Ada Generation",
        "26b2": "NVIDIA RTX 5000 Ada Generation",
        "26b3": "NVIDIA RTX 5880 Ada Generation",
        "26b5": "NVIDIA L40",
        "26b8": "NVIDIA L40G",
        "26b9": "NVIDIA L40S",
        "26ba": "NVIDIA L20",
        "2702": "NVIDIA GeForce RTX 4080 SUPER",
        "2704": "NVIDIA GeForce RTX 4080",
        "2705": "NVIDIA GeForce RTX 4070 Ti SUPER",
        "2782": "NVIDIA GeForce RTX 4070 Ti",
        "2783": "NVIDIA GeForce RTX 4070 SUPER",
        "2786": "NVIDIA GeForce RTX 4070",
        "27b0": "NVIDIA RTX 4000 SFF Ada Generation",
        "27b1": "NVIDIA RTX 4500 Ada Generation",
        "27b2": "NVIDIA RTX 4000 Ada Generation",
        "27b6": "NVIDIA L2",
        "27b8": "NVIDIA L4",
        "2803": "NVIDIA GeForce RTX 4060 Ti",
        "2805": "NVIDIA GeForce RTX 4060 Ti",
        "2882": "NVIDIA GeForce RTX 4060",
        "28b0": "NVIDIA RTX 2000 Ada Generation",
    },
    "sm_90": {
        "2313": "NVIDIA H100 CNX",
        "2321": "NVIDIA H100 NVL",
        "2322": "NVIDIA H800 PCIe",
        "2324": "NVIDIA H800",
        "2329": "NVIDIA H20",
        "232c": "NVIDIA H20-3e",
        "2330": "NVIDIA H100 80GB HBM3",
        "2331": "NVIDIA H100 PCIe",
        "2335": "NVIDIA H200",
        "2336": "NVIDIA H100",
        "2337": "NVIDIA H100 SXM5 64GB",
        "2338": "NVIDIA H100 SXM5 96GB",
        "2339": "NVIDIA H100 SXM5 94GB",
        "233a": "NVIDIA H800 NVL",
        "233b": "NVIDIA H200 NVL",
        "2342": "NVIDIA GH200 120GB / 480GB",
        "2348": "NVIDIA GH200 144G HBM3e",
    },
    "sm_100": {
        "2901": "NVIDIA B200",
        "2920": "NVIDIA B100",
        "2941": "NVIDIA GB200",
        "29bc": "NVIDIA B100",
    },
    "sm_103": {
        "3182": "NVIDIA B300 SXM6 AC",
        "31c2": "NVIDIA GB300",
        "31c3": "NVIDIA GB300",
    },
    "sm_120": {
        "2b85": "NVIDIA GeForce RTX 5090",
        "2b87": "NVIDIA GeForce RTX 5090 D",
        "2b8c": "NVIDIA GeForce RTX 5090 D V2",
        "2bb1": "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "2bb3": "NVIDIA RTX PRO 5000 Blackwell",
        "2bb4": "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "2bb5": "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "2c02": "NVIDIA GeForce RTX 5080",
        "2c05": "NVIDIA GeForce RTX 5070 Ti",
        "2c31": "NVIDIA RTX PRO 4500 Blackwell",
        "2c34": "NVIDIA RTX PRO 4000 Blackwell",
        "2d04": "NVIDIA GeForce RTX 5060 Ti",
        "2d05": "NVIDIA GeForce RTX 5060",
        "2d30": "NVIDIA RTX PRO 2000 Blackwell",
        "2f04": "NVIDIA GeForce RTX 5070",
    },
    "sm_121": {
        "2e12": "NVIDIA GB10",
    },
}

_AMD_BY_ARCH = {
    "gfx906": {
        "66a1": "AMD Instinct MI60 / MI50",
        "66af": "AMD Radeon VII",
    },
    "gfx908": {
        "738c": "AMD Instinct MI100",
        "738e": "AMD Instinct MI100",
    },
    "gfx90a": {
        "7408": "AMD Instinct MI250X",
        "740c": "AMD Instinct MI250X / MI250",
        "740f": "AMD Instinct MI210",
    },
    "gfx942": {
        "74a0": "AMD Instinct MI300A",
        "74a1": "AMD Instinct MI300X",
        "74a2": "AMD Instinct MI308X",
        "74a5": "AMD Instinct MI325X",
        "74a8": "AMD Instinct MI308X HF",
        "74a9": "AMD Instinct MI300X HF",
        "74b5": "AMD Instinct MI300X VF",
        "74b6": "AMD Instinct MI308X",
        "74b9": "AMD Instinct MI325X VF",
        "74bd": "AMD Instinct MI300X HF",
    },
    "gfx950": {
        "75a0": "AMD Instinct MI350X",
        "75a3": "AMD Instinct MI355X",
        "75b0": "AMD Instinct MI350X VF",
        "75b3": "AMD Instinct MI355X VF",
    },
    "gfx1030": {
        "73a1": "AMD Radeon Pro V620",
        "73a3": "AMD Radeon PRO W6800",
        "73a5": "AMD Radeon RX 6950 XT",
        "73af": "AMD Radeon RX 6900 XT",
        "73bf": "AMD Radeon RX 6800/6800 XT/6900 XT",
    },
    "gfx1100": {
        "7448": "AMD Radeon Pro W7900",
        "7449": "AMD Radeon Pro W7800 48GB",
        "744a": "AMD Radeon Pro W7900 Dual Slot",
        "744b": "AMD Radeon Pro W7900D",
        "744c": "AMD Radeon RX 7900 series",
        "744c:c8": "AMD Radeon RX 7900 XTX",
        "744c:cc": "AMD Radeon RX 7900 XT",
        "744c:ce": "AMD Radeon RX 7900 GRE",
        "744c:cf": "AMD Radeon RX 7900M",
        "745e": "AMD Radeon Pro W7800",
    },
    "gfx1101": {
        "7460": "AMD Radeon Pro V710",
        "7461": "AMD Radeon Pro V710 MxGPU",
        "7470": "AMD Radeon Pro W7700",
        "747e": "AMD Radeon RX 7700 XT/7800 XT",
        "747e:c8": "AMD Radeon RX 7800 XT",
        "747e:ff": "AMD Radeon RX 7700 XT",
    },
    "gfx1102": {
        "7480": "AMD Radeon RX 7600 series",
        "7489": "AMD Radeon Pro W7500",
    },
    "gfx1151": {
        "1586": "AMD Radeon 8060S / 8050S Graphics",
    },
    "gfx1200": {
        "7590": "AMD Radeon RX 9060 series",
    },
    "gfx1201": {
        "7550": "AMD Radeon RX 9070 series",
        "7550:c0": "AMD Radeon RX 9070 XT",
        "7550:c3": "AMD Radeon RX 9070",
        "7551": "AMD Radeon AI PRO R9700",
        "7551:c0": "AMD Radeon AI PRO R9700",
        "7551:c8": "AMD Radeon AI PRO R9600D",
    },
}

# id: (name, Xe cores of the whole PCI device, or None)
_INTEL_BY_ARCH: dict[str, dict[str, tuple[str, int | None]]] = {
    "xe-hpg": {
        "56a0": ("Intel Arc A770 Graphics", 32),
        "56a1": ("Intel Arc A750 Graphics", 28),
        "56a2": ("Intel Arc A580 Graphics", 24),
        "56a5": ("Intel Arc A380 Graphics", 8),
        "56a6": ("Intel Arc A310 Graphics", 6),
        "56b1": ("Intel Arc Pro A40/A50 Graphics", 8),
        "56b3": ("Intel Arc Pro A60 Graphics", 16),
        "5690": ("Intel Arc A770M Graphics", 32),
        "56be": ("Intel Arc A750E Graphics", None),
        "56bf": ("Intel Arc A580E Graphics", None),
        "56c0": ("Intel Data Center GPU Flex 170", 32),
        "56c1": ("Intel Data Center GPU Flex 140", 8),
        "56c2": ("Intel Data Center GPU Flex 170V", None),
    },
    "xe2-hpg": {
        "e20b": ("Intel Arc B580 Graphics", 20),
        "e20c": ("Intel Arc B570 Graphics", 18),
        "e211": ("Intel Arc Pro B60 Graphics", 20),
        "e212": ("Intel Arc Pro B50 Graphics", 16),
        "e222": ("Intel Arc Pro B65 Graphics", None),
        "e223": ("Intel Arc Pro B70 Graphics", None),
    },
    "xe-hpc": {
        "0b69": ("Intel Data Center GPU Max 1450", None),
        "0b6e": ("Intel Data Center GPU Max 1100C", None),
        "0bd4": ("Intel Data Center GPU Max 1550VG", None),
        "0bd5": ("Intel Data Center GPU Max 1550", 128),
        "0bd6": ("Intel Data Center GPU Max 1550", 128),
        "0bd7": ("Intel Data Center GPU Max 1350", None),
        "0bd8": ("Intel Data Center GPU Max 1350", None),
        "0bd9": ("Intel Data Center GPU Max 1100", 56),
        "0bda": ("Intel Data Center GPU Max 1100", 56),
        "0bdb": ("Intel Data Center GPU Max 1100", 56),
    },
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


def _flat() -> dict[str, Known]:
    table: dict[str, Known] = {}
    for vendor, by_arch in ((NVIDIA, _NVIDIA_BY_ARCH), (AMD, _AMD_BY_ARCH)):
        for arch, names in by_arch.items():
            table.update({f"{vendor}:{key}": Known(name, arch) for key, name in names.items()})
    for arch, products in _INTEL_BY_ARCH.items():
        table.update({f"{INTEL}:{key}": Known(name, arch, units) for key, (name, units) in products.items()})
    for key, (generation, gib, cores) in _TPU_CHIPS.items():
        table[f"{GOOGLE}:{key}"] = Known(f"Google TPU {generation}", f"tpu-{generation}", cores, gib * 2**30)
    return table


_KNOWN = _flat()


def known_ids() -> dict[str, Known]:
    """The whole table: "vendor:device", or "vendor:device:revision" (for Google :subsystem), to what it is."""
    return dict(_KNOWN)


def lookup(pci_id: str, detail: str | None = None) -> Known | None:
    """Find a PCI id.

    Args:
        pci_id: "vendor:device" in lower-case hexadecimal, as 10de:2330.
        detail: the revision ("c8"; Google: the subsystem device, "004e"), where one id covers several products.

    Returns:
        The most exact entry, or None where the table has none.
    """
    exact = _KNOWN.get(f"{pci_id}:{detail}") if detail else None
    return exact or _KNOWN.get(pci_id)


def cannot_compute(pci_id: str) -> bool:
    """True for the display chips of server management controllers and virtual machines."""
    return pci_id.partition(":")[0] in _NO_COMPUTE_VENDORS or pci_id in _NO_COMPUTE_IDS
