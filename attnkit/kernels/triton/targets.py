"""Compile a launch for an architecture that is not in this machine, and say what came out.

Triton needs no GPU to produce machine code: a stand-in driver names the target and `Launch.warmup` compiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from attnkit.kernels.triton.launch import Launch


@dataclass(frozen=True)
class TargetFacts:
    """What is to be known of a compile target.

    Args:
        backend, arch, warp_size: as Triton's GPUTarget takes them.
        shared_limit: shared memory (LDS) a block may use, bytes.
        text: which of the compiler's outputs holds the instructions.
        matrix: pattern of its matrix instructions there.
    """

    backend: str
    arch: int | str
    warp_size: int
    shared_limit: int
    text: str
    matrix: str


_KIB = 1024
_MMA = r"\bmma\.sync\."
TARGETS: dict[str, TargetFacts] = {
    "sm_75": TargetFacts("cuda", 75, 32, 64 * _KIB, "ptx", _MMA),
    "sm_80": TargetFacts("cuda", 80, 32, 163 * _KIB, "ptx", _MMA),
    "sm_86": TargetFacts("cuda", 86, 32, 99 * _KIB, "ptx", _MMA),
    "sm_89": TargetFacts("cuda", 89, 32, 99 * _KIB, "ptx", _MMA),
    "sm_90": TargetFacts("cuda", 90, 32, 227 * _KIB, "ptx", r"\bwgmma\.mma_async\.|\bmma\.sync\."),
    "sm_100": TargetFacts("cuda", 100, 32, 227 * _KIB, "ptx", r"\btcgen05\.mma|\bmma\.sync\."),
    "sm_120": TargetFacts("cuda", 120, 32, 99 * _KIB, "ptx", _MMA),
    "gfx90a": TargetFacts("hip", "gfx90a", 64, 64 * _KIB, "amdgcn", r"\bv_mfma_"),
    "gfx942": TargetFacts("hip", "gfx942", 64, 64 * _KIB, "amdgcn", r"\bv_mfma_"),
    "gfx950": TargetFacts("hip", "gfx950", 64, 160 * _KIB, "amdgcn", r"\bv_mfma_"),
    "gfx1100": TargetFacts("hip", "gfx1100", 32, 64 * _KIB, "amdgcn", r"\bv_wmma_"),
    "gfx1201": TargetFacts("hip", "gfx1201", 32, 64 * _KIB, "amdgcn", r"\bv_wmma_"),
}


@dataclass(frozen=True)
class Compiled:
    """What came out of one compilation.

    Args:
        kernel, arch: what was compiled for what.
        shared: bytes of shared memory.
        matrix_instructions: how many of each, by name.
        asm: the compiler's outputs by stage name.
    """

    kernel: str
    arch: str
    shared: int
    matrix_instructions: dict[str, int]
    asm: dict[str, Any]


class _StandIn:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


@contextmanager
def compiling_for(arch: str) -> Iterator[TargetFacts]:
    """Inside, Triton compiles for `arch`; the previous driver comes back after."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    facts = TARGETS[arch]
    before = driver._active
    driver.set_active(_StandIn(GPUTarget(facts.backend, facts.arch, facts.warp_size)))
    try:
        yield facts
    finally:
        driver._active = before


def compile_launch(launch: Launch, arch: str) -> Compiled:
    """Compile one launch for `arch`, without a GPU."""
    with compiling_for(arch) as facts:
        for caches in (launch.kernel.device_caches,):
            caches.clear()
        binary = launch.warmup()
    found: dict[str, int] = {}
    pattern = re.compile(rf"(?:{facts.matrix})[\w.:]*")
    for match in pattern.findall(binary.asm[facts.text]):
        found[match] = found.get(match, 0) + 1
    return Compiled(launch.kernel.fn.__name__, arch, binary.metadata.shared, found, dict(binary.asm))
