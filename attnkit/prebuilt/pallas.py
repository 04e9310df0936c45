"""Pallas kernels of a TPU image, as a `KernelSet`: every one that the self-test of a boot launches, lowered without a TPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnkit.backends.pallas import CAPABILITY, signature
from attnkit.kernels.aot.manifest import Variant
from attnkit.kernels.pallas import ahead
from attnkit.prebuilt.kernel_set import Outcome, built, verified
from attnkit.prebuilt.needs import LEVEL, needs
from attnkit.select.node import find_node
from attnkit.selftest.cases import cases
from attnkit.selftest.tensors import build as build_call
from attnkit.spec import PagedAttention


def signatures(targets: Sequence[str]) -> tuple[ahead.Signature, ...]:
    """Of every call that the self-test of a boot on these targets makes."""
    found: dict[ahead.Signature, None] = {}
    for target in targets:
        device = find_node(arch=target).device
        for need in needs(target):
            if CAPABILITY.reject(need, device):
                continue
            for case in cases(LEVEL, CAPABILITY, device, need):
                call = build_call(case, contents=False)
                if isinstance(call, PagedAttention):
                    found[signature(call)] = None
    return tuple(found)


@dataclass(frozen=True)
class PallasKernels:
    """Of a boot's self-test on these TPUs; none: where a directory is verified, those that it names."""

    targets: tuple[str, ...]

    def list(self) -> Sequence[Variant]:
        """See `KernelSet`; the targets share their modules."""
        return tuple(
            Variant(target, one.name, "paged_attention") for target in self.targets for one in signatures(self.targets)
        )

    def build(self, directory: Path, *, jobs: int, cache: Path | None, on_kernel: Callable[[str], None]) -> Outcome:
        """See `KernelSet`; one process lowers everything, and keeps nothing in `cache`."""
        wanted = signatures(self.targets)
        ahead.build(wanted, self.targets, directory, level=LEVEL, on_module=lambda module: on_kernel(module.name))
        manifest = ahead.verify(directory, self.targets, wanted, LEVEL)
        return built(manifest, "modules", directory, f"JAX {manifest.jax}")

    def verify(self, directory: Path) -> Outcome:
        """See `KernelSet`; errors as of `ahead.verify`."""
        targets = self.targets or ahead.read(directory).targets
        manifest = ahead.verify(directory, targets, signatures(targets), LEVEL)
        return verified(manifest, jax=manifest.jax)
