"""Reading of NVML's and amdsmi's answers, from stand-ins that answer in the forms the libraries document.

What is under test is our reading (addresses, ids, cores a multiprocessor, questions that a card refuses), so the stand-ins
answer as a machine would; the names that we call are checked against the real nvidia-ml-py.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pynvml

from attnkit.hardware import amd, nvidia
from attnkit.hardware.device import Device
from attnkit.hardware.pci import PciDevice


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


def test_nvml_is_believed_over_the_id_table() -> None:
    notes: list[str] = []
    (card,) = nvidia.from_nvml(Nvml([(*H100[:3], (10, 0), *H100[4:])]), (), notes)
    assert card.arch == "sm_100"
    assert "NVML's is used" in notes[0]


def test_nvml_names_exist_in_the_real_library() -> None:
    tree = ast.parse(inspect.getsource(nvidia))
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.lower().startswith("nvml")}
    assert len(used) >= 12
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
