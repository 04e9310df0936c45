"""The variables that leave a process some devices: read again by the runtimes' rules, they choose exactly these."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from attnkit.errors import UsageError
from attnkit.hardware.device import MIG, MIG_SLICE, Device
from attnkit.hardware.narrow import narrow
from attnkit.hardware.visible import apply

CPU = Device("cpu", "cpu", "Xeon", "x86_64")


def gpus(vendor: str, count: int, *, uuid: bool = True, names: Sequence[str] = ()) -> list[Device]:
    arch = {"nvidia": "sm_90", "amd": "gfx942", "intel": "xe-hpc"}[vendor]
    return [
        Device(
            vendor,  # type: ignore[arg-type]
            "gpu",
            names[index] if names else f"{vendor} card",
            arch,
            index=index,
            pci_address=f"0000:{index + 1:02x}:00.0",
            uuid=f"GPU-{index}abc" if uuid and vendor != "intel" else None,
        )
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ("vendor", "environment"),
    [
        ("nvidia", {}),
        ("nvidia", {"CUDA_VISIBLE_DEVICES": "3,1,2"}),
        ("nvidia", {"CUDA_VISIBLE_DEVICES": "GPU-2,GPU-0"}),
        ("nvidia", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        ("amd", {}),
        ("amd", {"ROCR_VISIBLE_DEVICES": "1,2,3"}),
        ("amd", {"ROCR_VISIBLE_DEVICES": "1,2,3", "HIP_VISIBLE_DEVICES": "2,0"}),
        ("amd", {"CUDA_VISIBLE_DEVICES": "2,2,0"}),
        ("intel", {}),
        ("intel", {"ZE_AFFINITY_MASK": "1,3"}),
        ("intel", {"ONEAPI_DEVICE_SELECTOR": "level_zero:1,2"}),
        ("intel", {"ZE_FLAT_DEVICE_HIERARCHY": "COMPOSITE"}),
    ],
)
@pytest.mark.parametrize("names", [(), ("Max 1550", "Max 1550", "Max 1550", "Max 1550")])
def test_every_choice_of_visible_devices_can_be_stated(vendor: str, environment: dict[str, str], names: Sequence[str]) -> None:
    devices = [*apply([*gpus(vendor, 4, names=names), CPU], environment).devices]
    seen = sorted((d for d in devices if d.kind == "gpu" and d.visible), key=lambda d: d.ordinal or 0)
    assert len(seen) >= 2
    for size in range(1, len(seen) + 1):
        for chosen in itertools.combinations(seen, size):
            variables = narrow(devices, chosen, environment)
            assert (not variables) == (list(chosen) == seen)
            found = apply(devices, {**environment, **variables}).devices
            assert {d.index for d in found if d.kind == "gpu" and d.visible} == {d.index for d in chosen}


def test_unlike_gpus_of_unknown_order_are_named_by_uuid_else_by_address() -> None:
    names = ("Alpha", "Beta")
    with_uuid = list(apply(gpus("nvidia", 2, names=names), {}).devices)
    assert {d.ordinal for d in with_uuid} == {None}
    assert narrow(with_uuid, [with_uuid[1]], {}) == {"CUDA_VISIBLE_DEVICES": "GPU-1abc"}
    without = list(apply(gpus("nvidia", 2, names=names, uuid=False), {}).devices)
    assert narrow(without, [without[1]], {}) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}


def test_a_mig_slice_is_named_by_its_uuid() -> None:
    (whole,) = gpus("nvidia", 1)
    other = Device("nvidia", "gpu", "H100", "sm_90", index=3, pci_address="0000:09:00.0", uuid="GPU-9")
    slices = [
        Device("nvidia", "gpu", "slice", "sm_90", 1 + n, None, None, (MIG_SLICE,), whole.pci_address, uuid=f"MIG-{n}")
        for n in range(2)
    ]
    card = Device("nvidia", "gpu", "H100", "sm_90", 0, None, None, (MIG,), whole.pci_address, uuid="GPU-0")
    devices = list(apply([card, *slices, other], {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}).devices)
    seen = [d for d in devices if d.visible]
    assert narrow(devices, [seen[0]], {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == {"CUDA_VISIBLE_DEVICES": "MIG-0"}


def test_nothing_is_narrowed_for_a_cpu_and_what_cannot_be_said_is_refused() -> None:
    assert narrow([CPU], [CPU], {}) == {}
    devices = list(apply(gpus("amd", 2), {"HIP_VISIBLE_DEVICES": "0"}).devices)
    with pytest.raises(UsageError, match="no variable makes a process see device 1"):
        narrow(devices, [devices[1]], {"HIP_VISIBLE_DEVICES": "0"})
