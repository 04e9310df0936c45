"""Compiles what the plan asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from attnkit.errors import UsageError
from attnkit.kernels.aot.files import MANIFEST, Precompiled, facts
from attnkit.spec import Call

if TYPE_CHECKING:
    from attnkit.kernels.aot.variants import BootCalls
from attnkit.kernels.aot.manifest import Manifest
from attnkit.kernels.aot.plan import BuildRequest
from attnkit.kernels.aot.verify import verify


def build(
    targets: Sequence[str],
    out_dir: str | Path,
    *,
    geometries: Sequence[str] | None = None,
    calls: Iterable[Call] | None = None,
    boot: BootCalls | None = None,
    launchers: bool = True,
    jobs: int = 1,
    cache: str | Path | None = None,
    on_kernel: Callable[[Precompiled], None] | None = None,
) -> Manifest:
    """Compile every variant for every target into `out_dir`, and verify the result.

    Args:
        targets, geometries, calls, boot: as for `list_kernels`.
        out_dir: an empty or absent directory, or an earlier kernel directory, which is replaced. It may be moved afterwards.
        launchers: compile Triton's C launchers too (CUDA targets); needs a C compiler.
        jobs: processes that compile.
        cache: a directory that keeps what was compiled; a later build takes from it what has the same key and is unaltered.
        on_kernel: called after each kernel, for progress.

    Raises:
        UsageError: an unknown target or geometry, or `out_dir` holds something else.
        KernelsError: something is missing or empty afterwards.
    """
    from triton import __version__ as triton_version

    from attnkit.kernels.aot import compile

    out = Path(out_dir).resolve()
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UsageError(f"{out} is not empty and is not a kernel directory (no {MANIFEST})")
    request = BuildRequest.of_arguments(geometries, calls, boot)
    kernels, modules = compile.compile_all(
        tuple(targets),
        request,
        out,
        launchers=launchers,
        jobs=jobs,
        cache_dir=Path(cache).resolve() if cache else None,
        on_kernel=on_kernel,
    )
    manifest = Manifest(
        triton=triton_version,
        targets=tuple(targets),
        geometries=request.geometries,
        kernels=tuple(kernels),
        launchers={str(path.relative_to(out)): facts(path) for path in modules},
        level=boot.level if boot is not None else "",
    )
    (out / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    verify(out, targets, calls=request.calls, boot=boot)
    return manifest
