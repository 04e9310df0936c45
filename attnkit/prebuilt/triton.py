"""Triton's kernels of an image, as a `KernelSet`: those of serving, and every one that the self-test of a boot launches.

A boot without a model tests what the node's profile, and each workload, says is usual. For these needs the cases are built on
the CPU and planned by the planners that run them on the GPU, so that a node of a known architecture compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from attnkit.backends.registry import all_backends
from attnkit.backends.triton_common import code_of, own
from attnkit.kernels.aot import build as aot_build
from attnkit.kernels.aot import plan as aot_plan
from attnkit.kernels.aot import verify as aot_verify
from attnkit.kernels.aot.manifest import Variant, load
from attnkit.kernels.aot.variants import DEFAULT_GEOMETRIES, BootCalls
from attnkit.prebuilt.kernel_set import Outcome, built, line_of, verified
from attnkit.prebuilt.needs import LEVEL, needs
from attnkit.select.node import find_node
from attnkit.selftest.cases import Case, cases
from attnkit.selftest.results import Level
from attnkit.selftest.tensors import build as build_call
from attnkit.spec import Call


def boot_calls(level: Level = LEVEL) -> BootCalls:
    """The calls of a boot's self-test at `level`, for `attnkit.kernels.aot`."""
    return BootCalls(level, partial(_calls, level=level))


@dataclass(frozen=True)
class TritonKernels:
    """Of serving and of a boot's self-test, for these targets; none: where a directory is verified, those that it names."""

    targets: tuple[str, ...]

    def list(self) -> Sequence[Variant]:
        """See `KernelSet`."""
        return aot_plan.list_kernels(self.targets, geometries=DEFAULT_GEOMETRIES, boot=boot_calls())

    def build(self, directory: Path, *, jobs: int, cache: Path | None, on_kernel: Callable[[str], None]) -> Outcome:
        """See `KernelSet`; arguments and errors as of `attnkit.kernels.aot.build`."""
        manifest = aot_build.build(
            self.targets,
            directory,
            geometries=DEFAULT_GEOMETRIES,
            boot=boot_calls(),
            jobs=jobs,
            cache=cache,
            on_kernel=lambda kernel: on_kernel(line_of(kernel.target, kernel.name)),
        )
        return built(manifest, "kernels", directory, f"Triton {manifest.triton}")

    def verify(self, directory: Path) -> Outcome:
        """See `KernelSet`; errors as of `attnkit.kernels.aot.verify`."""
        boot = boot_calls() if load(directory).level else None
        manifest = aot_verify.verify(directory, self.targets or None, boot=boot)
        return verified(manifest, triton=manifest.triton)


def _calls(target: str, *, level: Level) -> Iterator[tuple[str, Call]]:
    """Every call of the self-test with the code that runs it."""
    device = find_node(arch=target).device
    for backend in all_backends():
        capability = own(backend, device)
        if capability is None:
            continue
        for need in needs(target):
            if not capability.reject(need, device):
                for case in cases(level, capability, device, need):
                    # A process that kept gigabytes of addresses, though nobody wrote there, could not fork.
                    yield code_of(backend.name, target), (build_call(case, contents=False) if case.far else _built(case))


@cache
def _built(case: Case) -> Call:
    """The case's call on the CPU; targets share it."""
    return build_call(case, contents=False)
