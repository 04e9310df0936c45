"""torch's words for a device and ours: the one place that knows both. torch is not imported; what it says is handed in."""

from __future__ import annotations

import platform
from typing import Any

from attnkit.hardware.device import Device

_TORCH_KINDS = {"nvidia": "cuda", "amd": "cuda", "intel": "xpu", "cpu": "cpu"}
"""torch's device type by vendor; torch has none of its own for Google's."""

_INTEL_GPUS = {"max": "xe-hpc", "arc": "xe-hpg", "flex": "xe-hpg"}
"""Architecture by a word of the marketing name, where torch gives no other; newer Arc GPUs (B-series) are told apart below."""


def torch_kind(device: Device) -> str | None:
    """torch's type of a device: "cuda", "xpu" or "cpu"; None where torch does not run it."""
    return _TORCH_KINDS.get(device.vendor)


def torch_name(device: Device) -> str:
    """torch's name for where a device's tensors live: "cuda:0", "xpu:1"; "cpu" also where torch does not run it."""
    kind = torch_kind(device) or "cpu"
    return kind if kind == "cpu" else f"{kind}:{device.index}"


def from_torch(kind: str, index: int, properties: Any, *, hip: bool) -> Device:
    """The device that torch calls `kind`:`index`, with the architecture that capabilities are written in.

    Args:
        properties: of `torch.cuda.get_device_properties` or `torch.xpu.get_device_properties`; None for the CPU.
        hip: whether torch's "cuda" is ROCm.

    Raises:
        ValueError: a torch device type that no backend of attnkit runs on.
    """
    if kind == "cpu":
        return Device("cpu", "cpu", "CPU", platform.machine(), source="torch")
    if kind not in ("cuda", "xpu"):
        raise ValueError(f"no backend runs on torch device type {kind!r}; known: cuda, xpu, cpu")
    if kind == "xpu":
        arch, units = _intel_arch(properties.name), getattr(properties, "max_compute_units", None)
    else:
        arch = properties.gcnArchName.split(":")[0] if hip else f"sm_{properties.major}{properties.minor}"
        units = properties.multi_processor_count
    return Device(
        vendor="intel" if kind == "xpu" else "amd" if hip else "nvidia",
        kind="gpu",
        name=properties.name,
        arch=arch,
        index=index,
        memory_bytes=properties.total_memory,
        units=units,
        source="torch",
    )


def _intel_arch(name: str) -> str:
    words = name.casefold().replace("(tm)", "").replace("(r)", "").split()
    if any(word.startswith("b") and word[1:].isdigit() for word in words):
        return "xe2-hpg"
    return next((arch for word, arch in _INTEL_GPUS.items() if word in words), "xe")
