"""Finds and loads profile files."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TypeVar

from attnkit.errors import UsageError, unknown_name
from attnkit.profiles.schema import NodeProfile, WorkloadProfile
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
    """Every node type, sorted."""
    return _names(profile_dir(), "nodes")


def workload_names() -> tuple[str, ...]:
    """Every workload, sorted."""
    return _names(profile_dir(), "workloads")


def _names(folder: Path, kind: str) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (folder / kind).glob("*.yaml")))


def load_node(name: str) -> NodeProfile:
    """The profile of a node type.

    Raises:
        UsageError: no such node type (the nearest are named), or its file is wrong.
    """
    return _load_node(_path("nodes", "node type", name))


def load_workload(name: str) -> WorkloadProfile:
    """The profile of a workload.

    Raises:
        UsageError: no such workload (the nearest are named), or its file is wrong.
    """
    path = _path("workloads", "workload", name)
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


def _path(kind: str, what: str, name: str) -> Path:
    folder = profile_dir()
    known = _names(folder, kind)
    wanted = name.strip().casefold()
    if wanted not in known:
        raise unknown_name(what, name, known)
    return folder / kind / f"{wanted}.yaml"


_P = TypeVar("_P", NodeProfile, WorkloadProfile)


def _named(path: Path, profile: _P) -> _P:
    if profile.name != path.stem:
        raise UsageError(f"{path}: name: {profile.name!r} is not the file's name {path.stem!r}")
    return profile
