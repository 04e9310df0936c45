"""Kernels compiled ahead of time: build, count, verify, use.

A kernel directory is in the layout of Triton's cache plus `manifest.json`. It is built without a GPU, by asking Triton to
compile exactly the launches a node will make (`variants`), and is found again because the keys are Triton's own: same
Triton build, same kernel source, same target and options (for sm_75 also the hook of `turing`). `use_precompiled` puts it in
front of Triton's cache, `count_kernels` counts what was still compiled. How a shard of the kernels is compiled: `compile`.
"""

from __future__ import annotations

import json
import platform
import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

import attnkit
from attnkit.errors import AttnkitError, UsageError
from attnkit.jsonio import read_json, shorten
from attnkit.kernels.aot.files import MANIFEST, Precompiled

SCHEMA = 2
MAX_BYTES = 64 * 2**20
M = TypeVar("M")


class KernelsError(AttnkitError):
    """A kernel directory is not what its manifest and the planners say it must be; the message lists every problem."""


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
    """What a kernel directory holds.

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
    kernels: tuple[Precompiled, ...]
    launchers: dict[str, tuple[int, str]]
    attnkit: str = attnkit.__version__
    python: str = sysconfig.get_config_var("EXT_SUFFIX") or ""
    machine: str = platform.machine()
    level: str = ""
    schema: int = SCHEMA

    def counts(self) -> dict[str, int]:
        """How many kernels a target has, by target."""
        return dict(Counter(kernel.target for kernel in self.kernels))


def load(directory: str | Path) -> Manifest:
    """The manifest of a kernel directory.

    Raises:
        UsageError: none there, or of a schema this version does not read.
    """
    path = Path(directory) / MANIFEST
    manifest = read_manifest(path, Manifest, SCHEMA)
    names = [name for kernel in manifest.kernels for name in (kernel.key, kernel.binary, *kernel.files)]
    for name in (*names, *(part for launcher in manifest.launchers for part in launcher.split("/"))):
        if not re.fullmatch(r"[\w+-][\w.+-]{0,199}", name):
            raise UsageError(f"{path}: {shorten(name)!r} is not the name of a file in {directory}")
    return manifest


def read_manifest(path: Path, kind: type[M], schema: int) -> M:
    """A manifest as `kind`, every field of its type.

    Raises:
        UsageError: no such file, not JSON, of another schema, or a field is missing or wrong; the message names it.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file; `attnkit kernels build` makes it")
    data = read_json(path, limit=MAX_BYTES)
    if not isinstance(data, dict) or data.get("schema") != schema:
        found = data.get("schema") if isinstance(data, dict) else None
        raise UsageError(f"{path}: field schema is {shorten(repr(found))}; this attnkit reads {schema}")
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: field {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
