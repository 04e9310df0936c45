"""Kernels compiled ahead of time: build, count, verify, use.

A bake is a directory in the layout of Triton's cache plus `manifest.json`. It is built without a GPU, by asking Triton to
compile exactly the launches a node will make (`aot_variants`), and is found again because the keys are Triton's own: same
Triton build, same kernel source, same target and options (for sm_75 also the hook of `turing`). `use` puts it in front of
Triton's cache, `watch` counts what was still compiled.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import attnkit
from attnkit.errors import AttnkitError, UsageError
from attnkit.spec import Call

MANIFEST = "manifest.json"
SCHEMA = 1


class KernelsError(AttnkitError):
    """A bake is not what its manifest and the planners say it must be; the message lists every problem."""


@dataclass(frozen=True)
class Variant:
    """One kernel as one target needs it; `name` is kernel-digest of its compile-time facts."""

    target: str
    name: str
    kernel: str


@dataclass(frozen=True)
class Baked:
    """One compiled variant.

    Args:
        target, name, kernel: as in `Variant`.
        key: Triton's cache key, the directory's name.
        binary: file with the machine code.
        files: size and sha256 of every file by name.
    """

    target: str
    name: str
    kernel: str
    key: str
    binary: str
    files: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Manifest:
    """What a bake holds.

    Args:
        triton, attnkit, python, machine: what it was built with and for (`python` is the suffix of extension modules).
        targets, geometries: what was asked for; geometries is empty where only calls were given.
        kernels: every variant.
        launchers: Triton's C modules: size and sha256 by path. Empty for AMD, whose launcher names the node's ROCm library.
    """

    triton: str
    targets: tuple[str, ...]
    geometries: tuple[str, ...]
    kernels: tuple[Baked, ...]
    launchers: dict[str, tuple[int, str]]
    attnkit: str = attnkit.__version__
    python: str = sysconfig.get_config_var("EXT_SUFFIX") or ""
    machine: str = platform.machine()
    schema: int = SCHEMA


def list_kernels(
    targets: Sequence[str], *, geometries: Sequence[str] | None = None, calls: Iterable[Call] | None = None
) -> tuple[Variant, ...]:
    """Every variant that must be in a bake for `targets`.

    Args:
        targets: sm_75, sm_80 … gfx942 …
        geometries: names of `aot_variants.GEOMETRIES`; None takes the default ones, or none where `calls` are given.
        calls: plan these calls too (with small stand-in tensors on the CPU), e.g. those of the self-test.

    Raises:
        UsageError: an unknown target or geometry.
    """
    listed = list(calls) if calls is not None else None
    return tuple(
        Variant(target, name, launch.kernel.fn.__name__)
        for target in targets
        for name, launch in _launches(target, geometries, listed).items()
    )


def _launches(target: str, geometries: Sequence[str] | None, calls: Sequence[Call] | None) -> dict[str, Any]:
    from attnkit.kernels import aot_variants as variants

    planned = (
        call
        for name in _chosen(geometries, calls)
        for dtype in variants.dtypes(target)
        for call in variants.calls(variants.geometry(name), dtype, large=target.startswith("gfx"))
    )
    return variants.variants(target, itertools.chain(planned, calls or ()))


def _chosen(geometries: Sequence[str] | None, calls: Sequence[Call] | None) -> tuple[str, ...]:
    from attnkit.kernels.aot_variants import DEFAULT_GEOMETRIES

    if geometries is None:
        return DEFAULT_GEOMETRIES if calls is None else ()
    return tuple(geometries)


def build(
    targets: Sequence[str],
    out_dir: str | Path,
    *,
    geometries: Sequence[str] | None = None,
    calls: Iterable[Call] | None = None,
    launchers: bool = True,
    on_kernel: Callable[[Baked], None] | None = None,
) -> Manifest:
    """Compile every variant for every target into `out_dir`, and verify the result.

    Args:
        targets, geometries, calls: as for `list_kernels`.
        out_dir: an empty or absent directory, or an earlier bake, which is completed. It may be moved afterwards.
        launchers: compile Triton's C launchers too (CUDA targets); needs a C compiler.
        on_kernel: called after each kernel, for progress.

    Raises:
        UsageError: an unknown target or geometry, or `out_dir` holds something else.
        KernelsError: something is missing or empty afterwards.
    """
    from triton import __version__ as triton_version
    from triton import knobs

    from attnkit.kernels.aot_launcher import bake_launchers

    out = Path(out_dir).resolve()
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UsageError(f"{out} is not empty and no bake (it has no {MANIFEST})")
    out.mkdir(parents=True, exist_ok=True)
    listed = list(calls) if calls is not None else None
    chosen = _chosen(geometries, listed)
    baked: list[Baked] = []
    native: list[Any] = []
    with _compiling_into(knobs, out):
        for target in targets:
            for name, launch in _launches(target, chosen, listed).items():
                kernel = _compile(target, launch)
                if kernel.metadata.target.backend == "cuda":
                    native.append(kernel)
                baked.append(_baked(target, name, launch.kernel.fn.__name__, kernel))
                if on_kernel is not None:
                    on_kernel(baked[-1])
        modules = bake_launchers(native, out) if launchers and native else []
    manifest = Manifest(
        triton=triton_version,
        targets=tuple(targets),
        geometries=chosen,
        kernels=tuple(baked),
        launchers={str(path.relative_to(out)): _facts(path) for path in modules},
    )
    (out / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    verify(out, targets, calls=listed)
    return manifest


@contextmanager
def _compiling_into(knobs: Any, out: Path) -> Iterator[None]:
    """Triton's cache is `out`, and only what a launch needs is kept."""
    with knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = str(out)
        os.environ.pop("TRITON_CACHE_MANAGER", None)
        knobs.compilation.store_binary_only = True
        knobs.compilation.always_compile = True
        yield


def _compile(target: str, launch: Any) -> Any:
    """Compile one launch for an absent target, for sm_75 through Turing's hook; the result is Triton's compiled kernel."""
    from attnkit.kernels import turing
    from attnkit.kernels.triton.targets import compiling_for

    hooked = target == "sm_75" and not turing.enabled()
    if hooked:
        turing.enable()
    try:
        with compiling_for(target):
            launch.kernel.device_caches.clear()
            return launch.warmup()
    finally:
        launch.kernel.device_caches.clear()
        if hooked:
            turing.disable()


def _baked(target: str, name: str, kernel: str, compiled: Any) -> Baked:
    paths = [Path(p) for p in compiled.metadata_group.values()]
    folder = paths[0].parent
    binary = next(p.name for p in paths if p.suffix in (".cubin", ".hsaco"))
    files = {p.name: _facts(p) for p in sorted(folder.iterdir()) if p.is_file()}
    return Baked(target, name, kernel, folder.name, binary, files)


def _facts(path: Path) -> tuple[int, str]:
    data = path.read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()


def load(bake: str | Path) -> Manifest:
    """The manifest of a bake.

    Raises:
        UsageError: none there, or of a schema this version does not read.
    """
    path = Path(bake) / MANIFEST
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; `attnkit kernels build` makes it") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if data.get("schema") != SCHEMA:
        raise UsageError(f"{path}: field schema is {data.get('schema')!r}; this attnkit reads {SCHEMA}")
    data["kernels"] = tuple(
        Baked(**{**k, "files": {n: (size, digest) for n, (size, digest) in k["files"].items()}}) for k in data["kernels"]
    )
    data["launchers"] = {n: (size, digest) for n, (size, digest) in data["launchers"].items()}
    return Manifest(**{**data, "targets": tuple(data["targets"]), "geometries": tuple(data["geometries"])})


def verify(
    bake: str | Path, targets: Sequence[str] | None = None, *, calls: Iterable[Call] | None = None, planned: bool = True
) -> Manifest:
    """Hold a bake against its manifest, and the manifest against what the planners want now.

    Args:
        targets: targets that must be covered; None takes those of the manifest.
        calls: the calls it was built from, beside its geometries.
        planned: also plan every variant anew (imports torch and Triton) and require each; needs geometries or `calls`.

    Raises:
        KernelsError: a kernel is missing, empty or altered, a target is not covered, or Triton or Python differ.
    """
    root = Path(bake)
    manifest = load(root)
    wanted = tuple(manifest.targets if targets is None else targets)
    problems = [f"target {t} was not built" for t in wanted if t not in manifest.targets]
    for kernel in manifest.kernels:
        problems += _altered(root / kernel.key, kernel.files, f"{kernel.target} {kernel.name}")
        if kernel.binary not in kernel.files:
            problems.append(f"{kernel.target} {kernel.name}: no machine code")
    problems += _altered(root, manifest.launchers, "launcher")
    if not manifest.kernels:
        problems.append("the manifest lists no kernel")
    if manifest.python != (sysconfig.get_config_var("EXT_SUFFIX") or "") and manifest.launchers:
        problems.append(f"launchers were built for {manifest.python}; this Python wants another suffix")
    if planned and not problems:
        problems += _unplanned(manifest, wanted, calls)
    if problems:
        raise KernelsError(f"{root}: {len(problems)} problem(s): " + "; ".join(problems[:20]))
    return manifest


def _altered(folder: Path, files: dict[str, tuple[int, str]], what: str) -> list[str]:
    problems: list[str] = []
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{what}: {name} is missing")
        elif path.stat().st_size == 0 or size == 0:
            problems.append(f"{what}: {name} is empty")
        elif _facts(path) != (size, digest):
            problems.append(f"{what}: {name} was altered")
    return problems


def _unplanned(manifest: Manifest, targets: Sequence[str], calls: Iterable[Call] | None) -> list[str]:
    """What the planners of this attnkit and Triton want and the manifest does not list."""
    from triton import __version__ as triton_version

    if triton_version != manifest.triton:
        return [f"built with Triton {manifest.triton}; installed is {triton_version}, whose keys differ"]
    if not manifest.geometries and calls is None:
        return []
    have = {(k.target, k.name) for k in manifest.kernels}
    wanted = list_kernels(targets, geometries=manifest.geometries, calls=calls)
    return [f"{v.target} {v.name} is not in the bake" for v in wanted if (v.target, v.name) not in have]


def use(bake: str | Path) -> Manifest:
    """Put a bake in front of Triton's cache, for this process and those it starts.

    Raises:
        UsageError: no bake there.
    """
    from triton import knobs

    from attnkit.kernels.aot_cache import BAKE_VARIABLE, MANAGER, BakedCacheManager

    manifest = load(bake)
    os.environ[BAKE_VARIABLE] = str(Path(bake).resolve())
    os.environ["TRITON_CACHE_MANAGER"] = MANAGER
    knobs.cache.manager_class = BakedCacheManager
    return manifest


@dataclass
class Count:
    """Where the kernels came from while `watch` was on.

    Args:
        baked: from the bake. cached: from Triton's ordinary cache. compiled: names of those compiled on the spot.
    """

    baked: int = 0
    cached: int = 0
    compiled: list[str] = field(default_factory=list)

    @property
    def jit_compiles(self) -> int:
        """How many were compiled on the spot; 0 on a node whose image was baked for it."""
        return len(self.compiled)


@contextmanager
def watch() -> Iterator[Count]:
    """Count every kernel Triton loads or compiles inside, ours and others'; a listener that is there keeps being called."""
    from triton import knobs

    from attnkit.kernels.aot_cache import baked_path

    count = Count()
    before = knobs.compilation.listener

    def listener(**event: Any) -> None:
        if before is not None:
            before(**event)
        if not event["cache_hit"]:
            count.compiled.append(str(event["metadata"].get("name", "?")))
        elif any(baked_path(str(p)) for p in event["metadata_group"].values()):
            count.baked += 1
        else:
            count.cached += 1

    knobs.compilation.listener = listener
    try:
        yield count
    finally:
        knobs.compilation.listener = before
