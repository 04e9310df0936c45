"""The compiled CPU kernels: where they are, whether they fit their sources and this processor, and the call into them.

The library is made by `attnkit kernels build --target cpu` (`build.py`), never at run time. Nothing here imports torch; tensors
come in as anything with `data_ptr()`, `stride()` and `shape`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from attnkit.errors import AttnkitError, UnsupportedError

REQUIREMENT = "attnkit-cpu-kernels"
"""What the provider requires; `attnkit.backends.versions` asks `find` for it."""

PROVIDER = "attnkit-cpu"
"""Their provider's name in backends; a library's file name begins with it."""

KERNELS_VARIABLE = "ATTNKIT_KERNELS"
ISA_VARIABLE = "ATTNKIT_CPU_ISA"
"""Takes a lesser instruction set than the processor has: portable, avx2, avx512, avx512bf16."""

SOURCES = ("abi.h", "vectors.h", "few_rows.h", "attention.cpp", "dispatch.cpp")
FOLDER = Path(__file__).parent


class CpuKernelsError(AttnkitError):
    """The compiled CPU kernels cannot be used; the message says why."""


SUM_MARK = b"\nattnkit-sha256:"
"""A library ends with it and the hex digits of the SHA-256 of all before; a loader does not look behind the ELF's sections."""


def with_sum(data: bytes) -> bytes:
    """A library's bytes with their sum at the end."""
    return data + SUM_MARK + hashlib.sha256(data).hexdigest().encode()


def check_sum(path: Path) -> None:
    """Make sure that a library is what the build wrote. Loading one that is not may end the process, or compute wrongly.

    Raises:
        CpuKernelsError: it was altered, cut short or stripped, or cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CpuKernelsError(f"{path}: {error.strerror}") from None
    body, mark, digits = data.rpartition(SUM_MARK)
    if not mark or hashlib.sha256(body).hexdigest().encode() != digits:
        how = "was altered" if mark else "has no sum: it was cut short or stripped"
        raise CpuKernelsError(f"{path}: {how}; make it anew: attnkit kernels build --target cpu")


@cache
def digest() -> str:
    """The first 16 hex digits of the SHA-256 of the sources: a library has it in its name, so a stale one is never taken."""
    total = hashlib.sha256(SUM_MARK)
    for name in SOURCES:
        total.update((FOLDER / name).read_bytes())
    return total.hexdigest()[:16]


def file_name() -> str:
    """Name of the library made from these sources for this kind of processor."""
    return f"{PROVIDER}-{platform.machine()}-{digest()}.so"


def user_cache() -> Path:
    """Where `attnkit kernels build --target cpu` puts the library where no directory is given."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnkit" / "kernels"


def _folders() -> Iterator[Path]:
    """Where a library may lie: the kernel directory, next to the sources, the user's cache."""
    if os.environ.get(KERNELS_VARIABLE):
        yield Path(os.environ[KERNELS_VARIABLE])
    yield FOLDER
    yield user_cache()


def find() -> Path | None:
    """The library made from these very sources, None where there is none."""
    try:
        name = file_name()
        return next((folder / name for folder in _folders() if (folder / name).is_file()), None)
    except (OSError, RuntimeError):  # sources left out of an installation; no home directory
        return None


class Call(ctypes.Structure):
    """`attnkit::Call` of abi.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out", "lse", "block_table", "seq_lens")),
        *((name, ctypes.c_void_p) for name in ("key_start_loc", "query_start_loc", "alibi", "sinks")),
        *((name, ctypes.c_int64) for name in ("q_token", "q_head", "k_block", "k_slot", "k_head")),
        *((name, ctypes.c_int64) for name in ("v_block", "v_slot", "v_head", "o_token", "o_head", "table_seq", "table_block")),
        *((name, ctypes.c_int64) for name in ("lens_seq", "k_start_seq", "q_start_seq", "alibi_head", "sinks_head")),
        *((name, ctypes.c_int32) for name in ("num_seqs", "heads", "kv_heads", "dim", "dim_v", "block_size")),
        *((name, ctypes.c_int32) for name in ("left", "right", "dtype", "cache_dtype", "threads", "isa")),
        *((name, ctypes.c_float) for name in ("scale", "softcap", "v_scale")),
    ]


class Store(ctypes.Structure):
    """`attnkit::Store` of abi.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("key", "value", "key_cache", "value_cache", "slots")),
        *((name, ctypes.c_int64) for name in ("k_token", "k_head", "v_token", "v_head")),
        *((name, ctypes.c_int64) for name in ("kc_block", "kc_slot", "kc_head", "vc_block", "vc_slot", "vc_head")),
        *((name, ctypes.c_int32) for name in ("tokens", "heads", "key_bytes", "value_bytes", "block_size", "threads")),
    ]


@cache
def _library() -> ctypes.CDLL:
    path = find()
    if path is None:
        raise CpuKernelsError(f"CPU kernels are not compiled here ({file_name()}): attnkit kernels build --target cpu")
    return load(path)


def load(path: Path) -> ctypes.CDLL:
    """The library at `path`, its functions typed; its sum is checked first.

    Raises:
        CpuKernelsError: it was altered, does not load, or was made for another layout of `Call` or `Store`.
    """
    check_sum(path)
    try:
        library = ctypes.CDLL(str(path))
        library.attnkit_cpu_attention.argtypes = library.attnkit_cpu_store.argtypes = [ctypes.c_void_p]
        library.attnkit_cpu_store.restype = None
        library.attnkit_cpu_isa_name.restype = library.attnkit_cpu_openmp.restype = ctypes.c_char_p
        size = library.attnkit_cpu_struct_size()
    except (OSError, AttributeError) as error:
        raise CpuKernelsError(f"{path}: cannot be loaded: {error}") from error
    if size != ctypes.sizeof(Call) + ctypes.sizeof(Store):
        raise CpuKernelsError(f"{path}: its calls have {size} bytes, not {ctypes.sizeof(Call) + ctypes.sizeof(Store)}")
    return library


def instruction_sets(path: Path | None = None) -> dict[str, bool]:
    """The instruction sets that the library at `path` holds (None: the one in use), least first, and whether this processor
    has each.
    """
    library = _library() if path is None else load(path)
    return {
        library.attnkit_cpu_isa_name(i).decode(): bool(library.attnkit_cpu_isa_supported(i))
        for i in range(library.attnkit_cpu_isa_count())
    }


def openmp() -> Path | None:
    """The OpenMP runtime whose threads the kernels run on: torch's. None: there is none, they start threads of their own."""
    found = _library().attnkit_cpu_openmp().decode()
    return Path(found) if found else None


@cache
def isa() -> tuple[int, str]:
    """Index and name of the best instruction set of this processor, or of the one that ISA_VARIABLE names.

    Raises:
        UnsupportedError: the one named is unknown or not in this processor.
    """
    sets = instruction_sets()
    usable = [name for name, here in sets.items() if here]
    wanted = os.environ.get(ISA_VARIABLE) or usable[-1]
    if wanted not in usable:
        raise UnsupportedError(f"{ISA_VARIABLE}={wanted} is not in this processor; it has {', '.join(usable)}")
    return list(sets).index(wanted), wanted


def attention(call: Call) -> str:
    """Run `call`, whose `isa` is set here; the name of the kernel that ran.

    Raises:
        CpuKernelsError: not compiled, or the library refuses the call.
    """
    call.isa, name = isa()
    code = _library().attnkit_cpu_attention(ctypes.byref(call))
    if code:
        raise CpuKernelsError(f"the CPU kernels refused the call (code {code})")
    return f"attnkit_cpu_{name}"


def store(rows: Store) -> None:
    """Write `rows` into a cache.

    Raises:
        CpuKernelsError: not compiled.
    """
    _library().attnkit_cpu_store(ctypes.byref(rows))


DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2, "float8_e4m3fn": 3, "float8_e5m2": 4}
"""`attnkit::Dtype` by torch's name."""


def dtype_number(tensor: Any) -> int:
    """`attnkit::Dtype` of a tensor.

    Raises:
        UnsupportedError: a dtype that the kernels do not read.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    try:
        return DTYPES[name]
    except KeyError:
        raise UnsupportedError(f"the CPU kernels do not read {name}; they read {', '.join(DTYPES)}") from None
