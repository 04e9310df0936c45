"""Compiling what a kernel directory is to hold: by one process or several, each taking every n-th kernel."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnkit.kernels.aot.files import MANIFEST, Precompiled, copy_kernel, drop_altered, folder_facts, record_cache
from attnkit.kernels.aot.manifest import load

if TYPE_CHECKING:
    from attnkit.kernels.aot.plan import BuildRequest


def compile_all(
    targets: tuple[str, ...],
    request: BuildRequest,
    out: Path,
    *,
    launchers: bool,
    jobs: int,
    cache_dir: Path | None,
    on_kernel: Callable[[Precompiled], None] | None,
) -> tuple[list[Precompiled], list[Path]]:
    """Compile into `out`, which holds nothing else afterwards; see `aot.build`.

    Returns:
        The kernels in the order of planning, and Triton's C modules.
    """
    _clear(out)
    with tempfile.TemporaryDirectory() as temporary:
        cache_dir = cache_dir or Path(temporary)
        cache_dir.mkdir(parents=True, exist_ok=True)
        drop_altered(cache_dir)
        compile_nth = partial(compile_shard, targets, request, cache_dir, out, launchers, jobs)
        try:
            if jobs == 1:
                shards = [compile_nth(0, on_kernel)]
            else:
                # A fresh interpreter each: a fork of a process that has run torch may hang in its thread pools.
                with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
                    shards = list(pool.map(compile_nth, range(jobs)))
        finally:
            record_cache(cache_dir)
    kernels = [kernel for _, kernel in sorted((item for shard in shards for item in shard), key=lambda item: item[0])]
    if jobs != 1 and on_kernel is not None:
        for kernel in kernels:
            on_kernel(kernel)
    return kernels, sorted(out.glob("*/*.so"))


def _clear(out: Path) -> None:
    """Remove an earlier build: what its manifest names, and nothing else."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / MANIFEST).is_file():
        earlier = load(out)  # its names are names of folders in `out`, and of nothing else
        for folder in {kernel.key for kernel in earlier.kernels} | {Path(name).parent.name for name in earlier.launchers}:
            if folder and (out / folder).is_dir():
                shutil.rmtree(out / folder)
        (out / MANIFEST).unlink()


def compile_shard(
    targets: tuple[str, ...],
    request: BuildRequest,
    cache_dir: Path,
    out: Path,
    launchers: bool,
    shards: int,
    shard: int,
    on_kernel: Callable[[Precompiled], None] | None = None,
) -> list[tuple[int, Precompiled]]:
    """Compile every `shards`-th kernel from the `shard`-th on, and the C launchers of these.

    AMD's launchers name the node's ROCm library and are not compiled.

    Returns:
        The kernels with their indices in the order of planning.
    """
    from attnkit.kernels.aot.launcher import build_launchers

    done: list[tuple[int, Precompiled]] = []
    native: dict[str, Any] = {}
    index = 0
    with _compiling_into(cache_dir):
        for target in targets:
            for code, launches in request.launches(target).items():
                for name, launch in launches.items():
                    if index % shards == shard:
                        kernel = compile_one(code, launch)
                        if kernel.metadata.target.backend == "cuda":
                            native[str(kernel.src.signature)] = kernel
                        done.append((index, _precompiled(code, name, launch.kernel.fn.__name__, kernel, out)))
                        if on_kernel is not None:
                            on_kernel(done[-1][1])
                    index += 1
    if launchers and native:
        with _compiling_into(out):
            build_launchers(native.values(), out)
    return done


@contextmanager
def _compiling_into(folder: Path) -> Iterator[None]:
    """Triton's cache is `folder`, and only what a launch needs is kept."""
    from triton import knobs

    with knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = str(folder)
        os.environ.pop("TRITON_CACHE_MANAGER", None)
        knobs.compilation.store_binary_only = True
        yield


def compile_one(code: str, launch: Any) -> Any:
    """Compile one launch for an absent target, for sm_75 through Turing's hook; the result is Triton's compiled kernel.

    Args:
        code: an architecture, or sm_75-scalar, which has no hook.
    """
    from attnkit.kernels.triton.targets import compiling_for
    from attnkit.kernels.turing import hook

    hooked = code == "sm_75" and not hook.enabled()
    if hooked:
        hook.enable()
    try:
        with compiling_for(code.partition("-")[0]):
            launch.kernel.device_caches.clear()
            return launch.warmup()
    finally:
        launch.kernel.device_caches.clear()
        if hooked:
            hook.disable()


def _precompiled(code: str, name: str, kernel: str, compiled: Any, out: Path) -> Precompiled:
    folder = copy_kernel(next(Path(p) for p in compiled.metadata_group.values()).parent, out)
    binary = next(p.name for p in folder.iterdir() if p.suffix in (".cubin", ".hsaco"))
    return Precompiled(code, name, kernel, folder.name, binary, folder_facts(folder))
