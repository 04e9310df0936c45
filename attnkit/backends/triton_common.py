"""What the backends built on our Triton kernels share: where they run, and the check before a run."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attnkit.backends.base import Backend, Capability, HeadDims, Provider, arch_matches
from attnkit.backends.torch_device import device_of
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
        Provider("attnkit", capability, requires=("torch>=2.8", "triton>=3.6,<3.10"), why=why, kind="kernel"),
        Provider(
            INTERPRETER,
            replace(capability, archs={"cpu": ("*",)}, fp8_archs=None, graphs=False),
            requires=("torch>=2.8", "triton>=3.6,<3.10", "attnkit-triton-interpreter"),
            why="the same kernels in Triton's interpreter, for tests",
            kind="interpreter",
        ),
    )


def own(backend: Backend, device: Device) -> Capability | None:
    """What our Triton kernels claim on `device` through this backend; None where it has none or they do not run there."""
    for provider in backend.providers:
        ours = provider.name == "attnkit" and any(text.startswith("triton") for text in provider.requires)
        if ours and arch_matches(device, provider.capability.archs):
            return provider.capability
    return None


def code_of(backend: str, arch: str) -> str:
    """The code that runs `backend` on `arch`, as `kernels.triton.configs` names it.

    sm_75 has two compilers. TRITON_ATTN is what Triton itself makes of it, "sm_75-scalar"; every other backend of ours goes
    through `kernels.turing`, which brings the tensor cores.
    """
    return "sm_75-scalar" if arch == "sm_75" and backend == "TRITON_ATTN" else arch


def check(backend: Backend, call: Call, query: Tensor, provider: str | None) -> str | None:
    """Refuse `call` where the provider that would run it does not claim it; turn Turing's tensor cores on where it uses them.

    Returns:
        "sm_75" where the kernels are to be planned for Turing's tensor cores; None: for what the tensors live on.

    Raises:
        UnsupportedError: with every reason.
    """
    from attnkit.kernels.turing import hook
    from attnkit.kernels.turing.emulate import TARGET_DEVICE

    device = TARGET_DEVICE if hook.emulating() else device_of(query)
    backend.require(call, device, provider)
    if device.vendor == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UnsupportedError(f"{backend.name} on the CPU runs only in the interpreter (TRITON_INTERPRET=1), for tests")
    if code_of(backend.name, device.arch) != "sm_75":
        return None
    hook.enable()
    return "sm_75"


def kernel_name(code: str | None, kernel: str) -> str:
    """The kernel's name in a result; "turing:" before it says whose code computed it. Args: code: from `check`."""
    return f"turing:{kernel}" if code == "sm_75" else kernel
