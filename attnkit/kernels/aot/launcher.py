"""The small C modules Triton compiles at the first launch, compiled ahead: an image without a compiler could not make them.

Linking needs a library called libcuda.so.1. Where no driver is installed (every build machine) an empty one stands in; the real
one is found at run time.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from attnkit.errors import AttnkitError


def build_launchers(kernels: Iterable[Any], cache: Path) -> list[Path]:
    """Compile the launchers of CUDA kernels, and Triton's driver module, into `cache` (Triton's active cache directory).

    Args:
        kernels: what `Launch.warmup` returned.

    Returns:
        The shared objects, all of them in `cache`.

    Raises:
        AttnkitError: the compiler failed or made nothing.
    """
    from triton.backends.nvidia import driver

    with _reproducible(), _libcuda(driver), _quiet():
        _tolerating_load(driver.CudaUtils)
        if not hasattr(vars(driver.CudaUtils).get("instance"), "load_binary"):
            # The module cannot be loaded without a driver; the next user must not find half an object.
            driver.CudaUtils.instance = None
            del driver.CudaUtils.instance
        if "make_launcher" in vars(driver):  # later Tritons have one launcher for every signature, in the driver module
            for kernel in {str(k.src.signature): k for k in kernels}.values():
                _tolerating_load(partial(driver.CudaLauncher, kernel.src, kernel.metadata))
    found = sorted(cache.glob("*/*.so"))
    if not found:
        raise AttnkitError(f"no launcher was compiled into {cache}; is there a C compiler (gcc or clang, or CC)?")
    return found


@contextmanager
def _reproducible() -> Iterator[None]:
    """Triton's compiler is one that leaves out the temporary folder's name, so that every build comes to the same bytes."""
    from triton.runtime import build

    find = getattr(build, "_find_compiler", None)  # kept from its first call on in later Tritons
    before = os.environ.get("CC")
    real = before or shutil.which("gcc") or shutil.which("clang") or "cc"
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder, "cc")
        wrapper.write_text(f'#!/bin/sh\nexec {real} -ffile-prefix-map="$(dirname "$1")=." -Wl,--build-id=none "$@"\n')
        wrapper.chmod(0o755)
        os.environ["CC"] = str(wrapper)
        try:
            _clear(find)
            yield
        finally:
            os.environ.pop("CC")
            if before is not None:
                os.environ["CC"] = before
            _clear(find)


def _clear(cached: Any) -> None:
    if hasattr(cached, "cache_clear"):
        cached.cache_clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Triton's warning that what was just compiled cannot be loaded here, which is known."""
    logger = logging.getLogger("triton.runtime.build")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _tolerating_load(make: Any) -> None:
    """Run `make`; what it compiles is in the cache before it is loaded, and loading may need a real driver."""
    try:
        make()
    except (ImportError, OSError, AttributeError):
        return
    except subprocess.CalledProcessError as error:
        raise AttnkitError(f"Triton's launcher does not compile: {error}") from None


@contextmanager
def _libcuda(driver: Any) -> Iterator[None]:
    """Something to link against by the name libcuda.so.1.

    From Triton 3.8 on the folder's name is part of the module's key. An image therefore sets TRITON_LIBCUDA_PATH to one name
    for its build and for every node; the loader finds the driver without it.
    """
    from triton import knobs

    folder_name = knobs.nvidia.libcuda_path
    if folder_name is None:
        try:
            ctypes.CDLL("libcuda.so.1")
            yield
            return
        except OSError:
            pass
    with _alone(), tempfile.TemporaryDirectory() as temporary, knobs.nvidia.scope():
        folder = Path(folder_name or temporary)
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        stand_in = folder / "libcuda.so.1"
        added = not stand_in.exists()
        knobs.nvidia.libcuda_path = str(folder)
        searches = (driver.libcuda_dirs, driver.library_dirs)
        for search in searches:
            search.cache_clear()
        try:
            if added:
                _link_stand_in(stand_in)
            yield
        finally:
            if added:
                stand_in.unlink(missing_ok=True)
            if made:
                folder.rmdir()
            for search in searches:
                search.cache_clear()


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time: several that compile share the folder of the stand-in."""
    with Path(tempfile.gettempdir(), "attnkit-stand-in.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _link_stand_in(stand_in: Path) -> None:
    command = ["cc", "-shared", "-Wl,-soname,libcuda.so.1", "-o", str(stand_in), "-x", "c", "/dev/null"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise AttnkitError(f"no C compiler for Triton's launchers: {error}") from None
