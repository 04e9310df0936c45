"""What an image's bake holds: kernels for serving, and every kernel that the self-test of a boot launches.

    attnkit kernels build|verify|list

A boot without a model tests what the node's profile, and each workload, says is usual. For these needs the cases are built on
the CPU and planned by the planners that run them on the card, so that a node of a known architecture compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

from attnkit.backends.registry import all_backends
from attnkit.backends.triton_common import code_of, own
from attnkit.kernels.aot import build as aot_build
from attnkit.kernels.aot import plan as aot_plan
from attnkit.kernels.aot import verify as aot_verify
from attnkit.kernels.aot.files import Baked
from attnkit.kernels.aot.manifest import Manifest, Variant, load
from attnkit.kernels.aot.variants import DEFAULT_GEOMETRIES, BootCalls
from attnkit.prebuilt.needs import LEVEL, needs
from attnkit.select.node import place
from attnkit.selftest.cases import Case, cases
from attnkit.selftest.results import Level
from attnkit.selftest.tensors import build as build_call
from attnkit.spec import Call


def boot_calls(level: Level = LEVEL) -> BootCalls:
    """The calls of a boot's self-test at `level`, for `attnkit.kernels.aot`."""
    return BootCalls(level, partial(_calls, level=level))


def build(
    targets: Sequence[str],
    directory: Path,
    *,
    jobs: int = 1,
    cache: Path | None = None,
    on_kernel: Callable[[Baked], None] | None = None,
) -> Manifest:
    """Compile everything an image for `targets` needs; arguments and errors as of `attnkit.kernels.aot.build`."""
    return aot_build.build(
        targets, directory, geometries=DEFAULT_GEOMETRIES, boot=boot_calls(), jobs=jobs, cache=cache, on_kernel=on_kernel
    )


def verify(directory: Path, targets: Sequence[str] | None = None) -> Manifest:
    """Hold a bake against its manifest, and the manifest against what serving and a boot need; errors as of `aot.verify`."""
    level = load(directory).level
    return aot_verify.verify(directory, targets, boot=boot_calls() if level else None)


def list_kernels(targets: Sequence[str]) -> tuple[Variant, ...]:
    """Every kernel that `build` compiles."""
    return aot_plan.list_kernels(targets, geometries=DEFAULT_GEOMETRIES, boot=boot_calls())


def _calls(target: str, *, level: Level) -> Iterator[tuple[str, Call]]:
    """Every call of the self-test with the code that runs it."""
    device = place(arch=target).device
    for backend in all_backends():
        capability = own(backend, device)
        if capability is None:
            continue
        for need in needs(target):
            if not capability.reject(need, device):
                for case in cases(level, capability, device, need):
                    yield code_of(backend.name, target), _built(case)


@cache
def _built(case: Case) -> Call:
    """The case's call on the CPU; targets share it."""
    return build_call(case)
