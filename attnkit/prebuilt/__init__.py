"""Kernels compiled ahead of serving: which ones a boot needs, listed, built and verified for every compiler alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnkit.errors import UsageError, require_packages, unknown_name

if TYPE_CHECKING:
    from attnkit.prebuilt.kernel_set import KernelSet


def for_targets(targets: Sequence[str]) -> KernelSet:
    """The kernels that `targets` need.

    Raises:
        UsageError: targets of different compilers, which make different images; no node type has such a TPU; or the compiler
            is not installed here.
    """
    from attnkit.kernels.cpu.build import TARGET

    if TARGET in targets:
        if len(targets) > 1:
            raise UsageError(
                f"{', '.join(targets)}: the C++ kernels have a directory of their own; give --target {TARGET} alone"
            )
        return _cpu()
    tpus = [target for target in targets if target.startswith("tpu")]
    if not tpus:
        return _triton(targets)
    if len(tpus) < len(targets):
        raise UsageError(f"TPU and GPU targets cannot share one kernel directory: {', '.join(targets)}")
    from attnkit.profiles.files import all_nodes

    known = {arch for node in all_nodes() if node.platform == "tpu" for arch in node.match.arch}
    for target in tpus:
        if target not in known:
            raise unknown_name("target", target, known)
    return _pallas(targets)


def in_directory(directory: Path, targets: Sequence[str] = ()) -> KernelSet:
    """The kernels of a directory, by what lies there; `targets` must be covered, by default those that it names.

    Raises:
        UsageError: the compiler is not installed here.
    """
    from attnkit.kernels.cpu import build as cpu
    from attnkit.kernels.pallas import ahead

    if cpu.TARGET in targets:
        return for_targets(targets)
    if not targets and cpu.is_here(directory):
        return _cpu()
    return _pallas(targets) if ahead.is_here(directory) else _triton(targets)


def _cpu() -> KernelSet:
    from attnkit.prebuilt.cpu import CpuKernels

    return CpuKernels()


def _pallas(targets: Sequence[str]) -> KernelSet:
    require_packages("attnkit kernels", "torch", "jax")
    from attnkit.prebuilt.pallas import PallasKernels

    return PallasKernels(tuple(targets))


def _triton(targets: Sequence[str]) -> KernelSet:
    require_packages("attnkit kernels", "torch", "triton")
    from attnkit.prebuilt.triton import TritonKernels

    return TritonKernels(tuple(targets))
