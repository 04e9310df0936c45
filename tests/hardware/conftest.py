"""Machines for the tests: made of PCI functions and files, and what attnkit answers about them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from attnkit.errors import AttnkitError
from attnkit.hardware.device import Device
from attnkit.hardware.visible import VARIABLES
from attnkit.select.node import find_node, inspect_machine
from attnkit.select.plan import make_plan

TREES = Path(__file__).resolve().parents[1] / "data" / "trees"
XEON = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8480+\nflags\t\t: lm avx2 avx512f amx_tile\n"


@dataclass(frozen=True)
class Answer:
    """What attnkit says about a machine.

    Args:
        node: its node type by detection, None where it is refused or unknown.
        why: the sentence of detection.
        chosen: what selection chose, None where nothing was.
        code: the exit code of `attnkit select`; 0 where something was chosen.
        said: the error, or the reasons.
    """

    node: str | None
    why: str
    devices: tuple[Device, ...]
    chosen: str | None
    device: Device | None
    code: int
    said: str


class Machine:
    """A tree in the making."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch
        self.files({"proc/cpuinfo": XEON, "proc/meminfo": "MemTotal: 263000000 kB\n", "proc/sys/kernel/arch": "x86_64\n"})
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)

    def files(self, files: Mapping[str, str]) -> Machine:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return self

    def card(self, address: str, pci_id: str, pci_class: str, driver: str | None = None, **more: str) -> Machine:
        base = f"sys/bus/pci/devices/{address}"
        vendor, device = pci_id.split(":")
        self.files({f"{base}/vendor": f"0x{vendor}\n", f"{base}/device": f"0x{device}\n", f"{base}/class": f"0x{pci_class}\n"})
        self.files({f"{base}/uevent": f"DRIVER={driver}\n"} if driver else {})
        return self.files({f"{base}/{name}": text for name, text in more.items()})

    def nvidia(self, address: str, pci_id: str, uuid: str = "", driver: str | None = "nvidia", minor: int = 0) -> Machine:
        """An NVIDIA card whose driver is loaded."""
        self.card(address, pci_id, "030200", driver, numa_node="0\n")
        if driver == "nvidia":
            self.files(
                {
                    f"proc/driver/nvidia/gpus/{address}/information": f"GPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n",
                    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module  580.95.05  Release\n",
                    "dev/nvidiactl": "",
                    f"dev/nvidia{minor}": "",
                }
            )
        return self

    def kfd(
        self, number: int, location: int, *, target: int = 90402, simds: int = 1216, memory: int = 2**37, **more: int
    ) -> Machine:
        """A node of the KFD topology."""
        base = f"sys/class/kfd/kfd/topology/nodes/{number}"
        properties = {
            "simd_count": simds,
            "simd_per_cu": 4,
            "gfx_target_version": target,
            "vendor_id": 4098,
            "location_id": location,
        }
        text = "".join(f"{key} {value}\n" for key, value in {**properties, "domain": 0, **more}.items())
        self.files({f"{base}/properties": text, "dev/kfd": ""})
        return self.files({f"{base}/mem_banks/0/properties": f"heap_type 1\nsize_in_bytes {memory}\n"})

    def ask(self, node: str | None = None, **environment: str) -> Answer:
        """What detection and selection say, with every library of the platform's image taken for installed."""
        for name, value in environment.items():
            self.monkeypatch.setenv(name, value)
        box = inspect_machine(self.root)
        devices = box.detection.devices
        try:
            where = find_node(root=self.root, node=node)
            plan = make_plan(where, assume_installed=True)
        except AttnkitError as error:
            return Answer(box.match.node, box.match.why, devices, None, None, error.exit_code, str(error))
        chosen = plan.decision.chosen
        reasons = "\n".join(dict.fromkeys(reason.message for r in plan.decision.rejected for reason in r.reasons))
        return Answer(
            box.match.node,
            box.match.why,
            devices,
            chosen.backend if chosen else None,
            where.device,
            0 if chosen else 3,
            reasons,
        )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def make_trees() -> ModuleType:
    """The generator of the committed trees."""
    spec = importlib.util.spec_from_file_location("make_trees", TREES / "make_trees.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_trees"] = module
    spec.loader.exec_module(module)
    return module


New = Callable[[], Machine]


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> New:
    """As many machines as a test wants, each with an environment without any visible-device variable."""
    count = iter(range(100_000))
    return lambda: Machine(tmp_path / f"m{next(count)}", monkeypatch)
