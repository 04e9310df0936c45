"""On a box with a CUDA device: NVML, the PCI id table and torch must say the same."""

from __future__ import annotations

import pytest

from attnkit.hardware import detect, nvidia
from attnkit.hardware.device import Device
from attnkit.hardware.pci import read_pci
from attnkit.hardware.tree import Tree


def _nvidia(devices: tuple[Device, ...]) -> list[Device]:
    return [d for d in devices if d.vendor == "nvidia"]


@pytest.mark.gpu
def test_nvml_agrees_with_torch() -> None:
    import torch

    found = _nvidia(detect().devices)
    assert {d.source for d in found} == {"nvml"}
    by_name = {d.name: d for d in found}
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        seen = by_name[card.name]
        assert (seen.arch, seen.units) == (f"sm_{card.major}{card.minor}", card.multi_processor_count)
        assert seen.memory_bytes is not None and abs(seen.memory_bytes - card.total_memory) < 0.05 * seen.memory_bytes
        assert seen.usable and seen.driver


@pytest.mark.gpu
def test_sysfs_agrees_with_nvml() -> None:
    with_nvml = {d.pci_address: d for d in _nvidia(detect().devices)}
    tree = Tree("/")
    listed = nvidia.without_nvml(tree, read_pci(tree), None, []).devices
    # In a container PCI shows all cards of the host, NVML only those passed in.
    without = {d.pci_address: d for d in listed if d.pci_address in with_nvml}
    assert without.keys() == with_nvml.keys()
    for address, seen in without.items():
        known = with_nvml[address]
        assert (seen.source, seen.arch, seen.name, seen.driver) == ("sysfs", known.arch, known.name, known.driver)
