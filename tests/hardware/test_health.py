"""How devices are: each field read or with its reason, never 0 for what is not known; a hung driver has a deadline."""

from __future__ import annotations

import ast
import inspect
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attnkit.hardware import detect, health_nvml, nvidia_child
from attnkit.hardware.device import MIG_SLICE, Device
from attnkit.hardware.findings import findings
from attnkit.hardware.health import READINGS, Health
from attnkit.hardware.health_nvml import nvml_health
from attnkit.hardware.health_probe import read_all
from attnkit.hardware.health_sysfs import cpu_health, sysfs_health
from attnkit.hardware.pci import PciDevice
from attnkit.hardware.tree import Tree

GPU = Device("nvidia", "gpu", "H200", "sm_90", 1, pci_address="0000:3b:00.0", uuid="GPU-1", driver="580.1", numa_node=0)
PCI = "sys/bus/pci/devices/0000:3b:00.0"


def complete(health: Health) -> None:
    """Every field is known or has its reason."""
    for name in READINGS:
        assert (getattr(health, name) is None) == (name in health.unread), name
        assert health.unread.get(name, "why"), name


class NVMLError(Exception):
    pass


class Nvml:
    """An H200 in the forms that nvidia-ml-py documents; what is in `refused` raises as NVML does."""

    NVMLError = NVMLError

    def __init__(self, *refused: str, links: tuple[int, ...] = (1,) * 18) -> None:
        self.refused, self.links = refused, links

    def __getattribute__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "refused"):
            raise NVMLError("Not Supported")
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetHandleByPciBusId(self, address: bytes) -> bytes:
        return address

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> bytes:
        return uuid

    def nvmlDeviceGetTotalEccErrors(self, card: bytes, error: int, counter: int) -> int:
        return 10 * error + counter

    def nvmlDeviceGetCurrentClocksEventReasons(self, card: bytes) -> int:
        return 0x1 | 0x40

    def nvmlDeviceGetClockInfo(self, card: bytes, clock: int) -> int:
        return {1: 345, 2: 3201}[clock]

    def nvmlDeviceGetMaxClockInfo(self, card: bytes, clock: int) -> int:
        return {1: 1980, 2: 3201}[clock]

    def nvmlDeviceGetMemoryInfo(self, card: bytes) -> Any:
        return SimpleNamespace(used=5 if card.startswith(b"MIG") else 2**37, total=2**30 if card.startswith(b"MIG") else 2**37)

    def nvmlDeviceGetTemperature(self, card: bytes, sensor: int) -> int:
        return 31

    def nvmlDeviceGetPowerUsage(self, card: bytes) -> int:
        return 76543

    def nvmlDeviceGetEnforcedPowerLimit(self, card: bytes) -> int:
        return 700000

    def nvmlDeviceGetNvLinkState(self, card: bytes, link: int) -> int:
        if link >= len(self.links):
            raise NVMLError("Invalid Argument")
        return self.links[link]

    def nvmlDeviceGetFieldValues(self, card: bytes, fields: list[int]) -> list[Any]:
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=26562))]

    def nvmlDeviceGetCurrPcieLinkGeneration(self, card: bytes) -> int:
        return 1

    def nvmlDeviceGetCurrPcieLinkWidth(self, card: bytes) -> int:
        return 8

    def nvmlDeviceGetMaxPcieLinkGeneration(self, card: bytes) -> int:
        return 5

    def nvmlDeviceGetMaxPcieLinkWidth(self, card: bytes) -> int:
        return 16

    def nvmlDeviceGetPerformanceState(self, card: bytes) -> int:
        return 8


def test_nvml_tells_all_of_it() -> None:
    found = nvml_health(Nvml(), GPU)
    complete(found)
    assert found.unread == {}
    counts = (found.ecc_corrected_volatile, found.ecc_corrected_aggregate, found.ecc_uncorrected_volatile)
    assert (*counts, found.ecc_uncorrected_aggregate) == (0, 1, 10, 11)
    assert (found.throttle_reasons, found.full_speed) == (("gpu-idle", "hw-thermal-slowdown"), False)
    assert (found.clock_mhz, found.clock_max_mhz, found.memory_clock_mhz) == (345, 1980, 3201)
    assert (found.power_w, found.power_limit_w, found.temperature_c) == (76.543, 700.0, 31.0)
    assert (found.links, found.links_max, found.link_mb_per_s) == (18, 18, 26562)
    assert (found.pcie_generation, found.pcie_width, found.pcie_generation_max, found.pcie_width_max) == (1, 8, 5, 16)
    assert (found.driver, found.numa_node, found.source, found.recorded) == ("580.1", 0, "nvml", False)


def test_what_a_card_refuses_is_unread_with_nvmls_words() -> None:
    found = nvml_health(Nvml("nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetPowerUsage", links=()), replace(GPU, numa_node=None))
    complete(found)
    assert found.ecc_uncorrected_volatile is None
    assert found.unread["ecc_uncorrected_volatile"] == found.unread["power_w"] == "Not Supported"
    assert (found.links, found.link_mb_per_s) == (0, None)
    assert set(found.unread) == {"power_w", "link_mb_per_s", "numa_node", *(n for n in READINGS if n.startswith("ecc"))}


def test_a_mig_slice_has_its_own_memory_and_its_cards_errors() -> None:
    found = nvml_health(Nvml(), replace(GPU, features=(MIG_SLICE,), uuid="MIG-7"))
    assert (found.memory_used_bytes, found.memory_total_bytes, found.ecc_uncorrected_volatile) == (5, 2**30, 10)


def test_the_names_that_are_called_are_nvmls() -> None:
    pynvml = pytest.importorskip("pynvml")
    text = inspect.getsource(health_nvml)
    names = {
        node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute) and node.attr.startswith("nvml")
    }
    names |= {
        n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant) and str(n.value).startswith("nvmlDeviceGet")
    }
    assert len(names) > 15
    assert {name for name in names if name != "nvmlReturn" and not hasattr(pynvml, name)} == set()


def tree(root: Path, files: dict[str, str]) -> Tree:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(root)


LINK = {
    f"{PCI}/current_link_speed": "16.0 GT/s PCIe\n",
    f"{PCI}/current_link_width": "8\n",
    f"{PCI}/max_link_speed": "32.0 GT/s PCIe\n",
    f"{PCI}/max_link_width": "16\n",
}


def test_amdgpus_files(tmp_path: Path) -> None:
    mi300x = Device(
        "amd", "gpu", "MI300X", "gfx942", 0, pci_address="0000:3b:00.0", driver="6.8", links=("xGMI to KFD node 3, 4, 5",)
    )
    files = LINK | {
        f"{PCI}/mem_info_vram_used": "300000000\n",
        f"{PCI}/mem_info_vram_total": "206141652992\n",
        f"{PCI}/ras/umc_err_count": "ue: 1\nce: 4\n",
        f"{PCI}/ras/gfx_err_count": "ue: 0\nce: 2\n",
        f"{PCI}/pp_dpm_sclk": "0: 132Mhz\n1: 500Mhz *\n2: 2100Mhz\n",
        f"{PCI}/pp_dpm_mclk": "0: 900Mhz *\n1: 1300Mhz\n",
        f"{PCI}/hwmon/hwmon3/temp1_input": "41000\n",
        f"{PCI}/hwmon/hwmon3/power1_average": "137000000\n",
        f"{PCI}/hwmon/hwmon3/power1_cap": "750000000\n",
    }
    found = sysfs_health(tree(tmp_path, files), mi300x)
    complete(found)
    assert found.recorded, "a tree that was recorded is marked as such"
    assert (found.ecc_corrected_volatile, found.ecc_uncorrected_volatile, found.ecc_uncorrected_aggregate) == (6, 1, None)
    assert (found.memory_used_bytes, found.memory_total_bytes) == (300000000, 206141652992)
    assert (found.clock_mhz, found.clock_max_mhz, found.memory_clock_mhz, found.memory_clock_max_mhz) == (500, 2100, 900, 1300)
    assert (found.temperature_c, found.power_w, found.power_limit_w) == (41.0, 137.0, 750.0)
    assert (found.pcie_generation, found.pcie_width, found.pcie_generation_max, found.pcie_width_max) == (4, 8, 5, 16)
    assert found.links == 3
    empty = sysfs_health(tree(tmp_path / "empty", {"sys/x": ""}), mi300x)
    complete(empty)
    assert (empty.ecc_uncorrected_volatile, empty.memory_used_bytes, empty.temperature_c) == (None, None, None)


@pytest.mark.parametrize("driver", ["xe", "i915"])
def test_intels_files(tmp_path: Path, driver: str) -> None:
    new = driver == "xe"
    clock, most = (
        ("tile0/gt0/freq0/act_freq", "tile0/gt0/freq0/rp0_freq")
        if new
        else ("drm/card1/gt_act_freq_mhz", "drm/card1/gt_RP0_freq_mhz")
    )
    reasons = "tile0/gt0/freq0/throttle/reason_" if new else "drm/card1/gt/gt0/throttle_reason_"
    files = LINK | {
        f"{PCI}/{clock}": "1200\n",
        f"{PCI}/{most}": "2400\n",
        f"{PCI}/{reasons}thermal": "1\n",
        f"{PCI}/{reasons}pl1": "0\n",
        f"{PCI}/{reasons}status": "1\n",
        f"{PCI}/hwmon/hwmon1/temp2_input": "50000\n",
    }
    found = sysfs_health(
        tree(tmp_path, files), Device("intel", "gpu", "Arc", "xe-hpg", 0, pci_address="0000:3b:00.0", driver=driver)
    )
    complete(found)
    assert (found.clock_mhz, found.clock_max_mhz, found.throttle_reasons) == (1200, 2400, ("thermal",))
    assert (found.temperature_c, found.memory_used_bytes, found.ecc_uncorrected_volatile) == (50.0, None, None)


def test_rubbish_in_a_file_is_a_reason(tmp_path: Path) -> None:
    files = {**LINK, f"{PCI}/current_link_width": "wide\n", f"{PCI}/max_link_speed": "Unknown\n"}
    found = sysfs_health(tree(tmp_path, files), GPU)
    complete(found)
    assert found.pcie_width is None and "holds 'wide'" in found.unread["pcie_width"]
    assert found.pcie_generation_max is None
    assert "recorded tree" in found.unread["memory_used_bytes"]


def test_the_cpus_memory(tmp_path: Path) -> None:
    files = {"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 400 kB\n"}
    edac = {f"sys/devices/system/edac/mc/mc{n}/{kind}_count": f"{n}\n" for n in (1, 2) for kind in ("ce", "ue")}
    found = cpu_health(tree(tmp_path / "a", files))
    complete(found)
    assert (found.memory_used_bytes, found.memory_total_bytes, found.ecc_uncorrected_volatile) == (
        600 * 1024,
        1000 * 1024,
        None,
    )
    assert cpu_health(tree(tmp_path / "b", files | edac)).ecc_uncorrected_volatile == 3


def test_this_machines_devices_are_read() -> None:
    devices = detect().devices
    for health in read_all(devices):
        complete(health)
        assert not health.recorded


HANGS = """
import os, time
class NVMLError(Exception): pass
def nvmlInit():
    pass
nvmlShutdown = nvmlInit
def nvmlDeviceGetHandleByPciBusId(address):
    if address == b"0000:3b:00.0":
        time.sleep(600)
    if address == b"0000:4b:00.0":
        os.abort()
    return address
"""


def test_a_driver_that_hangs_or_crashes_for_one_device_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pynvml.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    devices = [replace(GPU, pci_address=f"0000:{bus}:00.0") for bus in ("2b", "3b", "4b")]
    answered, hung, crashed = read_all(devices, deadline=8.0)
    for health in (answered, hung, crashed):
        complete(health)
    assert answered.driver == "580.1"
    assert "did not answer within 8 s" in hung.unread["memory_used_bytes"]
    assert findings(devices[1], hung, memory_share=0.9) == [f"{devices[1].label}: {hung.unread['memory_used_bytes']}"]
    assert "the probe ended with -6" in crashed.unread["memory_used_bytes"]


SOUND = Health(
    ecc_uncorrected_volatile=0,
    ecc_uncorrected_aggregate=0,
    throttle_reasons=("gpu-idle", "sw-power-cap"),
    memory_used_bytes=2**30,
    memory_total_bytes=2**37,
    links=18,
    links_max=18,
    pcie_generation=1,
    pcie_generation_max=5,
    pcie_width=16,
    pcie_width_max=16,
    full_speed=False,
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"memory_used_bytes": 2**36}, "64.0 of 128.0 GiB of its memory are in use by others; serving takes 90% of it"),
        ({"memory_used_bytes": None}, None),
        ({"ecc_uncorrected_volatile": 2}, "2 uncorrected memory errors since the driver was loaded"),
        ({"ecc_uncorrected_aggregate": 1}, "1 uncorrected memory errors in all"),
        ({"throttle_reasons": ("hw-thermal-slowdown",)}, "its clocks are throttled: hw-thermal-slowdown"),
        ({"pcie_width": 8}, "its PCIe link is 8 lanes wide; 16 would go"),
        ({"full_speed": True}, "its PCIe link runs at generation 1 at full load; 5 would go"),
        ({"links": 17}, "17 of its 18 NVLinks are up"),
    ],
)
def test_findings(change: dict[str, Any], words: str | None) -> None:
    expected = [] if words is None else [f"device 1 (GPU-1, 0000:3b:00.0): {words}"]
    assert findings(GPU, replace(SOUND, **change), memory_share=0.9) == expected


def test_a_cpus_memory_is_for_everybody() -> None:
    cpu = Device("cpu", "cpu", "Xeon", "x86_64")
    assert findings(cpu, Health(memory_used_bytes=9, memory_total_bytes=10), memory_share=0.9) == []


CARD = PciDevice("0000:3b:00.0", "10de:2335", "0302", driver="nvidia")


@pytest.mark.parametrize(
    ("startup", "words"),
    [
        ("import time; time.sleep(600)", "NVML did not answer within 2 s"),
        ("import os; os.abort()", "NVML's process ended with -6"),
    ],
)
def test_an_nvml_that_hangs_or_crashes_leaves_its_gpus_listed_as_not_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, startup: str, words: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(startup)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found = nvidia_child.probe(Tree("/"), (CARD,), deadline=2.0)
    assert words in found.notes[0]
    assert [(device.pci_address, device.usable) for device in found.devices] == [("0000:3b:00.0", False)]


def test_nvidias_probe_answers_through_its_process() -> None:
    found = nvidia_child.probe(Tree("/"), (CARD,))
    assert (found.probe, found.error) == ("nvidia", None)
    assert [device.source for device in found.devices] == [d.source for d in detect().devices if d.vendor == "nvidia"]
