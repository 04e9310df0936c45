"""Kernels compiled ahead of time: build, count, verify, use.

A kernel directory is in the layout of Triton's cache plus `manifest.json`. It is built without a GPU, by asking Triton to
compile exactly the launches a node will make (`variants`), and is found again because the keys are Triton's own: same
Triton build, same kernel source, same target and options (for sm_75 also the hook of `turing`). `use_precompiled` puts it in
front of Triton's cache, `count_kernels` counts what was still compiled. How a shard of the kernels is compiled: `compile`.
"""

from __future__ import annotations

import json
import platform
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import attnkit
from attnkit.errors import AttnkitError, UsageError
from attnkit.kernels.aot.files import MANIFEST, Precompiled

SCHEMA = 2


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
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; `attnkit kernels build` makes it") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if data.get("schema") != SCHEMA:
        raise UsageError(f"{path}: field schema is {data.get('schema')!r}; this attnkit reads {SCHEMA}")
    data["kernels"] = tuple(
        Precompiled(**{**k, "files": {n: (size, digest) for n, (size, digest) in k["files"].items()}}) for k in data["kernels"]
    )
    data["launchers"] = {n: (size, digest) for n, (size, digest) in data["launchers"].items()}
    return Manifest(**{**data, "targets": tuple(data["targets"]), "geometries": tuple(data["geometries"])})
