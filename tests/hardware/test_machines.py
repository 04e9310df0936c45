"""Machines as people have them: every device is found, or the answer is a clear no; a CPU never serves in its place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from attnkit import profiles
from attnkit.hardware import detect
from attnkit.hardware.other import MAKERS

H100, T4, H200, RTX_4090, GT_710 = "10de:2330", "10de:1eb8", "10de:2335", "10de:2684", "10de:128b"


def test_every_node_type_of_a_family_is_recognised(make_trees: ModuleType, tmp_path: Path) -> None:
    """Its machine's tree gives the node type, and a device that selection has a backend for."""
    found = {}
    for name, node in make_trees.MORE.items():
        make_trees.write(tmp_path / name, make_trees.tree_files(name, node))
        box = detect(tmp_path / name)
        found[name] = profiles.match_node(box).node
        assert box.devices[0].usable, (name, box.devices[0].problem)
    assert found == {name: name for name in make_trees.MORE}


@pytest.mark.parametrize("name", sorted(profiles.node_names()))
def test_select_answers_for_every_node_type(name: str, machine: Any) -> None:
    from attnkit.select.node import find_node
    from attnkit.select.plan import make_plan

    profile = profiles.load_node(name)
    for where in (find_node(root=machine.root, node=name), *(find_node(arch=arch) for arch in profile.match.arch)):
        assert make_plan(where, assume_installed=True).decision.chosen is not None, (name, where)


# Unlike cards.


def test_unlike_cards_are_refused_whichever_has_the_lowest_address(machines: Callable[[], Any]) -> None:
    for first, second in ((T4, H100), (H100, T4)):
        answer = machines().nvidia("0000:17:00.0", first).nvidia("0000:65:00.0", second).ask()
        assert (answer.node, answer.code, answer.chosen) == (None, 2, None)
        for word in ("different devices", "H100", "Tesla T4", "CUDA_VISIBLE_DEVICES", "--node h100", "--node t4"):
            assert word in answer.said, answer.said


@pytest.mark.parametrize(
    ("order", "value", "node"),
    [
        ("PCI_BUS_ID", "0", "t4"),
        ("PCI_BUS_ID", "1", "h100"),
        (None, "0", "h100"),  # CUDA's own order: the fastest first
        (None, "1", "t4"),
        (None, "GPU-aaaa", "t4"),
        (None, "GPU-BBBB0000", "h100"),
        ("FASTEST_FIRST", "0,9", "h100"),
    ],
)
def test_visible_devices_choose_among_unlike_cards(machine: Any, order: str | None, value: str, node: str) -> None:
    machine.nvidia("0000:17:00.0", T4, "GPU-aaaa0000-1", minor=0).nvidia("0000:65:00.0", H100, "GPU-bbbb0000-2", minor=1)
    answer = machine.ask(CUDA_VISIBLE_DEVICES=value, **({"CUDA_DEVICE_ORDER": order} if order else {}))
    assert (answer.node, answer.code) == (node, 0), answer
    assert [d.ordinal for d in answer.devices if d.visible and d.kind == "gpu"] == [0]


@pytest.mark.parametrize(("given", "arch"), [("h100", "sm_90"), ("t4", "sm_75"), ("cpu", "x86_64")])
def test_a_node_type_chooses_among_unlike_cards(machine: Any, given: str, arch: str) -> None:
    answer = machine.nvidia("0000:17:00.0", T4).nvidia("0000:65:00.0", H100).ask(node=given)
    assert (answer.code, answer.device.arch) == (0, arch)


def test_an_index_among_cards_whose_order_is_not_known_is_refused(machine: Any) -> None:
    machine.nvidia("0000:17:00.0", "10de:2235", "GPU-a").nvidia("0000:65:00.0", "10de:2206", "GPU-b")
    answer = machine.ask(CUDA_VISIBLE_DEVICES="1")
    assert answer.code == 2 and "CUDA_DEVICE_ORDER=PCI_BUS_ID" in answer.said
    assert machine.ask(CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID").node == "rtx-3080"


def test_a_profile_chooses_among_unlike_cards(machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (profiles.profile_dir() / "nodes" / "h100.yaml").read_text()
    (tmp_path / "own" / "nodes").mkdir(parents=True)
    (tmp_path / "own" / "nodes" / "h100.yaml").write_text(text.replace("match:\n", "match:\n  preferred_over: [t4]\n"))
    machine.nvidia("0000:17:00.0", T4).nvidia("0000:65:00.0", H100)
    assert machine.ask().code == 2
    monkeypatch.setenv("ATTNKIT_PROFILES", str(tmp_path / "own"))
    answer = machine.ask()
    assert answer.node == "h100" and "left out: Tesla T4" in answer.why


def test_uuids_of_cards_whose_uuids_are_not_known(machines: Callable[[], Any]) -> None:
    alike = machines().nvidia("0000:17:00.0", H100).nvidia("0000:65:00.0", H100, minor=1)
    assert alike.ask(CUDA_VISIBLE_DEVICES="GPU-1").node == "h100"
    unlike = machines().nvidia("0000:17:00.0", T4).nvidia("0000:65:00.0", H100, minor=1)
    answer = unlike.ask(CUDA_VISIBLE_DEVICES="GPU-1")
    assert answer.code == 2 and "no UUID is known here" in answer.said


def test_two_vendors_are_unlike_and_each_ones_variable_chooses(machines: Callable[[], Any]) -> None:
    def both() -> Any:
        made = machines().nvidia("0000:17:00.0", H100)
        return made.card("0000:65:00.0", "1002:74a1", "120000", "amdgpu").kfd(1, 0x6500)

    assert both().ask().code == 2
    assert both().ask(HIP_VISIBLE_DEVICES="0").node == "mi300x"
    assert both().ask(node="h100").device.vendor == "nvidia"


def test_cuda_visible_devices_are_nvidias_where_amd_is_here_too(machine: Any) -> None:
    machine.nvidia("0000:17:00.0", H100).card("0000:65:00.0", "1002:74a1", "120000", "amdgpu").kfd(1, 0x6500)
    assert machine.ask(CUDA_VISIBLE_DEVICES="0").node == "h100"


@pytest.mark.parametrize(
    ("pci_id", "pci_class", "driver"),
    [
        ("1a03:2000", "030000", "ast"),
        ("102b:0536", "030000", "mgag200"),
        ("8086:4680", "030000", "i915"),
        ("19e5:1711", "030000", "hibmc-drm"),
        ("8086:7d1d", "120000", "intel_vpu"),
        ("19e5:a250", "120000", "hisi_zip"),
        ("10ee:5005", "120000", None),
        ("1002:164e", "030000", "amdgpu"),
    ],
)
def test_a_display_or_an_engine_beside_a_card_is_no_mix_and_no_accelerator(
    machines: Callable[[], Any], pci_id: str, pci_class: str, driver: str | None
) -> None:
    alone = machines().card("0000:00:02.0", pci_id, pci_class, driver)
    assert alone.ask().node == "intel-xeon"
    assert alone.nvidia("0000:17:00.0", H100).ask().node == "h100"


def test_an_integrated_gpu_that_computes_is_no_mix(machine: Any) -> None:
    machine.card("0000:0c:00.0", "1002:164e", "030000", "amdgpu").kfd(1, 0x0C00, target=100306, simds=4)
    answer = (
        machine.card("0000:03:00.0", "1002:744c", "030000", "amdgpu", revision="0xc8\n").kfd(2, 0x0300, target=110000).ask()
    )
    assert answer.node == "rx-7900-xtx"
    assert [(d.arch, d.features) for d in answer.devices[:2]] == [("gfx1036", ("integrated",)), ("gfx1100", ())]


def test_cards_of_one_type_that_are_unequal_are_said(machine: Any) -> None:
    answer = machine.nvidia("0000:17:00.0", "10de:2684").nvidia("0000:65:00.0", "10de:2704", minor=1).ask()
    assert answer.node == "rtx-4090" and "RTX 4080" in answer.why


def test_a_card_that_nobody_describes_is_left_out_and_said(machine: Any) -> None:
    answer = machine.nvidia("0000:17:00.0", GT_710).nvidia("0000:65:00.0", H100, minor=1).ask()
    assert answer.node == "h100" and "left out: NVIDIA GeForce GT 710" in answer.why


# What cannot be used.


@pytest.mark.parametrize("driver", [None, "vfio-pci", "nouveau"])
@pytest.mark.parametrize(("pci_id", "name"), [(RTX_4090, "RTX 4090"), ("1002:74a1", "MI300X"), ("8086:56a0", "Arc A770")])
def test_a_card_without_its_driver_is_a_clear_no(machine: Any, pci_id: str, name: str, driver: str | None) -> None:
    answer = machine.card("0000:41:00.0", pci_id, "030000", driver).ask()
    assert (answer.node, answer.chosen, answer.code) == (None, None, 3)
    assert name in answer.why and "driver not loaded" in answer.said and "0000:41:00.0" in answer.said


@pytest.mark.parametrize("vendor", sorted(MAKERS))
def test_accelerators_that_are_not_served_are_a_clear_no(machine: Any, vendor: str) -> None:
    device = {"1d0f": "7364", "19e5": "d802", "17cb": "a100", "1ac1": "089a", "1f82": "0011", "1d22": "3684", "1ea0": "2a16"}
    device |= {"1e30": "1684", "1f1c": "1686"}
    pci_class = "088000" if vendor in ("1d0f", "1ac1") else "120000"
    answer = machine.card("0000:33:00.0", f"{vendor}:{device.get(vendor, '1020')}", pci_class, "a_driver").ask()
    assert (answer.node, answer.code) == (None, 3)
    assert MAKERS[vendor].name in answer.said and "does not serve" in answer.said


@pytest.mark.parametrize("pci_class", ["120000", "030200"])
def test_an_accelerator_of_a_vendor_that_nobody_knows(machine: Any, pci_class: str) -> None:
    answer = machine.card("0000:33:00.0", "abcd:0001", pci_class, "mystery").ask()
    assert (answer.node, answer.code) == (None, 3) and "abcd:0001" in answer.said


@pytest.mark.parametrize("node", ["neuron0", "davinci0", "accel/accel0", "accel0", "hl0", "tenstorrent/0", "hailo0", "apex_0"])
def test_a_device_node_is_enough(machine: Any, node: str) -> None:
    answer = machine.files({f"dev/{node}": ""}).ask()
    assert (answer.node, answer.code) == (None, 3) and f"/dev/{node}" in answer.said


def test_eight_gaudis_are_not_a_xeon(machine: Any) -> None:
    for bus in range(8):
        machine.card(f"0000:{bus + 0x33:02x}:00.0", "1da3:1020", "120000", "habanalabs")
    answer = machine.ask()
    assert (answer.node, answer.code) == (None, 3) and "likewise 7 × Intel Gaudi" in answer.why
    assert machine.ask(node="intel-xeon").chosen == "IPEX"


def test_one_lost_gpu_of_two_is_said_and_the_other_serves(machine: Any) -> None:
    machine.nvidia("0000:17:00.0", H100, "GPU-????????-????-????-????-????????????").nvidia(
        "0000:65:00.0", H100, "GPU-b", minor=1
    )
    answer = machine.ask()
    assert answer.node == "h100" and answer.device.pci_address == "0000:65:00.0"
    assert "fallen off the bus" in answer.why and answer.devices[0].features == ("lost",)
    assert [d.ordinal for d in answer.devices] == [None, 0, None]


@pytest.mark.parametrize("sign", ["revision", "uuid", "gone", "nodes only"])
def test_all_gpus_lost_are_no_cpu_node(machine: Any, sign: str) -> None:
    machine.nvidia("0000:17:00.0", H100, "GPU-????????" if sign == "uuid" else "GPU-a")
    folder = machine.root / "sys/bus/pci/devices/0000:17:00.0"
    if sign == "revision":
        (folder / "revision").write_text("0xff\n")
    if sign in ("gone", "nodes only"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    if sign == "nodes only":
        (machine.root / "proc/driver/nvidia/gpus/0000:17:00.0/information").unlink()
        (machine.root / "proc/driver/nvidia/gpus/0000:17:00.0").rmdir()
    answer = machine.ask()
    assert (answer.node, answer.code) == (None, 3) and "fallen off the bus" in answer.said


def test_a_library_of_another_version_than_the_driver(machine: Any) -> None:
    machine.nvidia("0000:17:00.0", H100, "GPU-a").files({"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.570.86.10": ""})
    answer = machine.ask()
    assert (answer.node, answer.code) == (None, 3)
    for word in ("Driver/library version mismatch", "580.95.05", "570.86.10"):
        assert word in answer.said
    machine.files({"usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05": ""})
    assert machine.ask().node == "h100", "the right one is there, too"


# Platform devices and processors.


@pytest.mark.parametrize(
    ("chip", "arch", "node"),
    [("tegra234", "sm_87", "jetson-orin"), ("tegra264", "sm_110", "jetson-thor"), ("tegra194", "sm_72", None)],
)
def test_a_jetson_is_found_by_its_device_tree(machine: Any, chip: str, arch: str, node: str | None) -> None:
    machine.files({"proc/device-tree/compatible": f"nvidia,p3737\0nvidia,{chip}\0", "dev/nvhost-gpu": ""})
    answer = machine.ask()
    assert (answer.node, answer.devices[0].arch, answer.devices[0].kind) == (node, arch, "gpu")
    assert answer.devices[0].memory_bytes == 263000000 * 1024


def test_a_jetson_in_a_container_is_found_by_its_chip_number_or_its_nodes(machines: Callable[[], Any]) -> None:
    soc = {"sys/devices/soc0/family": "Tegra\n", "sys/devices/soc0/soc_id": "35\n", "dev/nvhost-gpu": ""}
    assert machines().files(soc).ask().node == "jetson-orin"
    bare = machines().files({"dev/nvhost-gpu": ""}).ask()
    assert bare.node is None and "NVIDIA Tegra GPU" in bare.why


IBM_Z16 = """vendor_id       : IBM/S390
# processors    : 2
features\t: esan3 zarch vx vxe vxe2 nnpa
processor 0: version = FF,  identification = 0133E8,  machine = 3931
processor 1: version = FF,  identification = 0133E8,  machine = 3931

cpu number      : 0
"""
POWER10 = "processor\t: 0\ncpu\t\t: POWER10 (architected), altivec supported\nclock\t\t: 2950.0MHz\n\ntimebase\t: 512000000\n"
RISCV = "processor\t: 0\nhart\t\t: 0\nisa\t\t: rv64imafdcv_zicbom\nmmu\t\t: sv48\nuarch\t\t: sifive,u74-mc\n"
LOONGSON = (
    "system type\t: generic-loongson-machine\n\nprocessor\t: 0\nModel Name\t: Loongson-3A6000\nFeatures\t: cpucfg lsx lasx\n"
)


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize(
    ("cpuinfo", "arch", "name", "cores"),
    [
        (IBM_Z16, "s390x", "IBM z16", 2),
        (POWER10, "ppc64le", "POWER10", 1),
        (RISCV, "riscv64", "sifive,u74-mc", 1),
        (LOONGSON, "loongarch64", "Loongson-3A6000", 1),
    ],
)
def test_other_processors_are_one_cpu_with_torch(
    machine: Any, cpuinfo: str, arch: str, name: str, cores: int, said: bool
) -> None:
    machine.files({"proc/cpuinfo": cpuinfo})
    (machine.root / "proc/sys/kernel/arch").unlink()
    if said:
        machine.files({"proc/sys/kernel/arch": f"{arch}\n"})
    answer = machine.ask()
    (cpu,) = answer.devices
    assert (cpu.arch, cpu.units, answer.node, answer.chosen) == (arch, cores, "cpu", "TORCH_SDPA")
    assert name in cpu.name


def test_a_processor_in_an_unknown_form_is_still_one(machine: Any) -> None:
    machine.files(
        {"proc/cpuinfo": "what is this\n", "proc/sys/kernel/arch": "s390x\n", "sys/devices/system/cpu/present": "0-7\n"}
    )
    assert [(d.arch, d.units) for d in machine.ask().devices] == [("s390x", 8)]


# Parts of cards.


@pytest.mark.parametrize("where", [lambda n: 0x0500 | n, lambda n: 0x0500 | n << 28], ids=["function bits", "high bits"])
def test_every_cpx_partition_is_a_device_with_its_own_memory(machine: Any, where: Callable[[int], int]) -> None:
    modes = {"current_compute_partition": "CPX\n", "current_memory_partition": "NPS4\n"}
    machine.card("0000:05:00.0", "1002:74a1", "120000", "amdgpu", **modes)
    for number in range(8):
        machine.kfd(1 + number, where(number), simds=152, memory=24 * 2**30)
    answer = machine.ask()
    parts = answer.devices[:-1]
    assert [d.part for d in parts] == [f"cpx {n}/8" for n in range(1, 9)]
    assert {(d.features, d.units, d.memory_bytes, d.pci_address) for d in parts} == {
        (("cpx", "nps4"), 38, 24 * 2**30, "0000:05:00.0")
    }
    assert (answer.node, [d.ordinal for d in parts]) == ("mi300x", list(range(8)))


def test_mig_instances_of_a_tree_are_listed(machine: Any) -> None:
    machine.nvidia("0000:17:00.0", H100, "GPU-a")
    machine.files({f"proc/driver/nvidia/capabilities/gpu0/mig/gi{n}/ci0/access": "" for n in (1, 2)})
    answer = machine.ask()
    assert [(d.part, d.features) for d in answer.devices[:3]] == [
        (None, ("mig",)),
        ("gi1 ci0", ("mig-slice",)),
        ("gi2 ci0", ("mig-slice",)),
    ]
    assert answer.node == "h100" and answer.device.part == "gi1 ci0"
    assert machine.ask(CUDA_VISIBLE_DEVICES="MIG-GPU-a/2/0").device.part == "gi2 ci0"


# Visible devices.


def eight(machine: Any) -> Any:
    for n in range(8):
        machine.nvidia(f"0000:{0x10 + n:02x}:00.0", H100, f"GPU-{n}{n}{n}{n}-x", minor=n)
    return machine


@pytest.mark.parametrize(
    ("value", "indices"),
    [
        ("0,1", [0, 1]),
        ("3,1", [3, 1]),
        (" 2 , 5 ", [2, 5]),
        ("0,9,1", [0]),
        ("0,-1,1", [0]),
        ("1gpu,2", [1, 2]),
        ("GPU-3333,GPU-5", [3, 5]),
        ("GPU-,1", []),
        ("GPU-9999", []),
        ("2,2", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices(machine: Any, value: str, indices: list[int]) -> None:
    answer = eight(machine).ask(CUDA_VISIBLE_DEVICES=value)
    seen = sorted((d for d in answer.devices if d.kind == "gpu" and d.visible), key=lambda d: d.ordinal)
    assert [d.index for d in seen] == indices
    assert len(answer.devices) == 9, "hidden devices stay in the report"
    if indices:
        assert answer.node == "h100" and answer.device.index == indices[0]
    else:
        assert (answer.node, answer.code) == (None, 3) and "CUDA_VISIBLE_DEVICES" in answer.said
        assert machine.ask(node="cpu").code == 0


def test_nvidia_visible_devices_is_a_note(machine: Any) -> None:
    answer = eight(machine).ask(NVIDIA_VISIBLE_DEVICES="3")
    assert all(d.visible for d in answer.devices)
    assert any("NVIDIA_VISIBLE_DEVICES=3" in note for note in detect(machine.root).visibility_notes)


@pytest.mark.parametrize(
    ("environment", "indices"),
    [
        ({"HIP_VISIBLE_DEVICES": "2"}, [2]),
        ({"ROCR_VISIBLE_DEVICES": "1,3"}, [1, 3]),
        ({"ROCR_VISIBLE_DEVICES": "1,3", "HIP_VISIBLE_DEVICES": "1"}, [3]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}, []),
        ({"ROCR_VISIBLE_DEVICES": "GPU-0000000000000102"}, [2]),
        ({"CUDA_VISIBLE_DEVICES": "3,0"}, [3, 0]),
        ({"GPU_DEVICE_ORDINAL": "1"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "3"}, [0]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({"HIP_VISIBLE_DEVICES": "7"}, []),
    ],
)
def test_rocms_variables_compose(machine: Any, environment: dict[str, str], indices: list[int]) -> None:
    for n in range(4):
        machine.card(f"0000:{0x10 + n:02x}:00.0", "1002:74a1", "120000", "amdgpu").kfd(
            n + 1, (0x10 + n) << 8, unique_id=0x100 + n
        )
    answer = machine.ask(**environment)
    seen = sorted((d for d in answer.devices if d.vendor == "amd" and d.visible), key=lambda d: d.ordinal)
    assert [d.index for d in seen] == indices
    assert (answer.node, answer.code) == (("mi300x", 0) if indices else (None, 3))


@pytest.mark.parametrize(
    ("environment", "indices"),
    [
        ({"ZE_AFFINITY_MASK": "1"}, [1]),
        ({"ZE_AFFINITY_MASK": "2,0"}, [0, 2]),
        ({"ZE_AFFINITY_MASK": "5"}, []),
        ({"ONEAPI_DEVICE_SELECTOR": "level_zero:1,2"}, [1, 2]),
        ({"ONEAPI_DEVICE_SELECTOR": "level_zero:gpu"}, [0, 1, 2]),
        ({"ONEAPI_DEVICE_SELECTOR": "opencl:*"}, []),
        ({"ONEAPI_DEVICE_SELECTOR": "*:*;!level_zero:0"}, [1, 2]),
        ({"ZE_AFFINITY_MASK": "1,2", "ONEAPI_DEVICE_SELECTOR": "level_zero:1"}, [2]),
    ],
)
def test_level_zeros_variables(machine: Any, environment: dict[str, str], indices: list[int]) -> None:
    for n in range(3):
        machine.card(f"0000:{0x10 + n:02x}:00.0", "8086:56a0", "030000", "xe").files({"dev/dri/renderD128": ""})
    answer = machine.ask(**environment)
    assert [d.index for d in answer.devices if d.vendor == "intel" and d.visible] == indices
    assert answer.node == ("intel-arc" if indices else None)


def test_tiles_are_what_the_flat_hierarchy_counts(machine: Any) -> None:
    for n in range(2):
        machine.card(f"0000:{0x10 + n:02x}:00.0", "8086:0bd5", "038000", "i915").files({"dev/dri/renderD128": ""})
    assert [d.visible for d in machine.ask(ZE_AFFINITY_MASK="3").devices[:2]] == [False, True]
    assert any("1 of its 2 tiles" in note for note in detect(machine.root).visibility_notes)
    whole = machine.ask(ZE_AFFINITY_MASK="0", ZE_FLAT_DEVICE_HIERARCHY="COMPOSITE")
    assert [d.visible for d in whole.devices[:2]] == [True, False]


@pytest.mark.parametrize(("name", "value", "count"), [("TPU_VISIBLE_CHIPS", "0,1", 2), ("TPU_VISIBLE_DEVICES", "3", 1)])
def test_tpu_chips(machine: Any, name: str, value: str, count: int) -> None:
    for n in range(4):
        machine.card(f"0000:00:{4 + n:02x}.0", "1ae0:0063", "ff0000", "vfio-pci").files({f"dev/vfio/{n}": ""})
    answer = machine.ask(**{name: value})
    assert sum(d.visible for d in answer.devices if d.kind == "tpu") == count and answer.node == "tpu-v5e"


# The command line.


def attnkit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attnkit.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_the_commands_exit_codes(machines: Callable[[], Any]) -> None:
    import os

    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    mixed = machines().nvidia("0000:17:00.0", T4).nvidia("0000:65:00.0", H100)
    done = attnkit("select", "--root", str(mixed.root), **environment)
    assert done.returncode == 2 and "different devices are here" in done.stderr
    gaudi = machines().card("0000:33:00.0", "1da3:1020", "120000")
    done = attnkit("select", "--root", str(gaudi.root), **environment)
    assert done.returncode == 3 and "Gaudi" in done.stdout
    done = attnkit("detect", "--root", str(gaudi.root), "--json", **environment)
    document = json.loads(done.stdout)
    assert (done.returncode, document["node_type"], document["devices"][0]["features"]) == (0, None, ["not-served"])


def test_detect_is_read_like_nvidia_smi(machine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from attnkit.cli import tables
    from attnkit.select.node import inspect_machine

    eight(machine).nvidia("0000:20:00.0", H100, "GPU-????????", minor=8)
    for n in range(4, 8):
        machine.files({f"sys/bus/pci/devices/0000:{0x10 + n:02x}:00.0/numa_node": "1\n"})
    tables.show_machine(inspect_machine(machine.root), ())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("8 × NVIDIA H100 80GB HBM3 (sm_90) · 0-7 · driver 580.95.05")
    assert "0: 0-3, 1: 4-7" in " ".join(lines[:2])
    wrong = [line for line in lines if line.startswith("✗")]
    assert len(wrong) == 1 and "nvidia 8" in wrong[0] and "0000:20:00.0" in wrong[0]
