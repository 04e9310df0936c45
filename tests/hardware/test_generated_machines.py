"""Machines drawn at random, vendors × states × visible-device variables: an answer each, never a traceback."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from attnkit.cli import tables
from attnkit.hardware.device import INTEGRATED
from attnkit.select.node import inspect_machine

COUNT = 150
CARDS = (
    *(("10de:2330", "030200", "nvidia"), ("10de:1eb8", "030200", "nvidia"), ("10de:2184", "030000", "nvidia")),
    *(("10de:27b8", "030200", "nvidia"), ("10de:fffe", "030200", "nvidia"), ("10de:128b", "030000", "nvidia")),
    *(("1002:74a1", "120000", "amdgpu"), ("1002:744c", "030000", "amdgpu"), ("1002:164e", "030000", "amdgpu")),
    *(("8086:56a0", "030000", "xe"), ("8086:0bd5", "038000", "i915"), ("8086:4680", "030000", "i915")),
    *(("1ae0:0063", "ff0000", "vfio-pci"), ("1da3:1020", "120000", "habanalabs"), ("1d0f:7364", "088000", "neuron")),
    *(("1a03:2000", "030000", "ast"), ("abcd:1234", "120000", "mystery"), ("19e5:d802", "120000", "drv_devmng")),
)
VALUES = (
    "",
    "-1",
    "0",
    "1",
    "1,0",
    "0,0",
    "7",
    "0,7",
    "GPU-0",
    "GPU-00000000000000a1",
    "MIG-x",
    "junk",
    "0.1",
    ",",
    "GPU-,",
    "level_zero:0",
)
NAMES = (
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "NVIDIA_VISIBLE_DEVICES"),
    *("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR", "TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES"),
)
KFD_TARGETS = {"1002:74a1": 90402, "1002:744c": 110000, "1002:164e": 100306}


def draw(rng: random.Random, machine: Any) -> dict[str, str]:
    """Fill a machine with cards in some state; the variables of its environment."""
    for slot in range(rng.randrange(5)):
        pci_id, pci_class, driver = rng.choice(CARDS)
        address = f"{rng.choice(('0000', '0001', '10000'))}:{0x10 + slot:02x}:00.0"
        state = rng.choice(("works", "works", "works", "no driver", "vfio", "lost", "no node", "shuffled"))
        bound = {"no driver": None, "vfio": "vfio-pci"}.get(state, driver)
        if driver == "nvidia":
            machine.nvidia(address, pci_id, "GPU-????" if state == "lost" else f"GPU-{slot}{slot}-x", driver=bound, minor=slot)
            if rng.random() < 0.3:
                machine.files({f"proc/driver/nvidia/capabilities/gpu{slot}/mig/gi1/ci0/access": ""})
        else:
            machine.card(address, pci_id, pci_class, bound, revision=rng.choice(("0x00\n", "0xc8\n", "0xff\n", "rubbish")))
        if pci_id in KFD_TARGETS and bound == "amdgpu" and state != "no node":
            for part in range(rng.choice((1, 1, 8))):
                number = 1 + slot * 8 + part
                machine.kfd(number, (0x10 + slot) << 8 | part << 28, target=KFD_TARGETS[pci_id], unique_id=0xA0 + slot)
        if state == "works":
            machine.files({"dev/dri/renderD128": "", "dev/kfd": "", "dev/vfio/0": ""})
    if rng.random() < 0.1:
        machine.files(
            {rng.choice(("dev/neuron0", "dev/accel0", "dev/accel/accel0", "dev/davinci0", "dev/nvidia0", "dev/nvhost-gpu")): ""}
        )
    if rng.random() < 0.1:
        machine.files({"usr/lib64/libcuda.so.570.1.2": ""})
    if rng.random() < 0.1:
        machine.files({"proc/cpuinfo": rng.choice(("", "rubbish", "processor 0: version = FF, machine = 3931\n"))})
    environment = {name: rng.choice(VALUES) for name in NAMES if rng.random() < 0.15}
    if rng.random() < 0.2:
        environment["CUDA_DEVICE_ORDER"] = rng.choice(("PCI_BUS_ID", "FASTEST_FIRST", "junk"))
    return environment


@pytest.mark.parametrize("seed", range(COUNT))
def test_a_machine_gets_a_node_or_a_reason(machines: Callable[[], Any], seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    machine = machines()
    environment = draw(random.Random(seed), machine)
    answer = machine.ask(**environment)
    accelerators = [d for d in answer.devices if d.kind != "cpu" and INTEGRATED not in d.features]
    if answer.code == 0:
        assert answer.device.usable and answer.device.visible, answer
        assert (answer.device.kind == "cpu") == (not accelerators), "a CPU does not serve in an accelerator's place"
    else:
        assert answer.code in (2, 3) and answer.said, answer
    assert answer.why
    for device in answer.devices:
        assert device.usable == (device.obstacle is None)
        assert device.usable or device.ordinal is None
    tables.show_machine(inspect_machine(machine.root), ())
    assert "node type" in capsys.readouterr().out


def test_they_are_of_every_kind(machines: Callable[[], Any]) -> None:
    """The draw reaches nodes, refusals for different devices and refusals with a reason; else the test above shows little."""
    codes = []
    for seed in range(COUNT):
        machine = machines()
        with pytest.MonkeyPatch.context() as environment:
            machine.monkeypatch = environment
            codes.append(machine.ask(**draw(random.Random(seed), machine)).code)
    assert min(codes.count(code) for code in (0, 2, 3)) >= 10, codes
