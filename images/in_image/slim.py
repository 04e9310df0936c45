#!/usr/bin/env python3
"""Removes from an environment what an image that serves never opens: `slim.py ENVIRONMENT`.

Runs in the builder stage with the standard library only. It prints what each rule freed, so that a build log shows what
slimming was worth. Licenses and package metadata stay.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

TREES = {
    "tests": ("tests", "test", "_tests"),
    "headers": ("include",),
    "cmake and pkg-config files": ("share/cmake", "lib/cmake", "lib/pkgconfig"),
}
KEEP = ("numpy/_core/tests/_natype.py", "triton/backends")
"""Imported or read at run time although a rule matches: numpy.testing imports the first, Triton's launcher reads the second."""
STATIC = ("*.a", "*.lib")
FILES = {
    "sources of compiled parts": ("*.c", "*.cc", "*.cpp", "*.cu", "*.cuh", "*.h", "*.hpp", "*.pyx", "*.pxd", "*.f90"),
    "type stubs": ("*.pyi",),
}
CUDA_UNUSED = (
    "nvidia/*/lib/libnvrtc.alt.so*",
    "nvidia/*/lib/libnvrtc-builtins.alt.so*",
    "nvidia/*/lib/libcusolverMg.so*",
    "nvidia/*/lib/libcufftw.so*",
    "nvidia/*/lib/libnvblas.so*",
    "nvidia/*/lib/libnvperf_*.so*",
    "nvidia/*/lib/libpcsamplingutil.so*",
    "nvidia/*/lib/libcheckpoint.so*",
    "triton/backends/nvidia/lib/cupti*/*",
)
"""CUDA's second copies, other libraries' interfaces and profilers. One that something links to stays all the same."""
TORCH_PARTS = ("bin", "share", "test")
"""Directories of torch that only its own C++ test programs and builds use …"""
TORCH_KEEPS = "torch_shm_manager"
"""… except for this program, which `import torch` looks for."""
FOR_NVCC = ("flashinfer/data",)
"""Sources and examples of what flashinfer compiles with nvcc, which no image has."""
LOAD_SEGMENT, DYNAMIC_SEGMENT = 1, 2
NEEDED, STRING_TABLE, STRING_TABLE_SIZE = 1, 5, 10
PAGE = 4096


def size(path: Path) -> int:
    """Bytes of a file or a tree on disk, links not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(child.lstat().st_size for child in path.rglob("*") if child.is_symlink() or child.is_file())


def remove(path: Path) -> int:
    """Delete a file or a tree; the bytes that freed."""
    freed = size(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return freed


def kept(path: Path, site: Path) -> bool:
    """Whether a rule must leave this path alone."""
    name = path.relative_to(site).as_posix()
    return any(name == keep or name.startswith(keep + "/") or keep.startswith(name + "/") for keep in KEEP)


def trees(site: Path, names: tuple[str, ...]) -> int:
    """Remove every directory with one of these names below a package."""
    freed = 0
    for name in names:
        for path in sorted(site.rglob(name)):
            if path.is_dir() and path.parent != site and ".dist-info" not in path.as_posix() and not kept(path, site):
                freed += remove(path)
    return freed


def files(site: Path, patterns: tuple[str, ...]) -> int:
    """Remove every file that matches one of these patterns."""
    return sum(
        remove(path) for pattern in patterns for path in list(site.rglob(pattern)) if path.is_file() and not kept(path, site)
    )


def static_libraries(site: Path) -> int:
    """Remove what only a linker reads, wherever it is."""
    return sum(remove(path) for pattern in STATIC for path in list(site.rglob(pattern)) if path.is_file())


def unused_cuda(site: Path) -> int:
    """Remove the libraries of `CUDA_UNUSED` that no library or program of the environment links to."""
    linked = {name for path in site.rglob("*.so*") if path.is_file() and not path.is_symlink() for name in needed(path)}
    found = {path for pattern in CUDA_UNUSED for path in site.glob(pattern) if path.is_file() and path.name not in linked}
    return sum(remove(path) for path in sorted(found))


def second_copies(site: Path) -> int:
    """Make links of the libraries that lie beside one another under several names, as wheels cannot hold links."""
    freed = 0
    beside: dict[tuple[Path, int], list[Path]] = {}
    for path in sorted(site.rglob("*.so*"), key=lambda path: (len(path.name), path)):
        if path.is_file() and not path.is_symlink():
            beside.setdefault((path.parent, path.stat().st_size), []).append(path)
    for paths in beside.values():
        distinct: list[Path] = []
        for path in paths:
            one = next((one for one in distinct if filecmp.cmp(one, path, shallow=False)), None)
            if one is None:
                distinct.append(path)
            else:
                freed += remove(path)
                path.symlink_to(one.name)
    return freed


def read(file: BinaryIO, offset: int, count: int) -> bytes:
    """Bytes of a file from an offset on."""
    file.seek(offset)
    return file.read(count)


def segments(file: BinaryIO) -> list[tuple[int, int, int, int, int]]:
    """Kind, offset, address, size and alignment of each segment of a 64-bit ELF file; none for any other file."""
    header = read(file, 0, 64)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return []
    offset, entry, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
    found = [struct.unpack("<IIQQQQQQ", read(file, offset + i * entry, 56)) for i in range(count)]
    return [(kind, at, address, size, align) for kind, _, at, address, _, size, _, align in found]


def needed(path: Path) -> list[str]:
    """The libraries that a 64-bit ELF file links to (its DT_NEEDED entries); none for any other file."""
    with path.open("rb") as file:
        found = segments(file)
        dynamic = next(((at, size) for kind, at, _, size, _ in found if kind == DYNAMIC_SEGMENT), None)
        if dynamic is None:
            return []
        tags = list(struct.iter_unpack("<QQ", read(file, dynamic[0], dynamic[1] // 16 * 16)))
        strings = next(value for tag, value in tags if tag == STRING_TABLE)
        size = next(value for tag, value in tags if tag == STRING_TABLE_SIZE)
        loaded = [(at, address, length) for kind, at, address, length, _ in found if kind == LOAD_SEGMENT]
        start = next(at + strings - address for at, address, length in loaded if address <= strings < address + length)
        names = read(file, start, size)
    return [names[value : names.index(b"\0", value)].decode() for tag, value in tags if tag == NEEDED]


def loadable(path: Path) -> bool:
    """Whether this is a 64-bit ELF file with segments, as libraries and programs are."""
    with path.open("rb") as file:
        return bool(segments(file))


def loads(path: Path) -> bool:
    """Whether the loader will map this 64-bit ELF file: each LOAD segment's offset and address agree modulo its alignment.

    Libraries that were edited after linking (patchelf, as wheel repair tools do) can lose that when they are stripped.
    """
    with path.open("rb") as file:
        loaded = [(at, address, align) for kind, at, address, _, align in segments(file) if kind == LOAD_SEGMENT]
    return all(align % PAGE == 0 and (address - at) % align == 0 for at, address, align in loaded)


def strip(site: Path) -> int:
    """Drop what only a debugger or a linker reads from libraries and programs; one that would not load afterwards stays."""
    freed = 0
    for path in sorted(site.rglob("*")):
        if path.is_symlink() or not path.is_file() or not loadable(path):
            continue
        before = path.stat().st_size
        stripped = path.with_name(path.name + ".stripped")
        done = subprocess.run(["strip", "--strip-unneeded", "-o", str(stripped), str(path)], capture_output=True, check=False)
        if done.returncode == 0 and stripped.stat().st_size < before and loads(stripped):
            shutil.copymode(path, stripped)
            stripped.rename(path)
            freed += before - path.stat().st_size
        else:
            stripped.unlink(missing_ok=True)
    return freed


def main(argv: list[str] | None = None) -> int:
    """Command-line entry point: slim the environment and print what each rule freed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", type=Path, help="a virtual environment")
    root: Path = parser.parse_args(argv).environment
    site = next(iter(root.glob("lib/python3*/site-packages")))
    before = size(root)
    freed = {what: trees(site, names) for what, names in TREES.items()}
    freed["torch's build files"] = sum(
        remove(path)
        for part in TORCH_PARTS
        for path in sorted((site / "torch" / part).rglob("*"))
        if path.is_file() and path.name != TORCH_KEEPS
    )
    freed["static libraries"] = static_libraries(site)
    freed["unused CUDA libraries"] = unused_cuda(site)
    freed["sources for nvcc"] = sum(remove(site / part) for part in FOR_NVCC if (site / part).exists())
    freed |= {what: files(site, patterns) for what, patterns in FILES.items()}
    freed["second copies of libraries"] = second_copies(site)
    freed["debug symbols"] = strip(site)
    freed["share and include"] = sum(remove(root / part) for part in ("share", "include") if (root / part).exists())
    for what, count in freed.items():
        print(f"slim: {count / 1e6:8.1f} MB  {what}")
    print(f"slim: {before / 1e6:.0f} MB -> {size(root) / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
