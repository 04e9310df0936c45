"""Detection of boxes that are broken, unusual or hostile: values and notes, never an exception."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from attnkit.errors import UsageError
from attnkit.hardware import Detection, amd, detect, nvidia
from attnkit.hardware.device import Device
from attnkit.hardware.pci import read_pci
from attnkit.hardware.tree import Tree

KFD = "sys/class/kfd/kfd/topology/nodes"


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def pci(address: str, pci_id: str, pci_class: str, driver: str | None = None, **more: str) -> dict[str, str | bytes]:
    base = f"sys/bus/pci/devices/{address}"
    vendor, device = pci_id.split(":")
    files: dict[str, str | bytes] = {
        f"{base}/vendor": f"0x{vendor}\n",
        f"{base}/device": f"0x{device}\n",
        f"{base}/class": f"0x{pci_class}\n",
    }
    if driver:
        files[f"{base}/uevent"] = f"DRIVER={driver}\n"
    return files | {f"{base}/{key}": text for key, text in more.items()}


def notes(found: Detection, probe: str) -> str:
    return "\n".join(next(p for p in found.probes if p.probe == probe).notes)


def accelerators(found: Detection) -> list[Device]:
    return [d for d in found.devices if d.vendor != "cpu"]


def test_bad_roots_are_usage_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, wanted in (("missing", "does not exist"), ("file", "is not a folder"), ("empty", "neither a sys nor a proc")):
        with pytest.raises(UsageError, match=wanted) as caught:
            detect(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert caught.value.exit_code == 2


def test_an_empty_tree_has_no_device_and_an_error_for_the_cpu(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    found = detect(tmp_path)
    assert found.devices == ()
    errors = {p.probe: p.error for p in found.probes if p.error}
    assert list(errors) == ["cpu"]
    assert "cpuinfo" in (errors["cpu"] or "")


@pytest.mark.parametrize("driver", [None, "nouveau", "vfio-pci"])
def test_a_card_without_its_driver_is_listed_as_such(tmp_path: Path, driver: str | None) -> None:
    found = detect(write(tmp_path, pci("0000:01:00.0", "10de:1e07", "030000", driver)))
    (card,) = found.devices
    assert (card.arch, card.name, card.driver, card.usable) == ("sm_75", "NVIDIA GeForce RTX 2080 Ti", None, False)
    assert card.features == ("no-driver",)
    assert "present on PCI but driver not loaded" in notes(found, "nvidia")
    assert (driver or "wanted: nvidia") in notes(found, "nvidia")


@pytest.mark.parametrize(
    ("pci_id", "pci_class", "probe", "arch"),
    [("1002:74a1", "120000", "amd", "gfx942"), ("8086:0bd5", "038000", "intel", "xe-hpc")],
)
def test_other_vendors_without_driver(tmp_path: Path, pci_id: str, pci_class: str, probe: str, arch: str) -> None:
    found = detect(write(tmp_path, pci("0000:05:00.0", pci_id, pci_class)))
    (card,) = found.devices
    assert (card.vendor, card.arch, card.usable, card.source) == (probe, arch, False, "sysfs")
    assert "present on PCI but driver not loaded" in notes(found, probe)


def test_a_card_that_is_not_passed_into_the_container(tmp_path: Path) -> None:
    files = pci("0000:01:00.0", "10de:2330", "030200", "nvidia") | {"dev/null": "", ".dockerenv": ""}
    found = detect(write(tmp_path, files))
    (card,) = found.devices
    assert (card.features, card.usable) == (("no-device-node",), False)
    assert "not passed into this container" in notes(found, "nvidia")
    assert found.host["container"] == "docker"


def test_unknown_ids_are_listed_with_unknown_architecture(tmp_path: Path) -> None:
    files = (
        pci("0000:01:00.0", "10de:fffe", "030200", "nvidia")
        | pci("0000:02:00.0", "1002:fffe", "038000")
        | pci("0000:03:00.0", "1ae0:00fe", "ff0000", "vfio-pci")
    )
    found = detect(write(tmp_path, files))
    assert [(d.vendor, d.arch, d.pci_id) for d in found.devices] == [
        ("nvidia", "unknown", "10de:fffe"),
        ("amd", "unknown", "1002:fffe"),
        ("google", "unknown", "1ae0:00fe"),
    ]
    for probe in ("nvidia", "amd", "tpu"):
        assert "not in the id table" in notes(found, probe)


def test_the_driver_names_a_card_better_than_the_table(tmp_path: Path) -> None:
    files = pci("0000:01:00.0", "10de:fffe", "030200", "nvidia") | {
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA Z900\nIRQ: 9\n"
    }
    assert detect(write(tmp_path, files)).devices[0].name == "NVIDIA Z900"


def test_an_integrated_intel_gpu_is_a_note_only(tmp_path: Path) -> None:
    found = detect(write(tmp_path, pci("0000:00:02.0", "8086:4680", "030000", "i915")))
    assert found.devices == ()
    assert "8086:4680" in notes(found, "intel")


@pytest.mark.parametrize("pci_id", ["1a03:2000", "102b:0536", "1234:1111", "1002:515e"])
def test_management_and_virtual_displays_are_ignored(tmp_path: Path, pci_id: str) -> None:
    found = detect(write(tmp_path, pci("0000:02:00.0", pci_id, "030000", "ast")))
    assert found.devices == ()
    assert [p.notes for p in found.probes if p.probe != "cpu" and p.notes] == []


def test_a_box_with_two_vendors(tmp_path: Path) -> None:
    files = (
        pci("0000:01:00.0", "1002:744c", "030000", "amdgpu", revision="0xcc\n")
        | pci("0000:02:00.0", "10de:2684", "030000", "nvidia")
        | {
            f"{KFD}/1/properties": "simd_count 168\nsimd_per_cu 2\ngfx_target_version 110000\nvendor_id 4098\n"
            "device_id 29772\nlocation_id 256\ndomain 0\n"
        }
    )
    found = detect(write(tmp_path, files))
    assert [(d.vendor, d.index, d.arch, d.name, d.units) for d in found.devices] == [
        ("nvidia", 0, "sm_89", "NVIDIA GeForce RTX 4090", None),
        ("amd", 0, "gfx1100", "AMD Radeon RX 7900 XT", 84),
    ]


def test_kfd_is_believed_over_the_table_and_says_unknown_isas(tmp_path: Path) -> None:
    files = pci("0000:0b:00.0", "1002:fffe", "038000", "amdgpu", product_name="AMD Instinct Z1\n") | {
        f"{KFD}/2/properties": "simd_count 1024\nsimd_per_cu 4\ngfx_target_version 120501\nvendor_id 4098\n"
        "device_id 65534\nlocation_id 2816\ndomain 0\n"
    }
    found = detect(write(tmp_path, files))
    (card,) = found.devices
    assert (card.arch, card.name, card.units, card.pci_address) == ("gfx1251", "AMD Instinct Z1", 256, "0000:0b:00.0")
    assert "not in the id table" in notes(found, "amd")


@pytest.mark.parametrize(
    ("target", "name"),
    [(90402, "gfx942"), (90010, "gfx90a"), (110000, "gfx1100"), (110501, "gfx1151"), (90500, "gfx950"), (100300, "gfx1030")],
)
def test_gfx_names(target: int, name: str) -> None:
    assert amd.gfx_name(target) == name


def test_amdgpu_without_kfd_cannot_compute(tmp_path: Path) -> None:
    found = detect(write(tmp_path, pci("0000:01:00.0", "1002:744c", "030000", "amdgpu")))
    assert not found.devices[0].usable
    assert "KFD does not show this GPU" in notes(found, "amd")


def test_garbage_everywhere(tmp_path: Path) -> None:
    junk = bytes(range(256)) * 40
    files: dict[str, str | bytes] = {
        "proc/cpuinfo": junk,
        "proc/meminfo": junk,
        "proc/sys/kernel/arch": b"",
        "proc/driver/nvidia/version": junk,
        "etc/os-release": junk,
        f"{KFD}/0/properties": junk,
        f"{KFD}/x/properties": "simd_count many\ngfx_target_version 90402\n",
        f"{KFD}/3/properties": "simd_count 4\ngfx_target_version 99999999999999999999\nlocation_id -1\n",
        "sys/bus/pci/devices/0000:01:00.0/vendor": junk,
        "sys/bus/pci/devices/0000:02:00.0/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:03:00.0": "a file where a folder belongs",
        "sys/bus/pci/devices/not an address/vendor": "0x10de\n",
        "dev/accel0": "",
    }
    found = detect(write(tmp_path, files | pci("0000:04:00.0", "10de:2330", "030200", "nvidia")))
    assert "10de:2330" in {d.pci_id for d in found.devices}
    assert {p.probe for p in found.probes if p.error} == {"cpu"}
    assert "passed over" in notes(found, "pci")
    assert "not taken for a TPU" in notes(found, "tpu")


def test_a_truncated_cpuinfo_gives_what_there_is(tmp_path: Path) -> None:
    whole = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: lm avx2 avx512f\n\nprocessor\t: 1\nmodel name\t: So"
    found = detect(write(tmp_path, {"proc/cpuinfo": whole}))
    (cpu,) = found.devices
    assert (cpu.name, cpu.arch, cpu.units, cpu.features, cpu.memory_bytes) == ("Some CPU", "x86_64", 2, (), None)
    assert "truncated" in notes(found, "cpu")
    assert "MemTotal" in notes(found, "cpu")


def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    block = "processor : {}\nphysical id : {}\ncore id : {}\nflags : lm avx2\n"
    text = "\n".join(block.format(n, n % 2, n // 4) for n in range(8))
    assert detect(write(tmp_path, {"proc/cpuinfo": text})).devices[0].units == 4


def test_an_arm_server(tmp_path: Path) -> None:
    block = (
        "processor\t: {}\nFeatures\t: fp asimd asimdhp asimddp i8mm bf16 sve sve2\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n"
    )
    files = {"proc/cpuinfo": "\n".join(block.format(n) for n in range(3)), "proc/meminfo": "MemTotal: 1024 kB\n"}
    (cpu,) = detect(write(tmp_path, files)).devices
    assert (cpu.name, cpu.arch, cpu.units, cpu.memory_bytes) == ("Arm Neoverse-V2", "aarch64", 3, 2**20)
    assert cpu.features == ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")


def test_a_pipe_does_not_block_and_a_link_does_not_leave_the_root(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("processor : 0\nmodel name : the wrong machine\nflags : avx2\n")
    root = write(tmp_path / "root", pci("0000:01:00.0", "10de:2330", "030200", "nvidia"))
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").symlink_to(outside)
    os.mkfifo(root / "proc/meminfo")
    found = detect(root)
    assert [d.vendor for d in found.devices] == ["nvidia"]
    assert "points outside" in notes(found, "cpu")


def test_driver_is_read_from_the_link_without_following_it(tmp_path: Path) -> None:
    root = write(tmp_path, pci("0000:01:00.0", "10de:2330", "030200"))
    (root / "sys/bus/pci/devices/0000:01:00.0/driver").symlink_to("../../../../bus/pci/drivers/nvidia")
    assert detect(root).devices[0].usable


def test_one_failing_probe_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("kernel says no")

    monkeypatch.setitem(detect.__globals__["_PROBES"], "amd", broken)
    found = detect(write(tmp_path, pci("0000:01:00.0", "10de:2330", "030200", "nvidia")))
    assert {p.probe: p.error for p in found.probes if p.error and p.probe != "cpu"} == {"amd": "RuntimeError: kernel says no"}
    assert [d.arch for d in accelerators(found)] == ["sm_90"]


def test_a_tpu_without_device_node(tmp_path: Path) -> None:
    found = detect(write(tmp_path, pci("0000:00:05.0", "1ae0:0063", "ff0000", "vfio-pci")))
    assert (found.devices[0].arch, found.devices[0].usable) == ("tpu-v5e", False)
    assert "no /dev/accel*" in notes(found, "tpu")


def test_older_tpus_share_an_id_and_newer_ones_show_two_functions_a_chip(tmp_path: Path) -> None:
    files = (
        pci("0000:00:04.0", "1ae0:0027", "ff0000", subsystem_device="0x004e\n")
        | pci("0000:00:05.0", "1ae0:0027", "ff0000", subsystem_device="0x004f\n")
        | pci("0000:00:06.0", "1ae0:0076", "ff0000", "vfio-pci")
        | pci("0000:00:06.1", "1ae0:0076", "ff0000", "vfio-pci")
        | {"dev/accel0": ""}
    )
    assert [d.arch for d in detect(write(tmp_path, files)).devices] == ["tpu-v2", "tpu-v3", "tpu-v7x"]


def test_nvml_that_fails_falls_back_to_sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library() -> object:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(nvidia, "_load_nvml", no_library)
    tree = Tree(write(tmp_path, pci("0000:01:00.0", "10de:2330", "030200", "nvidia")))
    cards = read_pci(tree)
    tree.live = True  # as at the real root
    result = nvidia.probe(tree, cards)
    assert result.error is None
    assert [(d.arch, d.source) for d in result.devices] == [("sm_90", "sysfs")]
    assert "NVML failed (OSError: libnvidia-ml.so.1" in "\n".join(result.notes)
