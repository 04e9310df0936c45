"""Kernels compiled ahead of time: build, count, verify, use.

A bake is a directory in the layout of Triton's cache plus `manifest.json`. It is built without a GPU, by asking Triton to
compile exactly the launches a node will make (`aot_variants`), and is found again because the keys are Triton's own: same
Triton build, same kernel source, same target and options (for sm_75 also the hook of `turing`). `use` puts it in front of
Triton's cache, `watch` counts what was still compiled. How a share of the kernels is compiled: `aot_compile`.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnkit
from attnkit.errors import AttnkitError, UsageError
from attnkit.kernels.aot_files import MANIFEST, Baked, facts
from attnkit.spec import Call

if TYPE_CHECKING:
    from attnkit.kernels.aot_variants import BootCalls

SCHEMA = 2


class KernelsError(AttnkitError):
    """A bake is not what its manifest and the planners say it must be; the message lists every problem."""


@dataclass(frozen=True)
class Variant:
    """One kernel as one target needs it; `name` is kernel-digest of its compile-time facts.

    `target` is an architecture, or sm_75-scalar: what stock Triton makes for sm_75, for the backends that run there without
    Turing's hook.
    """

    target: str
    name: str
    kernel: str


@dataclass(frozen=True)
class Manifest:
    """What a bake holds.

    Args:
        triton, attnkit, python, machine: what it was built with and for (`python` is the suffix of extension modules).
        targets, geometries: what was asked for; geometries is empty where only calls were given.
        level: the level of the boot's self-test whose kernels are in it; empty: none.
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
    level: str = ""
    schema: int = SCHEMA

    def counts(self) -> dict[str, int]:
        """How many kernels a target has, by target."""
        return dict(Counter(kernel.target for kernel in self.kernels))


def list_kernels(
    targets: Sequence[str],
    *,
    geometries: Sequence[str] | None = None,
    calls: Iterable[Call] | None = None,
    boot: BootCalls | None = None,
) -> tuple[Variant, ...]:
    """Every variant that must be in a bake for `targets`.

    Args:
        targets: sm_75, sm_80 … gfx942 …
        geometries: names of `aot_variants.GEOMETRIES`; None takes the default ones, or none where `calls` are given.
        calls: plan these calls too (with small stand-in tensors on the CPU), for every number of splits.
        boot: the calls of the boot's self-test, planned exactly as it launches them.

    Raises:
        UsageError: an unknown target or geometry.
    """
    asked = Asked.of(geometries, calls, boot)
    return tuple(
        Variant(code, name, launch.kernel.fn.__name__)
        for target in targets
        for code, launches in asked.launches(target).items()
        for name, launch in launches.items()
    )


@dataclass(frozen=True)
class Asked:
    """What is to be in a bake, for any target."""

    geometries: tuple[str, ...]
    calls: tuple[Call, ...] | None
    boot: BootCalls | None

    @classmethod
    def of(cls, geometries: Sequence[str] | None, calls: Iterable[Call] | None, boot: BootCalls | None) -> Asked:
        """From the arguments of `build`."""
        listed = None if calls is None else tuple(calls)
        return cls(_chosen(geometries, listed), listed, boot)

    def launches(self, target: str) -> dict[str, dict[str, Any]]:
        """The launches by variant name, for the code of `target` and what else a boot runs on it (sm_75-scalar)."""
        from attnkit.kernels import aot_variants as variants

        planned = (
            call
            for name in self.geometries
            for dtype in variants.dtypes(target)
            for call in variants.calls(variants.geometry(name), dtype, large=target.startswith("gfx"))
        )
        found = {target: variants.variants(target, itertools.chain(planned, self.calls or ()))}
        for code, call in self.boot.of(target) if self.boot is not None else ():
            for launch in variants.exact(call, code):
                found.setdefault(code, {}).setdefault(variants.variant_name(launch), launch)
        return found


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
    boot: BootCalls | None = None,
    launchers: bool = True,
    jobs: int = 1,
    cache: str | Path | None = None,
    on_kernel: Callable[[Baked], None] | None = None,
) -> Manifest:
    """Compile every variant for every target into `out_dir`, and verify the result.

    Args:
        targets, geometries, calls, boot: as for `list_kernels`.
        out_dir: an empty or absent directory, or an earlier bake, which is replaced. It may be moved afterwards.
        launchers: compile Triton's C launchers too (CUDA targets); needs a C compiler.
        jobs: processes that compile.
        cache: a directory that keeps what was compiled; a later build takes from it what has the same key and is unaltered.
        on_kernel: called after each kernel, for progress.

    Raises:
        UsageError: an unknown target or geometry, or `out_dir` holds something else.
        KernelsError: something is missing or empty afterwards.
    """
    from triton import __version__ as triton_version

    from attnkit.kernels import aot_compile

    out = Path(out_dir).resolve()
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UsageError(f"{out} is not empty and no bake (it has no {MANIFEST})")
    asked = Asked.of(geometries, calls, boot)
    baked, modules = aot_compile.compile_all(
        tuple(targets),
        asked,
        out,
        launchers=launchers,
        jobs=jobs,
        cache=Path(cache).resolve() if cache else None,
        say=on_kernel,
    )
    manifest = Manifest(
        triton=triton_version,
        targets=tuple(targets),
        geometries=asked.geometries,
        kernels=tuple(baked),
        launchers={str(path.relative_to(out)): facts(path) for path in modules},
        level=boot.level if boot is not None else "",
    )
    (out / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    verify(out, targets, calls=asked.calls, boot=boot)
    return manifest


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
    bake: str | Path,
    targets: Sequence[str] | None = None,
    *,
    calls: Iterable[Call] | None = None,
    boot: BootCalls | None = None,
    planned: bool = True,
) -> Manifest:
    """Hold a bake against its manifest, and the manifest against what the planners want now.

    Args:
        targets: targets that must be covered; None takes those of the manifest.
        calls, boot: what it was built from, beside its geometries.
        planned: also plan every variant anew (imports torch and Triton) and require each; needs geometries, `calls` or `boot`.

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
        problems += _unplanned(manifest, wanted, calls, boot)
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
        elif facts(path) != (size, digest):
            problems.append(f"{what}: {name} was altered")
    return problems


def _unplanned(manifest: Manifest, targets: Sequence[str], calls: Iterable[Call] | None, boot: BootCalls | None) -> list[str]:
    """What the planners of this attnkit and Triton want and the manifest does not list."""
    from triton import __version__ as triton_version

    if triton_version != manifest.triton:
        return [f"built with Triton {manifest.triton}; installed is {triton_version}, whose keys differ"]
    if boot is not None and boot.level != manifest.level:
        return [f"the kernels of the boot's self-test are of level {manifest.level or 'none'}, not {boot.level}"]
    if not manifest.geometries and calls is None and boot is None:
        return []
    have = {(k.target, k.name) for k in manifest.kernels}
    wanted = list_kernels(targets, geometries=manifest.geometries, calls=calls, boot=boot)
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


def unused(bake: str | Path, compiled: int) -> str:
    """Why none of `compiled` kernels came from a bake, in words for whoever waits for them."""
    from triton import __version__ as triton_version

    made = load(bake)
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
    return f"none of the {compiled} kernels that the self-test needed is in the bake {bake}{why}: all were compiled on the spot"


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
