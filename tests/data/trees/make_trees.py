#!/usr/bin/env python3
"""Write one small tree of sys, proc, etc and dev for each node type, from public PCI ids and documented file formats.

The node types with a file of their own have committed trees; those of profiles/families.yaml (MORE) are written by the tests.

The ids are written here a second time on purpose: detection is tested against these trees,
so its own table must not be their source.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent

X86_BASE = "fpu vme de pse tsc msr pae mce cx8 apic sep lm sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c rdrand avx2 bmi1 bmi2"
AVX512 = "avx512f avx512dq avx512cd avx512bw avx512vl avx512_vnni avx512_vbmi2 avx512_bitalg"
AMX = "avx_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8"

CPUS = {
    "epyc": ("AuthenticAMD", 25, 1, "AMD EPYC 7763 64-Core Processor", X86_BASE),
    "genoa": ("AuthenticAMD", 25, 17, "AMD EPYC 9554 64-Core Processor", f"{X86_BASE} {AVX512} avx512_bf16"),
    "ryzen": ("AuthenticAMD", 25, 33, "AMD Ryzen 9 5950X 16-Core Processor", X86_BASE),
    "xeon": ("GenuineIntel", 6, 143, "Intel(R) Xeon(R) Platinum 8480+", f"{X86_BASE} {AVX512} {AMX}"),
    "core": ("GenuineIntel", 6, 151, "12th Gen Intel(R) Core(TM) i9-12900K", f"{X86_BASE} avx_vnni"),
    "xeon6": ("GenuineIntel", 6, 173, "Intel(R) Xeon(R) 6980P", f"{X86_BASE} {AVX512} {AMX} amx_fp16"),
}
ARM = {"neoverse-v1": "0xd40", "neoverse-v2": "0xd4f", "cortex-a78ae": "0xd42"}
"""Arm's processors by part number; their cpuinfo has no name."""


@dataclass(frozen=True)
class Card:
    """PCI functions of one kind: vendor:device, class, driver, addresses and further files of each device's folder."""

    pci_id: str
    pci_class: str
    driver: str | None
    addresses: tuple[str, ...]
    revision: str = "0x00"
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kfd:
    """What the KFD topology says of each GPU node."""

    target: int
    simd_count: int
    simd_per_cu: int
    wave: int
    memory: int
    xcc: int = 1
    name: str = "ip discovery"


@dataclass(frozen=True)
class Node:
    """One node type's machine."""

    cpu: str
    cards: tuple[Card, ...] = ()
    memory_gib: int = 64
    os: str = "Ubuntu 24.04.2 LTS"
    kernel: str = "6.8.0-60-generic"
    model: str | None = None  # NVIDIA: the name in /proc/driver/nvidia
    kfd: Kfd | None = None
    dev: tuple[str, ...] = ()
    arch: str = "x86_64"
    files: dict[str, str] = field(default_factory=dict)


BMC = Card("1a03:2000", "0x030000", "ast", ("0000:02:00.0",))
HGX_A100 = ("01", "41", "81", "c1")
HGX_8 = ("1b", "43", "52", "61", "9d", "c3", "d1", "df")
MI300X = ("05", "26", "46", "65", "85", "a6", "c6", "e5")
MI250X = ("c1", "c6", "c9", "ce")


def slots(*buses: str) -> tuple[str, ...]:
    """Addresses of function 0 of device 0 on each bus."""
    return tuple(f"0000:{bus}:00.0" for bus in buses)


def geforce(device: str, audio: str, *buses: str) -> tuple[Card, ...]:
    """A GeForce card: a VGA controller and the audio function beside it."""
    sound = tuple(f"0000:{bus}:00.1" for bus in buses)
    return (
        Card(f"10de:{device}", "0x030000", "nvidia", slots(*buses), "0xa1"),
        Card(f"10de:{audio}", "0x040300", "snd_hda_intel", sound, "0xa1"),
    )


def datacenter(device: str, *buses: str) -> Card:
    """An NVIDIA card without a display: a 3D controller."""
    return Card(f"10de:{device}", "0x030200", "nvidia", slots(*buses), "0xa1")


def nvidia(model: str, cards: tuple[Card, ...], cpu: str = "epyc", memory_gib: int = 64) -> Node:
    """A machine with NVIDIA's driver loaded."""
    return Node(cpu, cards, memory_gib, model=model, dev=("nvidiactl", "nvidia-uvm", "nvidia0"))


def amd(cards: tuple[Card, ...], kfd: Kfd, cpu: str, memory_gib: int) -> Node:
    """A machine with amdgpu and KFD."""
    return Node(
        cpu, cards, memory_gib, os="Ubuntu 22.04.5 LTS", kernel="6.8.0-52-generic", kfd=kfd, dev=("kfd", "dri/renderD128")
    )


NVSWITCH = Card("10de:22a3", "0x068000", "nvidia", slots("05", "06", "07", "08"), "0xa1")
XE_16G = {"tile0/physical_vram_size_bytes": f"{16 * 2**30}\n"}
I915_128G = {"drm/card1/lmem_total_bytes": f"{128 * 2**30}\n"}
TPU_OS = {"os": "Ubuntu 22.04.5 LTS", "kernel": "6.8.0-1027-gcp"}
GVNIC = Card("1ae0:0042", "0x020000", "gvnic", ("0000:00:0c.0",))
TPU_SLOTS = tuple(f"0000:00:{slot:02x}.0" for slot in range(4, 8))

NODES = {
    "rtx-2080-ti": nvidia("NVIDIA GeForce RTX 2080 Ti", geforce("1e07", "10f7", "17", "65"), "core"),
    "t4": nvidia("Tesla T4", (BMC, datacenter("1eb8", "3b")), "epyc"),
    "rtx-3080": nvidia("NVIDIA GeForce RTX 3080", geforce("2206", "1aef", "01"), "ryzen"),
    "rtx-4090": nvidia("NVIDIA GeForce RTX 4090", geforce("2684", "22ba", "01", "41"), "ryzen", 128),
    "a100": nvidia("NVIDIA A100-SXM4-80GB", (BMC, datacenter("20b2", *HGX_A100)), "epyc", 1024),
    "h100": nvidia("NVIDIA H100 80GB HBM3", (BMC, datacenter("2330", *HGX_8), NVSWITCH), "xeon", 2048),
    "h200": nvidia("NVIDIA H200", (BMC, datacenter("2335", *HGX_8)), "xeon", 2048),
    "b200": nvidia("NVIDIA B200", (BMC, datacenter("2901", *HGX_8)), "xeon", 2048),
    "rtx-5090": nvidia("NVIDIA GeForce RTX 5090", geforce("2b85", "22e8", "01"), "ryzen"),
    "mi300x": amd(
        (BMC, Card("1002:74a1", "0x120000", "amdgpu", slots(*MI300X), files={"current_compute_partition": "SPX\n"})),
        Kfd(90402, 1216, 4, 64, 206_141_652_992, xcc=8),
        "genoa",
        2048,
    ),
    "mi250x": amd(
        (BMC, Card("1002:7408", "0x038000", "amdgpu", slots(*MI250X))),
        Kfd(90010, 440, 4, 64, 68_702_699_520, name="aldebaran"),
        "epyc",
        512,
    ),
    "rx-7900-xtx": amd(
        (Card("1002:744c", "0x030000", "amdgpu", slots("03"), "0xc8"), Card("1002:ab30", "0x040300", None, ("0000:03:00.1",))),
        Kfd(110000, 192, 2, 32, 25_753_026_560),
        "ryzen",
        64,
    ),
    "intel-xeon": Node("xeon", (BMC,), 512),
    "intel-arc": Node("core", (Card("8086:56a0", "0x030000", "xe", slots("03"), "0x08", XE_16G),), dev=("dri/renderD128",)),
    "intel-max": Node(
        "xeon",
        (BMC, Card("8086:0bd5", "0x038000", "i915", slots("29", "9a"), "0x2f", I915_128G)),
        1024,
        dev=("dri/renderD128",),
    ),
    "tpu-v5e": Node(
        "epyc",
        (GVNIC, Card("1ae0:0063", "0xff0000", "vfio-pci", TPU_SLOTS)),
        384,
        dev=("vfio/vfio", *(f"vfio/{group}" for group in range(4))),
        **TPU_OS,
    ),
    "tpu-v6e": Node(
        "genoa",
        (GVNIC, Card("1ae0:006f", "0xff0000", "vfio-pci", TPU_SLOTS)),
        720,
        dev=("vfio/vfio", *(f"vfio/{group}" for group in range(4))),
        **TPU_OS,
    ),
    "cpu": Node("epyc", (BMC,), 32, os="Debian GNU/Linux 12 (bookworm)", kernel="6.1.0-37-amd64"),
}


def orin(compatible: str, model: str) -> Node:
    """A Jetson: its GPU is in the device tree and in /dev, and on no bus."""
    base = "proc/device-tree"
    files = {f"{base}/compatible": f"{compatible}\0", f"{base}/model": f"{model}\0"}
    return Node("cortex-a78ae", memory_gib=64, arch="aarch64", dev=("nvhost-gpu", "nvmap"), files=files)


def hopper_on_grace(model: str, device: str) -> Node:
    """A GPU beside NVIDIA's own processor."""
    return replace(nvidia(model, (datacenter(device, "01"),), "neoverse-v2", 480), arch="aarch64")


def arc(device: str, gib: int) -> Node:
    """A discrete Intel GPU under the xe driver."""
    memory = {"tile0/physical_vram_size_bytes": f"{gib * 2**30}\n"}
    return Node("core", (Card(f"8086:{device}", "0x030000", "xe", slots("03"), files=memory),), dev=("dri/renderD128",))


def radeon(device: str, target: int, memory: int, revision: str = "0x00") -> Node:
    """A workstation with one AMD GPU."""
    card = Card(f"1002:{device}", "0x030000", "amdgpu", slots("03"), revision)
    return amd((card,), Kfd(target, 128, 2, 32, memory), "ryzen", 64)


def instinct(device: str, target: int, memory: int, simds: int = 1216) -> Node:
    """A server with eight AMD accelerators."""
    return amd(
        (BMC, Card(f"1002:{device}", "0x120000", "amdgpu", slots(*MI300X))), Kfd(target, simds, 4, 64, memory), "genoa", 2048
    )


MORE = {
    "gtx-16": nvidia("NVIDIA GeForce GTX 1660", geforce("2184", "1aeb", "01"), "ryzen"),
    "l4": nvidia("NVIDIA L4", (BMC, datacenter("27b8", "3b")), "epyc"),
    "l40s": nvidia("NVIDIA L40S", (BMC, datacenter("26b9", "3b", "5e")), "epyc"),
    "a10": nvidia("NVIDIA A10", (BMC, datacenter("2236", "3b")), "epyc"),
    "a40": nvidia("NVIDIA A40", (BMC, datacenter("2235", "3b")), "epyc"),
    "h20": nvidia("NVIDIA H20", (BMC, datacenter("2329", *HGX_8)), "xeon", 2048),
    "gh200": hopper_on_grace("NVIDIA GH200 480GB", "2342"),
    "gb200": hopper_on_grace("NVIDIA GB200", "2941"),
    "b300": nvidia("NVIDIA B300 SXM6 AC", (BMC, datacenter("3182", *HGX_8)), "xeon", 2048),
    "rtx-pro-6000": nvidia("NVIDIA RTX PRO 6000 Blackwell Server Edition", (BMC, datacenter("2bb5", "3b")), "epyc"),
    "dgx-spark": hopper_on_grace("NVIDIA GB10", "2e12"),
    "jetson-orin": orin("nvidia,p3737-0000+p3701-0005\0nvidia,tegra234", "NVIDIA Jetson AGX Orin Developer Kit"),
    "jetson-thor": orin("nvidia,p4071-0000+p3834-0008\0nvidia,tegra264", "NVIDIA Jetson AGX Thor Developer Kit"),
    "mi210": instinct("740f", 90010, 68_702_699_520, 416),
    "mi300a": instinct("74a0", 90402, 137_438_953_472, 912),
    "mi325x": instinct("74a5", 90402, 274_877_906_944),
    "mi355x": instinct("75a3", 90500, 309_237_645_312, 1024),
    "rx-9070": radeon("7550", 120001, 17_095_983_104, "0xc0"),
    "strix-halo": radeon("1586", 110501, 103_079_215_104, "0xc1"),
    "arc-b580": arc("e20b", 12),
    "graviton": Node(
        "neoverse-v1", (), 64, os="Amazon Linux 2023", arch="aarch64", files={"sys/class/dmi/id/sys_vendor": "Amazon EC2\n"}
    ),
    "granite-rapids": Node("xeon6", (BMC,), 1024),
}
"""Machines of node types that have no file of their own."""


def cpuinfo(key: str, processors: int = 4) -> str:
    """/proc/cpuinfo with a few processors, one thread a core."""
    if key in ARM:
        block = "processor\t: {}\nFeatures\t: fp asimd asimdhp asimddp i8mm bf16 sve\nCPU implementer\t: 0x41\nCPU part\t: {}\n"
        return "\n".join(block.format(number, ARM[key]) for number in range(processors)) + "\n"
    vendor, family, model, name, flags = CPUS[key]
    blocks = []
    for number in range(processors):
        lines = {
            "processor\t": number,
            "vendor_id\t": vendor,
            "cpu family\t": family,
            "model\t\t": model,
            "model name\t": name,
            "physical id\t": 0,
            "siblings\t": processors,
            "core id\t\t": number,
            "cpu cores\t": processors,
            "flags\t\t": flags,
        }
        blocks.append("".join(f"{title}: {value}\n" for title, value in lines.items()) + "power management:\n")
    return "\n".join(blocks) + "\n"


def pci_files(card: Card) -> dict[str, str]:
    """sysfs files of the functions."""
    vendor, device = card.pci_id.split(":")
    files = {}
    for address in card.addresses:
        base = f"sys/bus/pci/devices/{address}"
        uevent = f"DRIVER={card.driver}\n" if card.driver else ""
        uevent += f"PCI_CLASS={int(card.pci_class, 16):X}\nPCI_ID={card.pci_id.upper()}\nPCI_SLOT_NAME={address}\n"
        files[f"{base}/vendor"] = f"0x{vendor}\n"
        files[f"{base}/device"] = f"0x{device}\n"
        files[f"{base}/class"] = f"{card.pci_class}\n"
        files[f"{base}/revision"] = f"{card.revision}\n"
        files[f"{base}/uevent"] = uevent
        files |= {f"{base}/{name}": text for name, text in card.files.items()}
    return files


def kfd_files(kfd: Kfd, card: Card) -> dict[str, str]:
    """The KFD topology: node 0 is the CPU, then one node a GPU."""
    base = "sys/class/kfd/kfd/topology/nodes"
    files = {
        f"{base}/0/gpu_id": "0\n",
        f"{base}/0/name": "\n",
        f"{base}/0/properties": "cpu_cores_count 64\nsimd_count 0\nmem_banks_count 1\ngfx_target_version 0\nvendor_id 0\n",
        f"{base}/0/mem_banks/0/properties": f"heap_type 0\nsize_in_bytes {512 * 2**30}\nflags 0\nwidth 64\nmem_clk_max 3200\n",
    }
    for number, address in enumerate(card.addresses, start=1):
        domain, bus, rest = address.split(":")
        location = int(bus, 16) << 8 | int(rest.split(".")[0], 16) << 3 | int(rest.split(".")[1])
        properties = {
            "cpu_cores_count": 0,
            "simd_count": kfd.simd_count,
            "mem_banks_count": 1,
            "max_waves_per_simd": 8 if kfd.wave == 64 else 16,
            "lds_size_in_kb": 64,
            "wave_front_size": kfd.wave,
            "simd_per_cu": kfd.simd_per_cu,
            "gfx_target_version": kfd.target,
            "vendor_id": 0x1002,
            "device_id": int(card.pci_id.split(":")[1], 16),
            "location_id": location,
            "domain": int(domain, 16),
            "drm_render_minor": 127 + number,
            "num_xcc": kfd.xcc,
        }
        files[f"{base}/{number}/gpu_id"] = f"{20000 + 97 * number}\n"
        files[f"{base}/{number}/name"] = f"{kfd.name}\n"
        files[f"{base}/{number}/properties"] = "".join(f"{key} {value}\n" for key, value in properties.items())
        files[f"{base}/{number}/mem_banks/0/properties"] = (
            f"heap_type 1\nsize_in_bytes {kfd.memory}\nflags 0\nwidth 4096\nmem_clk_max 1600\n"
        )
    return files


def tree_files(name: str, node: Node) -> dict[str, str]:
    """Every file of one tree: path relative to its root, and text."""
    files = {
        "etc/os-release": f'PRETTY_NAME="{node.os}"\nNAME="{node.os.split()[0]}"\n',
        "proc/cpuinfo": cpuinfo(node.cpu),
        "proc/meminfo": f"MemTotal:       {node.memory_gib * 2**20:>8} kB\nMemFree:        {node.memory_gib * 2**19:>8} kB\n",
        "proc/sys/kernel/arch": f"{node.arch}\n",
        "proc/sys/kernel/hostname": f"{name}-0\n",
        "proc/sys/kernel/osrelease": f"{node.kernel}\n",
        "sys/bus/pci/devices/0000:00:00.0/vendor": "0x8086\n",
        "sys/bus/pci/devices/0000:00:00.0/device": "0x09a2\n",
        "sys/bus/pci/devices/0000:00:00.0/class": "0x060000\n",
    }
    for card in node.cards:
        files |= pci_files(card)
    if node.model:
        files["proc/driver/nvidia/version"] = (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (builder@build)\n"
            "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n"
        )
        for card in node.cards:
            if card.driver == "nvidia" and card.pci_class != "0x068000":
                for address in card.addresses:
                    files[f"proc/driver/nvidia/gpus/{address}/information"] = f"Model: \t\t {node.model}\nBus Type: \t PCIe\n"
    if node.kfd:
        gpu = next(card for card in node.cards if card.driver == "amdgpu")
        files |= kfd_files(node.kfd, gpu)
        files["sys/module/amdgpu/version"] = "6.14.14\n"
    return files | {f"dev/{path}": "" for path in node.dev} | node.files


def write(root: Path, files: dict[str, str]) -> None:
    """Write a tree."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def main(argv: list[str] | None = None) -> int:
    """Write the trees, or with --check say which differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a tree is not what this script writes")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder that gets the trees")
    arguments = parser.parse_args(argv)
    stale = []
    for name, node in NODES.items():
        wanted, root = tree_files(name, node), arguments.out / name
        if arguments.check:
            there = {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}
            if there != wanted:
                stale.append(name)
            continue
        shutil.rmtree(root, ignore_errors=True)
        write(root, wanted)
    if stale:
        print(f"stale trees: {', '.join(stale)}; write them with {Path(__file__).name}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
