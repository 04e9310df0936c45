"""What `attnkit kernels` asks of a set of kernels, whichever compiler makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from attnkit.kernels.aot.manifest import Manifest, Variant
from attnkit.kernels.pallas import ahead


@dataclass(frozen=True)
class Outcome:
    """What came out: in words, a line each, and as data; data is None where there is nothing beyond the words."""

    lines: Sequence[str]
    data: Any = None


class KernelSet(Protocol):
    """The kernels that some targets need, made by one compiler. Methods raise a UsageError for targets it does not know."""

    def list(self) -> Sequence[Variant]:
        """Every kernel that `build` makes."""

    def build(self, directory: Path, *, jobs: int, cache: Path | None, on_kernel: Callable[[str], None]) -> Outcome:
        """Compile them into `directory`, and verify the result; `on_kernel` gets the name of each.

        Raises:
            UsageError: the directory holds something else.
            KernelsError: something is missing or empty afterwards.
        """

    def verify(self, directory: Path) -> Outcome:
        """Compare `directory` with its manifest, and that with what serving and a boot need.

        Raises:
            UsageError: no kernels are there.
            KernelsError: a kernel is missing or altered, or a target is not covered.
        """


def line_of(target: str, what: object) -> str:
    """A target and what it has, as tables show them."""
    return f"{target:<13} {what}"


def built(manifest: Manifest | ahead.Manifest, what: str, directory: Path, compiler: str) -> Outcome:
    """The outcome of a build that made `what` ("kernels")."""
    return Outcome([f"{len(manifest.kernels)} {what} for {', '.join(manifest.targets)} in {directory}, {compiler}"], manifest)


def verified(manifest: Manifest | ahead.Manifest, **compiler: str) -> Outcome:
    """The outcome of a verification; `compiler`: its name and version."""
    counts = manifest.counts()
    total = f"{len(manifest.kernels)} kernels for {', '.join(manifest.targets)} verified OK"
    return Outcome(
        [*(line_of(*item) for item in counts.items()), total], {**compiler, "level": manifest.level, "kernels": counts}
    )
