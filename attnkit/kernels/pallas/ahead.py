"""Paged attention lowered ahead of time for TPUs: modules in a directory, found again by a call's shapes and options.

A module is what `jax.export` makes of `paged_attention` for one signature without a TPU: StableHLO with the Mosaic kernel in
it. It is the same for every TPU generation; XLA still compiles it for the chip when it is first called. The backend asks `load`
for it where ATTNKIT_KERNELS names such a directory; a signature that is not in it is traced and lowered as ever.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attnkit.errors import UsageError
from attnkit.jsonio import read_json
from attnkit.kernels.aot.files import MANIFEST, facts
from attnkit.kernels.aot.manifest import MAX_BYTES, KernelsError, read_manifest

VARIABLE = "ATTNKIT_KERNELS"
CUSTOM_CALL = "tpu_custom_call"
"""How a Mosaic kernel stands in StableHLO."""
SCHEMA = 1


@dataclass(frozen=True)
class Signature:
    """What decides a module: shapes and dtypes of the arrays, in the order that `call` takes them, and the static options."""

    query: tuple[int, ...]
    dtype: str
    key_cache: tuple[int, ...]
    value_cache: tuple[int, ...]
    cache_dtype: str
    block_table: tuple[int, ...]
    max_query_len: int
    max_seq_len: int
    softmax_scale: float
    causal: bool
    window: tuple[int, int]
    softcap: float
    alibi: bool
    sinks: bool

    @property
    def name(self) -> str:
        """The module's file: a digest of all fields."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:24] + ".export"

    @property
    def options(self) -> dict[str, Any]:
        """The static arguments of `paged_attention`."""
        names = ("max_query_len", "max_seq_len", "softmax_scale", "causal", "window", "softcap")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Module:
    """One module of a kernel directory: its file, the facts of that, how many Mosaic kernels it calls, and its signature."""

    name: str
    bytes: int
    digest: str
    kernels: int
    signature: Signature


@dataclass(frozen=True)
class Manifest:
    """What a kernel directory holds: modules for `targets`, made by this version of JAX, of the boot's self-test at `level`."""

    jax: str
    targets: tuple[str, ...]
    level: str
    kernels: tuple[Module, ...]
    schema: int = SCHEMA

    def counts(self) -> dict[str, int]:
        """How many modules a target has, by target; they share them."""
        return {target: len(self.kernels) for target in self.targets}


def build(
    signatures: Iterable[Signature],
    targets: Sequence[str],
    directory: Path,
    *,
    level: str,
    on_module: Callable[[Module], None] | None = None,
) -> Manifest:
    """Lower `paged_attention` for every signature into `directory`.

    Raises:
        UsageError: the directory holds something else.
    """
    import jax.export

    if directory.is_dir() and any(directory.iterdir()) and not (directory / MANIFEST).is_file():
        raise UsageError(f"{directory} is not empty and is not a kernel directory (no {MANIFEST})")
    directory.mkdir(parents=True, exist_ok=True)
    modules = []
    for signature in dict.fromkeys(signatures):
        with _without_callers():
            exported = jax.export.export(jax.jit(_function(signature)), platforms=["tpu"])(*_arguments(signature))
        path = directory / signature.name
        path.write_bytes(exported.serialize())
        size, digest = facts(path)
        module = Module(signature.name, size, digest, exported.mlir_module().count(CUSTOM_CALL), signature)
        modules.append(module)
        if on_module is not None:
            on_module(module)
    manifest = Manifest(jax.__version__, tuple(targets), level, tuple(modules))
    (directory / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
    return manifest


@contextmanager
def _without_callers() -> Iterator[None]:
    """Keep the files and lines of who called out of a module, so that it depends on the kernel alone."""
    import jax

    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def is_here(directory: Path) -> bool:
    """Whether a directory is a kernel directory of such modules."""
    try:
        return "jax" in read_json(directory / MANIFEST, limit=MAX_BYTES)
    except (UsageError, TypeError):  # whoever reads it says what is wrong
        return False


def read(directory: Path) -> Manifest:
    """The manifest of a kernel directory.

    Raises:
        UsageError: none there, or of a schema this version does not read.
    """
    return read_manifest(directory / MANIFEST, Manifest, SCHEMA)


def verify(directory: Path, targets: Sequence[str], wanted: Iterable[Signature], level: str) -> Manifest:
    """Compare a kernel directory with its manifest, and the manifest with what is wanted.

    Raises:
        KernelsError: a module is missing, empty, altered or without its kernel, a target or a signature is not covered, or
            another JAX made it.
    """
    import jax

    manifest = read(directory)
    problems = [f"target {target} was not built" for target in targets if target not in manifest.targets]
    if manifest.jax != jax.__version__:
        problems.append(f"made by JAX {manifest.jax}; installed is {jax.__version__}")
    if manifest.level != level:
        problems.append(f"the modules of the boot's self-test are of level {manifest.level or 'none'}, not {level}")
    if not manifest.kernels:
        problems.append("the manifest lists no module")
    for module in manifest.kernels:
        problems += _damage(directory / module.name, module)
    known = {MANIFEST, *(module.name for module in manifest.kernels)}
    problems += sorted(f"{path.name} was added" for path in directory.iterdir() if path.name not in known)
    have = {module.name for module in manifest.kernels}
    problems += [f"{signature.name} is missing from the kernel directory" for signature in wanted if signature.name not in have]
    if problems:
        raise KernelsError(f"{directory}: {len(problems)} problem(s): " + "; ".join(problems[:20]))
    return manifest


def _damage(path: Path, module: Module) -> list[str]:
    if not path.is_file():
        return [f"{module.name} is missing"]
    if not path.stat().st_size:
        return [f"{module.name} is empty"]
    if facts(path) != (module.bytes, module.digest):
        return [f"{module.name} was altered"]
    if module.kernels < 1 or module.name != module.signature.name:
        return [f"{module.name} has no kernel in it, or is of another signature"]
    return []


def load(signature: Signature) -> Callable[..., tuple[Any, Any]] | None:
    """The module of this signature, a function of the arrays in the order of `paged_attention`, then slopes and sinks or None.

    None where there is no such module.
    """
    folder = os.environ.get(VARIABLE)
    return _loaded(Path(folder), signature) if folder else None


@functools.cache
def _loaded(directory: Path, signature: Signature) -> Callable[..., tuple[Any, Any]] | None:
    import jax.export

    path = directory / signature.name
    if not path.is_file() or read(directory).jax != jax.__version__:
        return None
    call: Callable[..., tuple[Any, Any]] = jax.export.deserialize(bytearray(path.read_bytes())).call
    return call


def _function(signature: Signature) -> Callable[..., Any]:
    from attnkit.kernels.pallas.paged import paged_attention

    def call(q: Any, k: Any, v: Any, table: Any, lens: Any, starts: Any, slopes: Any, sinks: Any) -> Any:
        return paged_attention(q, k, v, table, lens, starts, alibi_slopes=slopes, sinks=sinks, **signature.options)

    return call


def _arguments(signature: Signature, sharding: Any = None) -> tuple[Any, ...]:
    """Stand-ins for the arrays, which have shapes and no contents."""
    import jax

    def array(shape: tuple[int, ...], dtype: str) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    heads, seqs = (signature.query[1],), signature.block_table[0]
    return (
        array(signature.query, signature.dtype),
        array(signature.key_cache, signature.cache_dtype),
        array(signature.value_cache, signature.cache_dtype),
        array(signature.block_table, "int32"),
        array((seqs,), "int32"),
        array((seqs + 1,), "int32"),
        array(heads, "float32") if signature.alibi else None,
        array(heads, "float32") if signature.sinks else None,
    )
