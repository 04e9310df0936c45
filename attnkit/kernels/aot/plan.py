"""Which kernels a directory of compiled kernels must hold."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnkit.spec import Call

if TYPE_CHECKING:
    from attnkit.kernels.aot.variants import BootCalls
from attnkit.kernels.aot.manifest import Variant


def list_kernels(
    targets: Sequence[str],
    *,
    geometries: Sequence[str] | None = None,
    calls: Iterable[Call] | None = None,
    boot: BootCalls | None = None,
) -> tuple[Variant, ...]:
    """Every variant that must be in a kernel directory for `targets`.

    Args:
        targets: sm_75, sm_80 … gfx942 …
        geometries: names of `variants.GEOMETRIES`; None takes the default ones, or none where `calls` are given.
        calls: plan these calls too (with small stand-in tensors on the CPU), for every number of splits.
        boot: the calls of the boot's self-test, planned exactly as it launches them.

    Raises:
        UsageError: an unknown target or geometry.
    """
    request = BuildRequest.of_arguments(geometries, calls, boot)
    return tuple(
        Variant(code, name, launch.kernel.fn.__name__)
        for target in targets
        for code, launches in request.launches(target).items()
        for name, launch in launches.items()
    )


@dataclass(frozen=True)
class BuildRequest:
    """Which kernels to build, for any target."""

    geometries: tuple[str, ...]
    calls: tuple[Call, ...] | None
    boot: BootCalls | None

    @classmethod
    def of_arguments(
        cls, geometries: Sequence[str] | None, calls: Iterable[Call] | None, boot: BootCalls | None
    ) -> BuildRequest:
        """From the arguments of `build`."""
        from attnkit.kernels.aot.variants import DEFAULT_GEOMETRIES

        listed = None if calls is None else tuple(calls)
        if geometries is None:
            geometries = DEFAULT_GEOMETRIES if listed is None else ()
        return cls(tuple(geometries), listed, boot)

    def launches(self, target: str) -> dict[str, dict[str, Any]]:
        """The launches by variant name, for the code of `target` and what else a boot runs on it (sm_75-scalar)."""
        from attnkit.kernels.aot import variants

        planned = (
            call
            for name in self.geometries
            for dtype in variants.dtypes(target)
            for call in variants.calls(variants.geometry(name), dtype, large=target.startswith("gfx"))
        )
        found = {target: variants.variants(target, itertools.chain(planned, self.calls or ()))}
        for code, call in self.boot.calls_for(target) if self.boot is not None else ():
            for launch in variants.exact(call, code):
                found.setdefault(code, {}).setdefault(variants.variant_name(launch), launch)
        return found
