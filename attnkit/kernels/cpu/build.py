"""Compiles the CPU kernels into one shared library that holds every instruction set: needs a C++17 compiler, nothing of torch.

`attnkit kernels build --target cpu` calls `build`. Any x86-64 machine compiles for all of them; which one runs is asked of the
processor at run time.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attnkit.errors import UsageError
from attnkit.kernels.cpu.library import (
    FOLDER,
    PROVIDER,
    CpuKernelsError,
    check_sum,
    file_name,
    instruction_sets,
    load,
    user_cache,
    with_sum,
)

FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",  # a * b + c is one rounding
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wno-maybe-uninitialized",  # GCC 12 warns inside its own AVX-512 headers
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")
INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"portable": (), "avx2": _AVX2, "avx512": _AVX512, "avx512bf16": (*_AVX512, "-mavx512bf16")},
    "aarch64": {"portable": ()},
}
"""Compiler flags of each instruction set by machine; dispatch.cpp has the same names in the same order."""

TARGET = "cpu"
"""What `attnkit kernels` calls them: one target, as any x86-64 machine compiles and loads the same library."""


def compiler() -> str:
    """$CXX, or the first of g++, c++, clang++ on the path.

    Raises:
        UsageError: none is there.
    """
    asked = os.environ.get("CXX")
    found = next((path for name in ([asked] if asked else ["g++", "c++", "clang++"]) if (path := shutil.which(name))), None)
    if found is None:
        raise UsageError(f"no C++ compiler: {asked or 'g++, c++ and clang++'} not found; install one or set CXX")
    return found


def build(directory: Path | None = None) -> Path:
    """Compile into `directory` (None: the user's cache) and load the result once; its path. One already there is replaced.

    Raises:
        UsageError: no compiler, or a machine that the kernels are not written for.
        CpuKernelsError: the compiler fails; the message ends with what it said.
    """
    sets = INSTRUCTION_SETS.get(platform.machine())
    if sets is None:
        raise UsageError(f"no CPU kernels for {platform.machine()}; there are for {', '.join(INSTRUCTION_SETS)}")
    cxx, target = compiler(), (directory or user_cache()) / file_name()
    with tempfile.TemporaryDirectory() as folder:
        objects = [Path(folder, "dispatch.o"), *(Path(folder, f"{name}.o") for name in sets)]
        commands = [[cxx, *FLAGS, "-c", str(FOLDER / "dispatch.cpp"), "-o", str(objects[0])]]
        for (name, flags), made in zip(sets.items(), objects[1:], strict=True):
            source = ["-c", str(FOLDER / "attention.cpp"), "-o", str(made)]
            commands.append([cxx, *FLAGS, *flags, f"-DATTNKIT_KERNEL={name}", *source])
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(_run, commands))
        library = Path(folder, "library.so")
        _run(
            [cxx, "-shared", "-static-libgcc", "-static-libstdc++", *map(str, objects), "-o", str(library), "-ldl", "-pthread"]
        )
        try:
            library.write_bytes(with_sum(library.read_bytes()))
        except OSError as error:
            raise UsageError(f"cannot write {library}: {error.strerror}") from None
        load(library)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_suffix(f".{os.getpid()}")
            shutil.copyfile(library, fresh)
            fresh.chmod(0o755)
            fresh.replace(target)  # whole or not at all, also where two build at once
        except OSError as error:
            raise UsageError(f"cannot write {target}: {error.strerror}") from None
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CpuKernelsError(f"{command[0]} failed ({done.returncode}): {' '.join(command)}\n{done.stderr.strip()[-2000:]}")


def wanted() -> tuple[str, ...]:
    """The instruction sets of this kind of machine, each one kernel: none where the kernels are not written for it."""
    return tuple(INSTRUCTION_SETS.get(platform.machine(), {}))


def is_here(directory: Path) -> bool:
    """Whether a directory holds a library of ours, of these sources or others."""
    return any(directory.glob(f"{PROVIDER}-*.so"))


def verify(directory: Path) -> dict[str, int]:
    """Check the library in `directory`: made from these sources, whole, with every instruction set; {"cpu": how many}.

    Raises:
        CpuKernelsError: it is missing, does not load or lacks an instruction set.
    """
    library = directory / file_name()
    if not library.is_file():
        raise CpuKernelsError(f"{directory}: 1 problem(s): {library.name} is missing")
    check_sum(library)
    lacking = set(wanted()) - set(_sets_in_child(library))
    if lacking:
        raise CpuKernelsError(f"{directory}: {len(lacking)} problem(s): no kernel for {', '.join(sorted(lacking))}")
    return {TARGET: len(wanted())}


def _sets_in_child(library: Path) -> list[str]:
    """`instruction_sets`, asked in a process of its own: a library that crashes must not end its examiner."""
    code = f"import sys; from {instruction_sets.__module__} import instruction_sets as i; from pathlib import Path; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(*i(Path(sys.argv[1])))", str(library)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode < 0:
        raise CpuKernelsError(f"{library}: loading it ends with {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise CpuKernelsError(f"{library}: cannot be loaded: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return done.stdout.split()


def describe(library: Path | None = None) -> str:
    """The instruction sets of a library (None: the one in use), and those that this processor has."""
    sets = instruction_sets(library)
    return f"{', '.join(sets)}; this processor has {', '.join(name for name, here in sets.items() if here)}"
