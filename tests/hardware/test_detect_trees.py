"""Detection of every node type's recorded tree."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from attnkit.hardware import detect, probes

TREES = Path(__file__).resolve().parents[1] / "data" / "trees"
GIB = 2**30

# node type: (vendor, architecture, name, count, memory, units, source) of its accelerators
ACCELERATORS = {
    "rtx-2080-ti": ("nvidia", "sm_75", "NVIDIA GeForce RTX 2080 Ti", 2, None, None, "sysfs"),
    "t4": ("nvidia", "sm_75", "Tesla T4", 1, None, None, "sysfs"),
    "rtx-3080": ("nvidia", "sm_86", "NVIDIA GeForce RTX 3080", 1, None, None, "sysfs"),
    "rtx-4090": ("nvidia", "sm_89", "NVIDIA GeForce RTX 4090", 2, None, None, "sysfs"),
    "a100": ("nvidia", "sm_80", "NVIDIA A100-SXM4-80GB", 4, None, None, "sysfs"),
    "h100": ("nvidia", "sm_90", "NVIDIA H100 80GB HBM3", 8, None, None, "sysfs"),
    "h200": ("nvidia", "sm_90", "NVIDIA H200", 8, None, None, "sysfs"),
    "b200": ("nvidia", "sm_100", "NVIDIA B200", 8, None, None, "sysfs"),
    "rtx-5090": ("nvidia", "sm_120", "NVIDIA GeForce RTX 5090", 1, None, None, "sysfs"),
    "mi300x": ("amd", "gfx942", "AMD Instinct MI300X", 8, 206_141_652_992, 304, "kfd"),
    "mi250x": ("amd", "gfx90a", "AMD Instinct MI250X", 4, 68_702_699_520, 110, "kfd"),
    "rx-7900-xtx": ("amd", "gfx1100", "AMD Radeon RX 7900 XTX", 1, 25_753_026_560, 96, "kfd"),
    "intel-arc": ("intel", "xe-hpg", "Intel Arc A770 Graphics", 1, 16 * GIB, 32, "sysfs"),
    "intel-max": ("intel", "xe-hpc", "Intel Data Center GPU Max 1550", 2, 128 * GIB, 128, "sysfs"),
    "tpu-v5e": ("google", "tpu-v5e", "Google TPU v5e", 4, 16 * GIB, 1, "devnode"),
    "tpu-v6e": ("google", "tpu-v6e", "Google TPU v6e", 4, 32 * GIB, 1, "devnode"),
}
CPU_ONLY = {"intel-xeon", "cpu"}


def test_there_is_a_tree_for_every_node_type() -> None:
    folders = {p.name for p in TREES.iterdir() if p.is_dir() and not p.name.startswith("__")}
    assert folders == set(ACCELERATORS) | CPU_ONLY


@pytest.mark.parametrize("node", sorted(ACCELERATORS))
def test_accelerators(node: str) -> None:
    vendor, arch, name, count, memory, units, source = ACCELERATORS[node]
    found = detect(TREES / node)
    cards = [d for d in found.devices if d.vendor != "cpu"]
    seen = Counter((d.vendor, d.arch, d.name, d.memory_bytes, d.units, d.source) for d in cards)
    assert seen == {(vendor, arch, name, memory, units, source): count}
    assert [d.index for d in cards] == list(range(count))
    assert len({d.pci_address for d in cards}) == count
    assert all(d.usable and d.driver for d in cards)
    assert [p.error for p in found.probes] == [None] * len(probes)
    assert [note for p in found.probes for note in p.notes] == []


@pytest.mark.parametrize("node", sorted(set(ACCELERATORS) | CPU_ONLY))
def test_cpu_is_last_and_the_host_is_described(node: str) -> None:
    found = detect(TREES / node)
    cpu = found.devices[-1]
    assert (cpu.vendor, cpu.kind, cpu.arch, cpu.units, cpu.source) == ("cpu", "cpu", "x86_64", 4, "cpuinfo")
    assert "avx2" in cpu.features
    assert cpu.memory_bytes and cpu.memory_bytes % GIB == 0
    assert [d for d in found.devices if d.vendor == "cpu"] == [cpu]
    assert found.host["hostname"] == f"{node}-0"
    assert found.host["machine"] == "x86_64"
    assert found.host["container"] == "none"
    assert found.host["kernel"].startswith("6.")
    assert {"os", "kernel"} <= found.host.keys()
    assert found.root == str(TREES / node)
    assert tuple(p.probe for p in found.probes) == probes


@pytest.mark.parametrize("node", sorted(CPU_ONLY))
def test_a_management_controller_is_no_accelerator(node: str) -> None:
    found = detect(TREES / node)
    assert (TREES / node / "sys/bus/pci/devices/0000:02:00.0/vendor").read_text().strip() == "0x1a03"
    assert [d.vendor for d in found.devices] == ["cpu"]


def test_xeon_has_amx_and_the_plain_cpu_has_not() -> None:
    xeon, plain = (detect(TREES / node).devices[0] for node in ("intel-xeon", "cpu"))
    assert {"amx_tile", "amx_bf16", "amx_int8", "avx512f", "avx512_bf16", "avx512_vnni"} <= set(xeon.features)
    assert not [f for f in plain.features if f.startswith(("amx", "avx512"))]


def test_driver_versions_are_host_facts() -> None:
    assert detect(TREES / "h100").host["nvidia_driver"] == "580.95.05"
    assert detect(TREES / "mi300x").host["amdgpu_driver"] == "6.14.14"
    assert "nvidia_driver" not in detect(TREES / "cpu").host


def test_nvswitches_and_sound_functions_are_no_gpus() -> None:
    switches = TREES / "h100/sys/bus/pci/devices/0000:05:00.0/class"
    assert switches.read_text().strip() == "0x068000"
    assert {d.pci_id for d in detect(TREES / "h100").devices} == {"10de:2330", None}


def test_mi300x_says_its_partition_mode_and_address() -> None:
    first = detect(TREES / "mi300x").devices[0]
    assert first.features == ("spx",)
    assert (first.pci_address, first.pci_id) == ("0000:05:00.0", "1002:74a1")


def test_trees_are_what_the_generator_writes() -> None:
    done = subprocess.run(
        [sys.executable, TREES / "make_trees.py", "--check"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


IMPORTS = """
import sys
from attnkit.hardware import detect
assert not {"torch", "jax", "pynvml", "amdsmi", "numpy"} & set(sys.modules), "imported with the package"
found = detect(sys.argv[1])
heavy = {"torch", "jax", "pynvml", "amdsmi", "numpy", "yaml"} & set(sys.modules)
print(found.devices[0].arch, sorted(heavy))
"""


@pytest.mark.parametrize(("node", "arch"), [("h100", "sm_90"), ("mi300x", "gfx942"), ("tpu-v6e", "tpu-v6e")])
def test_a_tree_is_read_without_any_vendor_library(node: str, arch: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(TREES / node)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == f"{arch} []", done.stderr
