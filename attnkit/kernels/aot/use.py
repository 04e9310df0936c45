"""Uses compiled kernels in this process, and counts where kernels come from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnkit.kernels.aot.manifest import Manifest, load


def use_precompiled(directory: str | Path) -> Manifest:
    """Put a kernel directory in front of Triton's cache, for this process and those it starts.

    Raises:
        UsageError: no kernel directory there.
    """
    from triton import knobs

    from attnkit.kernels.aot_cache import KERNELS_VARIABLE, MANAGER, BakedCacheManager

    manifest = load(directory)
    os.environ[KERNELS_VARIABLE] = str(Path(directory).resolve())
    os.environ["TRITON_CACHE_MANAGER"] = MANAGER
    knobs.cache.manager_class = BakedCacheManager
    return manifest


def why_unused(directory: str | Path, compiled: int) -> str:
    """Why no precompiled kernel was used, and `compiled` ones were compiled just in time."""
    from triton import __version__ as triton_version

    made = load(directory)
    here = Manifest(triton_version, (), (), (), {})
    differs = [
        f"{name} {there} instead of {mine}"
        for name, there, mine in (
            ("Triton", made.triton, here.triton),
            ("attnkit", made.attnkit, here.attnkit),
            ("Python", made.python, here.python),
            ("machine", made.machine, here.machine),
        )
        if there != mine
    ]
    why = "; it was made with " + ", ".join(differs) if differs else "; it is for " + ", ".join(made.targets)
    return f"none of the {compiled} kernels that the self-test needed is in {directory}{why}; they were compiled just in time"


@dataclass
class KernelCount:
    """Where the kernels came from inside `count_kernels`.

    Args:
        precompiled: from the kernel directory.
        cached: from Triton's ordinary cache.
        compiled: names of those compiled just in time.
    """

    precompiled: int = 0
    cached: int = 0
    compiled: list[str] = field(default_factory=list)

    @property
    def jit_compiles(self) -> int:
        """How many were compiled just in time; 0 on a node whose image was built for it."""
        return len(self.compiled)


@contextmanager
def count_kernels() -> Iterator[KernelCount]:
    """Count every kernel Triton loads or compiles inside, ours and others'; a listener that is there keeps being called."""
    from triton import knobs

    from attnkit.kernels.aot_cache import is_precompiled

    count = KernelCount()
    before = knobs.compilation.listener

    def listener(**event: Any) -> None:
        if before is not None:
            before(**event)
        if not event["cache_hit"]:
            count.compiled.append(str(event["metadata"].get("name", "?")))
        elif any(is_precompiled(str(p)) for p in event["metadata_group"].values()):
            count.precompiled += 1
        else:
            count.cached += 1

    knobs.compilation.listener = listener
    try:
        yield count
    finally:
        knobs.compilation.listener = before
