"""Reading of NVML's and amdsmi's answers, from stand-ins that answer in the forms the libraries document.

What is under test is our reading (addresses, ids, cores a multiprocessor, questions that a card refuses), so the stand-ins
answer as a machine would; the names that we call are checked against the real nvidia-ml-py.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attnkit.hardware import amd, nvidia, visible
from attnkit.hardware.device import Detection, Device
from attnkit.hardware.pci import PciDevice, read_pci
from attnkit.hardware.tree import Tree
from attnkit.profiles import match_node


class NVMLError(Exception):
    pass


@dataclass
class Nvml:
    """Two GPUs of one driver: `cards` holds (name, busId, pciDeviceId, capability, memory, cores, mig, ecc)."""

    cards: list[tuple[Any, ...]]
    NVMLError: type[Exception] = NVMLError
    open: bool = False

    def nvmlInit(self) -> None:
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.95.05"  # bytes up to nvidia-ml-py 11, text since

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[Any, ...]:
        if not self.cards[index]:
            raise NVMLError("GPU is lost")
        return self.cards[index]

    def nvmlDeviceGetName(self, handle: tuple[Any, ...]) -> Any:
        return handle[0]

    def nvmlDeviceGetPciInfo(self, handle: tuple[Any, ...]) -> Any:
        return SimpleNamespace(busId=handle[1], pciDeviceId=handle[2])

    def nvmlDeviceGetCudaComputeCapability(self, handle: tuple[Any, ...]) -> tuple[int, int]:
        return handle[3]

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[Any, ...]) -> Any:
        return SimpleNamespace(total=self._known(handle[4]))

    def nvmlDeviceGetNumGpuCores(self, handle: tuple[Any, ...]) -> int:
        return self._known(handle[5])

    def nvmlDeviceGetMigMode(self, handle: tuple[Any, ...]) -> list[int]:
        return self._known(handle[6])

    def nvmlDeviceGetEccMode(self, handle: tuple[Any, ...]) -> list[int]:
        return self._known(handle[7])

    @staticmethod
    def _known(value: Any) -> Any:
        if value is None:
            raise NVMLError("Not Supported")
        return value


H100 = ("NVIDIA H100 80GB HBM3", "00000000:1B:00.0", 0x233010DE, (9, 0), 85_520_809_984, 16896, [0, 0], [1, 1])
RTX_2080_TI = (b"NVIDIA GeForce RTX 2080 Ti", b"00000001:65:00.0", 0x1E0710DE, (7, 5), 11_811_160_064, 4352, None, None)


def test_nvml_answers_become_devices() -> None:
    nvml, notes = Nvml([H100, RTX_2080_TI]), []
    first, second = nvidia.from_nvml(nvml, (), notes)
    assert (first.name, first.arch, first.units, first.features) == ("NVIDIA H100 80GB HBM3", "sm_90", 132, ("ecc",))
    assert (first.pci_address, first.pci_id, first.driver) == ("0000:1b:00.0", "10de:2330", "580.95.05")
    assert first.memory_bytes == 85_520_809_984
    assert (second.name, second.arch, second.units, second.features) == ("NVIDIA GeForce RTX 2080 Ti", "sm_75", 68, ())
    assert (second.pci_address, second.index, second.source) == ("0001:65:00.0", 1, "nvml")
    assert notes == []
    assert not nvml.open


def test_mig_a_lost_gpu_and_a_hidden_one_are_notes() -> None:
    mig = (*H100[:6], [1, 1], [1, 1])
    hidden = PciDevice("0000:43:00.0", "10de:2330", "0302", "nvidia")
    notes: list[str] = []
    (card,) = nvidia.from_nvml(Nvml([mig, ()]), (hidden,), notes)
    assert card.features == ("mig", "ecc")
    text = "\n".join(notes)
    assert "MIG is on" in text
    assert "GPU 1: NVML cannot describe it (GPU is lost)" in text
    assert "0000:43:00.0" in text


@dataclass
class Mig(Nvml):
    """The first card is cut: `parts` holds (name, memory, multiprocessors) of its instances, None where there is none."""

    parts: tuple[Any, ...] = ()

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: tuple[Any, ...]) -> int:
        return len(self.parts) if self._known(handle[6])[0] else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: tuple[Any, ...], index: int) -> Any:
        if self.parts[index] is None:
            raise NVMLError("Not Found")
        return self.parts[index]

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[Any, ...]) -> Any:
        return SimpleNamespace(total=handle[1]) if len(handle) == 3 else super().nvmlDeviceGetMemoryInfo(handle)

    def nvmlDeviceGetAttributes(self, handle: tuple[Any, ...]) -> Any:
        return SimpleNamespace(multiprocessorCount=handle[2], memorySizeMB=handle[1] // 2**20)

    def nvmlDeviceGetUUID(self, handle: tuple[Any, ...]) -> str:
        return f"MIG-{self.parts.index(handle)}" if len(handle) == 3 else "GPU-0"

    def nvmlDeviceGetNvLinkState(self, handle: tuple[Any, ...], link: int) -> int:
        return int(link < 4)


GIB = 2**30
CUT = (*H100[:6], [1, 1], [1, 1])
SLICES = (("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40 * GIB, 60), None, ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10 * GIB, 16))


def test_mig_instances_are_devices_with_their_own_memory_and_units() -> None:
    whole, large, small, other = nvidia.from_nvml(Mig([CUT, RTX_2080_TI], parts=SLICES), (), [])
    assert (whole.memory_bytes, whole.features, whole.links) == (85_520_809_984, ("mig", "ecc"), ("4 × NVLink",))
    assert (large.part, large.memory_bytes, large.units, large.uuid) == ("3g.40gb", 40 * GIB, 60, "MIG-0")
    assert (small.part, small.memory_bytes, small.units, small.uuid) == ("1g.10gb", 10 * GIB, 16, "MIG-2")
    assert large.features == ("ecc", "mig-slice") and (large.arch, large.pci_id) == ("sm_90", "10de:2330")
    assert [d.index for d in (whole, large, small, other)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("value", "part"), [(None, "3g.40gb"), ("0", "3g.40gb"), ("MIG-2", "1g.10gb"), ("MIG-2,MIG-0", "1g.10gb")]
)
def test_a_process_gets_one_mig_instance_and_it_is_what_is_matched(value: str | None, part: str) -> None:
    found = nvidia.from_nvml(Mig([CUT], parts=SLICES), (), [])
    seen = visible.apply(found, {} if value is None else {"CUDA_VISIBLE_DEVICES": value})
    assert [d.part for d in seen.devices if d.visible] == [part]
    match = match_node(Detection(seen.devices, ()))
    assert (match.node, match.device.part) == ("h100", part)


def test_a_card_in_mig_mode_without_an_instance_is_a_clear_no() -> None:
    (card,) = nvidia.from_nvml(Mig([CUT], parts=(None, None)), (), [])
    assert not card.usable and "no instance was made" in (card.problem or "")
    assert match_node(Detection((card,), ())).node is None


def on_a_live_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nvml: Any, cards: int = 2) -> tuple[Device, ...]:
    """What the probe lists where NVML is `nvml`: a machine with H100s on PCI, their driver loaded."""
    monkeypatch.setattr(nvidia, "_load_nvml", lambda: nvml)
    for number in range(cards):
        folder = tmp_path / f"sys/bus/pci/devices/0000:{0x1B + number:02x}:00.0"
        folder.mkdir(parents=True)
        for name, text in (("vendor", "0x10de"), ("device", "0x2330"), ("class", "0x030200"), ("uevent", "DRIVER=nvidia")):
            (folder / name).write_text(text)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").write_text("")
    tree = Tree(tmp_path)
    cards_on_pci = read_pci(tree)
    tree.live = True  # as at the real root
    result = nvidia.probe(tree, cards_on_pci)
    assert result.error is None
    return result.devices


@pytest.mark.parametrize("cards", [2, 0])
def test_all_gpus_lost_are_listed_and_are_no_cpu_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cards: int) -> None:
    devices = on_a_live_machine(tmp_path, monkeypatch, Nvml([(), ()]), cards)
    assert [(d.usable, d.features) for d in devices] == [(False, ("lost",))] * 2
    match = match_node(Detection((*devices, Device("cpu", "cpu", "Xeon", "x86_64")), ()))
    assert match.node is None and "NVML says: GPU is lost" in match.why


def test_one_lost_gpu_is_listed_beside_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, lost = on_a_live_machine(tmp_path, monkeypatch, Nvml([H100, ()]))
    assert (whole.usable, lost.usable, lost.pci_address) == (True, False, "0000:1c:00.0")
    assert "GPU is lost" in (lost.problem or "")


def test_a_hidden_gpu_is_not_taken_for_a_lost_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [d.usable for d in on_a_live_machine(tmp_path, monkeypatch, Nvml([H100]))] == [True]


@dataclass
class Mismatch(Nvml):
    def nvmlInit(self) -> None:
        raise NVMLError("Driver/library version mismatch")


def test_a_mismatch_of_driver_and_library_is_said_in_nvmls_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = on_a_live_machine(tmp_path, monkeypatch, Mismatch([]))
    assert [(d.usable, d.features) for d in devices] == [(False, ("driver-fails",))] * 2
    assert "NVML says: Driver/library version mismatch" in match_node(Detection(devices, ())).why


def test_a_card_without_tensor_cores_by_id_and_by_name() -> None:
    gtx_1660 = ("NVIDIA GeForce GTX 1660", "00000000:01:00.0", 0x218410DE, (7, 5), 6 * GIB, 1408, None, None)
    odd = ("NVIDIA GeForce GTX 1650", "00000000:02:00.0", 0xFFFF10DE, (7, 5), 4 * GIB, 896, None, None)
    cards = nvidia.from_nvml(Nvml([gtx_1660, odd, RTX_2080_TI]), (), [])
    assert [d.tensor_cores for d in cards] == [False, False, True]
    assert [match_node(Detection((d,), ())).node for d in cards] == ["gtx-16", "gtx-16", "rtx-2080-ti"]


def test_nvml_is_believed_over_the_id_table() -> None:
    notes: list[str] = []
    (card,) = nvidia.from_nvml(Nvml([(*H100[:3], (10, 0), *H100[4:])]), (), notes)
    assert card.arch == "sm_100"
    assert "NVML's is used" in notes[0]


def test_nvml_names_exist_in_the_real_library() -> None:
    tree = ast.parse(inspect.getsource(nvidia))
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.lower().startswith("nvml")}
    assert len(used) >= 12
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed here")
    assert {name for name in used if not hasattr(pynvml, name)} == set()


class Amdsmi:
    """Handles are indices into (bdf, market name)."""

    def __init__(self, cards: list[tuple[str, str]]) -> None:
        self.cards, self.calls = cards, []

    def amdsmi_init(self) -> None:
        self.calls.append("init")

    def amdsmi_shut_down(self) -> None:
        self.calls.append("shut_down")

    def amdsmi_get_processor_handles(self) -> list[int]:
        return list(range(len(self.cards)))

    def amdsmi_get_gpu_device_bdf(self, handle: int) -> str:
        return self.cards[handle][0]

    def amdsmi_get_gpu_asic_info(self, handle: int) -> dict[str, str]:
        return {"market_name": self.cards[handle][1]}


def test_amdsmi_gives_market_names_by_address() -> None:
    devices = [
        Device("amd", "gpu", "from the table", "gfx942", index, pci_address=address)
        for index, address in enumerate(("0000:05:00.0", "0000:26:00.0", "0000:46:00.0"))
    ]
    library = Amdsmi([("0000:26:00.0", "N/A"), ("0000:05:00.0", "AMD Instinct MI300X OAM")])
    names = [d.name for d in amd.with_market_names(library, devices)]
    assert names == ["AMD Instinct MI300X OAM", "from the table", "from the table"]
    assert library.calls == ["init", "shut_down"]
