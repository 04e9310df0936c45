"""What the backends built on our Triton kernels share: where they run, and the check before a run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attnkit.backends.base import Capability, HeadDims, Provider
from attnkit.errors import UnsupportedError
from attnkit.hardware.device import Device
from attnkit.spec import Call

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

GPU_ARCHS: dict[str, tuple[str, ...]] = {
    "nvidia": ("sm_75", "sm_8?", "sm_9?", "sm_1??"),
    "amd": ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201"),
    "intel": ("*",),
}
"""Architectures the kernels compile for; see tests/kernels/test_triton_targets.py for the proof."""

BF16_ARCHS: dict[str, tuple[str, ...]] = {
    "nvidia": ("sm_8?", "sm_9?", "sm_1??"),
    "amd": GPU_ARCHS["amd"],
    "intel": ("*",),
    "cpu": ("*",),
}

HEAD_DIMS = HeadDims(low=16, high=256, multiple_of=8)

INTERPRETER = "attnkit-interpreter"


def providers(capability: Capability, why: str) -> tuple[Provider, ...]:
    """The two ways our Triton kernels run: on a GPU, and (tests only) in Triton's interpreter on the CPU.

    The interpreter's requirement is reported as installed only where TRITON_INTERPRET=1 is set, so that no automatic choice
    can take it on a serving node.
    """
    return (
        Provider("attnkit", capability, requires=("torch>=2.8", "triton>=3.6,<3.10"), why=why),
        Provider(
            INTERPRETER,
            replace(capability, archs={"cpu": ("*",)}, fp8_archs=None, graphs=False),
            requires=("torch>=2.8", "triton>=3.6,<3.10", "attnkit-triton-interpreter"),
            why="the same kernels in Triton's interpreter, for tests",
        ),
    )


def device_of(tensor: Tensor) -> Device:
    """The `Device` a tensor lives on, from torch alone."""
    import torch

    kind = tensor.device.type
    if kind == "cuda":
        props = torch.cuda.get_device_properties(tensor.device)
        if torch.version.hip:
            arch = str(props.gcnArchName).split(":")[0]
            return Device("amd", "gpu", props.name, arch, units=props.multi_processor_count)
        return Device("nvidia", "gpu", props.name, f"sm_{props.major}{props.minor}", units=props.multi_processor_count)
    if kind == "xpu":
        return Device("intel", "gpu", torch.xpu.get_device_name(tensor.device), "xe")
    if kind == "cpu":
        return Device("cpu", "cpu", "cpu", "cpu")
    raise UnsupportedError(f"the Triton kernels run on CUDA, ROCm and XPU devices, not on {tensor.device}")


def check(backend: str, offered: tuple[Provider, ...], call: Call, query: Tensor, provider: str | None) -> None:
    """Refuse `call` where the provider that would run it does not claim it.

    Raises:
        UnsupportedError: with every reason.
    """
    import os

    device = device_of(query)
    wanted = INTERPRETER if device.vendor == "cpu" else "attnkit"
    if provider is not None and provider != wanted:
        known = ", ".join(p.name for p in offered)
        raise UnsupportedError(f"{backend}: provider {provider!r} cannot run on {device.name}; here it is {wanted} (known: {known})")
    if wanted == INTERPRETER and os.environ.get("TRITON_INTERPRET") != "1":
        raise UnsupportedError(f"{backend} on the CPU runs only in the interpreter (TRITON_INTERPRET=1), for tests")
    chosen = next(p for p in offered if p.name == wanted)
    reasons = chosen.capability.reject(call.spec(), device)
    if reasons:
        raise UnsupportedError(f"{backend} cannot run this call: " + "; ".join(r.message for r in reasons))
