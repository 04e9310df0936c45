"""Finds and loads profile files."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TypeVar

from attnkit.errors import UsageError, unknown_name
from attnkit.profiles.schema import Families, NodeProfile, WorkloadProfile
from attnkit.profiles.strict_yaml import read_model


def profile_dir() -> Path:
    """The folder with `nodes` and `workloads`.

    Raises:
        UsageError: ATTNKIT_PROFILES names no such folder.
    """
    given = os.environ.get("ATTNKIT_PROFILES")
    if given:
        folder = Path(given)
        if not (folder / "nodes").is_dir():
            raise UsageError(f"ATTNKIT_PROFILES={given}: not a folder with a folder nodes/ of profiles")
        return folder
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "data" / "profiles", here.parent / "profiles"):
        if (folder / "nodes").is_dir():
            return folder
    raise UsageError(f"{here}: the package has no profiles; set ATTNKIT_PROFILES to a folder of them")


def node_names() -> tuple[str, ...]:
    """Every node type, sorted: those with a file of their own, and those of `families.yaml`."""
    return _node_names(profile_dir())


def family_names() -> frozenset[str]:
    """The node types that have no file of their own: their family sets everything."""
    folder = profile_dir()
    return frozenset(_families(folder)) - set(_names(folder, "nodes"))


def workload_names() -> tuple[str, ...]:
    """Every workload, sorted."""
    return _names(profile_dir(), "workloads")


def _node_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted({*_names(folder, "nodes"), *_families(folder)}))


def _names(folder: Path, kind: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (folder / kind).glob("*.yaml")))


def load_node(name: str) -> NodeProfile:
    """The profile of a node type.

    Raises:
        UsageError: no such node type (the nearest are named), or its file is wrong.
    """
    folder = profile_dir()
    known = _node_names(folder)
    wanted = name.strip().casefold()
    if wanted not in known:
        raise unknown_name("node type", name, known)
    path = folder / "nodes" / f"{wanted}.yaml"
    return _load_node(path) if path.is_file() else _families(folder)[wanted]


def load_workload(name: str) -> WorkloadProfile:
    """The profile of a workload.

    Raises:
        UsageError: no such workload (the nearest are named), or its file is wrong.
    """
    folder = profile_dir()
    known = _names(folder, "workloads")
    wanted = name.strip().casefold()
    if wanted not in known:
        raise unknown_name("workload", name, known)
    path = folder / "workloads" / f"{wanted}.yaml"
    return _named(path, read_model(path, WorkloadProfile))


def all_nodes() -> tuple[NodeProfile, ...]:
    """Every node type's profile, sorted by name."""
    return tuple(load_node(name) for name in node_names())


@cache
def _load_node(path: Path) -> NodeProfile:
    profile = _named(path, read_model(path, NodeProfile))
    for workload in profile.workloads:
        if workload not in _names(path.parent.parent, "workloads"):
            known = _names(path.parent.parent, "workloads")
            raise UsageError(f"{path}: workloads: {unknown_name('workload', workload, known)}")
    return profile


@cache
def _families(folder: Path) -> dict[str, NodeProfile]:
    """The node types of `families.yaml`; none where a folder of profiles has no such file."""
    path = folder / "families.yaml"
    if not path.is_file():
        return {}
    found: dict[str, NodeProfile] = {}
    for family in read_model(path, Families).families:
        for name, profile in family.profiles().items():
            if name in found:
                raise UsageError(f"{path}: node type {name!r} is in two families")
            found[name] = profile
    return found


_P = TypeVar("_P", NodeProfile, WorkloadProfile)


def _named(path: Path, profile: _P) -> _P:
    if profile.name != path.stem:
        raise UsageError(f"{path}: name: {profile.name!r} is not the file's name {path.stem!r}")
    return profile
