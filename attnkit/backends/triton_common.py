"""What the backends built on our Triton kernels share: where they run, their two providers, and which code of a kernel runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from attnkit.backends import torch_device
from attnkit.backends.base import Backend, Capability, HeadDims, Provider, arch_matches
from attnkit.errors import UnsupportedError
from attnkit.hardware.device import Device
from attnkit.spec import AttentionOutput, Call, PagedAttention, VarlenAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

Result: TypeAlias = tuple[Tensor, "Tensor | None", str]
"""Output, log-sum-exp and the kernel's name, as our launchers return them."""

GPU_ARCHS: dict[str, tuple[str, ...]] = {
    "nvidia": ("sm_75", "sm_8?", "sm_9?", "sm_1??"),
    "amd": ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201"),
    "intel": ("*",),
}
"""Architectures the kernels compile for; tests/kernels/triton/test_targets.py compiles them."""

BF16_ARCHS: dict[str, tuple[str, ...]] = {
    "nvidia": ("sm_8?", "sm_9?", "sm_1??"),
    "amd": GPU_ARCHS["amd"],
    "intel": ("*",),
    "cpu": ("*",),
}

HEAD_DIMS = HeadDims(low=16, high=256, multiple_of=8)

REQUIRES = ("torch>=2.8", "triton>=3.6,<3.10")
ONLY_INTERPRETED = "our Triton kernels run on the CPU only in the interpreter (TRITON_INTERPRET=1), for tests"


def triton_backend(
    name: str,
    capability: Capability,
    kernels: Callable[[Any, str | None], Result],
    *,
    aliases: tuple[str, ...],
    summary: str,
    why: str,
    names: tuple[str, ...],
    interpreted: bool = True,
) -> Backend:
    """A backend of our Triton kernels, which run on a GPU and (tests only) in Triton's interpreter on the CPU.

    The interpreter's requirement is reported as installed only where TRITON_INTERPRET=1 is set, so that no automatic choice
    can take it on a serving node.

    Args:
        kernels: (call, code) -> result; the code is "sm_75" where the kernels are to be planned for Turing's tensor cores, or
            None: for what the tensors live on.
        names: patterns of the names of the kernels that run.
        interpreted: False where the CPU shows nothing of it.
    """
    run = partial(_launch, name, kernels)
    on_gpu = Provider("attnkit", capability, run, REQUIRES, why, kind="kernel", kernels=names, any_stride=True)
    on_cpu = Provider(
        "attnkit-interpreter",
        replace(capability, archs={"cpu": ("*",)}, fp8_archs=None, graphs=False),
        run,
        (*REQUIRES, "attnkit-triton-interpreter"),
        "the same kernels in Triton's interpreter, for tests",
        kind="interpreter",
        kernels=names,
        to_get=ONLY_INTERPRETED,
        any_stride=True,
    )
    return Backend(name, (on_gpu, on_cpu) if interpreted else (on_gpu,), aliases, summary, device_of=device_of)


def device_of(tensor: Tensor) -> Device:
    """Where our kernels take `tensor` to live: the sm_75 device inside `kernels.turing.emulate.emulate`, else torch's word."""
    from attnkit.kernels.turing import hook
    from attnkit.kernels.turing.emulate import TARGET_DEVICE

    return TARGET_DEVICE if hook.emulating() else torch_device.device_of(tensor)


def _launch(name: str, kernels: Callable[[Any, str | None], Result], call: Call) -> AttentionOutput:
    """Run `kernels`, Turing's tensor cores turned on where they use them; "turing:" before a name says that they were."""
    device = device_of(call.batch.query)
    if device.vendor == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UnsupportedError(f"{name}: {ONLY_INTERPRETED}")
    if code_of(name, device.arch) != "sm_75":
        return AttentionOutput(*kernels(call, None))
    from attnkit.kernels.turing import hook

    hook.enable()
    out, lse, kernel = kernels(call, "sm_75")
    return AttentionOutput(out, lse, f"turing:{kernel}")


def paged_or_varlen(call: PagedAttention | VarlenAttention, code: str | None = None) -> Result:
    """Our kernels for a paged cache, or for packed sequences."""
    from attnkit.kernels.triton.paged import plan

    return plan.paged(call, arch=code) if isinstance(call, PagedAttention) else plan.varlen(call, arch=code)


def own(backend: Backend, device: Device) -> Capability | None:
    """What our Triton kernels claim on `device` through this backend; None where it has none or they do not run there."""
    for provider in backend.providers:
        if provider.requires == REQUIRES and arch_matches(device, provider.capability.archs):
            return provider.capability
    return None


def code_of(backend: str, arch: str) -> str:
    """The code that runs `backend` on `arch`, as `kernels.triton.configs` names it.

    sm_75 has two compilers. TRITON_ATTN is what Triton itself makes of it, "sm_75-scalar"; every other backend of ours goes
    through `kernels.turing`, which brings the tensor cores.
    """
    return "sm_75-scalar" if arch == "sm_75" and backend == "TRITON_ATTN" else arch
