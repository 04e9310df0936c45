"""Our C++ kernels, compiled for every instruction set of this kind of machine, as a `KernelSet`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnkit.kernels.aot.manifest import Variant
from attnkit.kernels.cpu import build as cpu
from attnkit.prebuilt.kernel_set import Outcome


@dataclass(frozen=True)
class CpuKernels:
    """One library; each instruction set is a kernel."""

    def list(self) -> Sequence[Variant]:
        """See `KernelSet`."""
        return tuple(Variant(cpu.TARGET, name, "attention") for name in cpu.wanted())

    def build(self, directory: Path, *, jobs: int, cache: Path | None, on_kernel: Callable[[str], None]) -> Outcome:
        """See `KernelSet`; it takes seconds, so there is nothing to keep in `cache` and no progress to report."""
        library = cpu.build(directory)
        return Outcome([f"CPU kernels in {library}: {cpu.describe(library)}"])

    def verify(self, directory: Path) -> Outcome:
        """See `KernelSet`."""
        counts = cpu.verify(directory)
        return Outcome([f"{counts[cpu.TARGET]} kernels for {cpu.TARGET} verified OK"], {"kernels": counts})
