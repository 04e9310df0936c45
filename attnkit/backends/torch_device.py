"""Which `Device` a torch tensor lives on: the bridge between a call's tensors and a provider's capability."""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

from attnkit.hardware.device import Device, Vendor

_INTEL_GPUS = {"max": "xe-hpc", "arc": "xe-hpg", "flex": "xe-hpg"}
"""Architecture by a word of the marketing name, where torch gives no other; newer Arc cards (B-series) are told apart below."""


def device_of(tensor: Any) -> Device:
    """The device of a torch tensor, with the architecture that capabilities are written in. Cached per torch device.

    Args:
        tensor: any torch tensor on cuda (NVIDIA or ROCm), xpu or cpu.

    Raises:
        ValueError: a torch device type that no backend of attnkit runs on.
    """
    return _describe(tensor.device.type, tensor.device.index or 0)


@cache
def _describe(kind: str, index: int) -> Device:
    import torch

    if kind == "cpu":
        return Device(vendor="cpu", kind="cpu", name="CPU", arch=platform.machine(), source="torch")
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(index)
        vendor: Vendor = "amd" if torch.version.hip else "nvidia"
        if vendor == "amd":
            arch = properties.gcnArchName.split(":")[0]
        else:
            arch = f"sm_{properties.major}{properties.minor}"
        return Device(
            vendor=vendor,
            kind="gpu",
            name=properties.name,
            arch=arch,
            index=index,
            memory_bytes=properties.total_memory,
            units=properties.multi_processor_count,
            source="torch",
        )
    if kind == "xpu":
        properties = torch.xpu.get_device_properties(index)
        return Device(
            vendor="intel",
            kind="gpu",
            name=properties.name,
            arch=_intel_arch(properties.name),
            index=index,
            memory_bytes=properties.total_memory,
            source="torch",
        )
    raise ValueError(f"no backend runs on torch device type {kind!r}; known: cuda, xpu, cpu")


def _intel_arch(name: str) -> str:
    words = name.casefold().replace("(tm)", "").replace("(r)", "").split()
    if any(word.startswith("b") and word[1:].isdigit() for word in words):
        return "xe2-hpg"
    return next((arch for word, arch in _INTEL_GPUS.items() if word in words), "xe")
