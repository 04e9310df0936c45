"""Finds and loads profile files."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from attnkit.errors import UsageError, unknown_name
from attnkit.profiles.schema import NodeProfile, WorkloadProfile
from attnkit.profiles.strict_yaml import read_model


def profile_dir() -> Path:
    """The folder of the built-in profiles, with `nodes` and `workloads`.

    Raises:
        UsageError: the package was installed without them.
    """
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "data" / "profiles", here.parent / "profiles"):
        if (folder / "nodes").is_dir():
            return folder
    raise UsageError(f"{here}: the package has no profiles: install attnkit again")


def profile_dirs() -> tuple[Path, ...]:
    """Where profiles are read from: the folders of ATTNKIT_PROFILES, then the built-in one; the first with a name has it.

    Raises:
        UsageError: a folder of ATTNKIT_PROFILES has no profiles; the message says what belongs there.
    """
    given = [Path(part) for part in os.environ.get("ATTNKIT_PROFILES", "").split(os.pathsep) if part]
    for folder in given:
        if not any((folder / kind).is_dir() for kind in ("nodes", "workloads")):
            what = "has neither nodes/ nor workloads/" if folder.is_dir() else "is not a folder"
            raise UsageError(
                f"ATTNKIT_PROFILES: {folder} {what}: give folders with nodes/NAME.yaml or workloads/NAME.yaml in them, "
                f"separated by {os.pathsep!r}"
            )
    return (*given, profile_dir())


def node_names() -> tuple[str, ...]:
    """Every node type, sorted."""
    return tuple(_files("nodes"))


def workload_names() -> tuple[str, ...]:
    """Every workload, sorted."""
    return tuple(_files("workloads"))


def _files(kind: str) -> dict[str, Path]:
    found = {path.stem: path for folder in reversed(profile_dirs()) for path in (folder / kind).glob("*.y*ml")}
    return dict(sorted(found.items()))


def node_file(name: str) -> Path:
    """The file that describes a node type.

    Raises:
        UsageError: no such node type (the nearest are named).
    """
    return _file("nodes", "node type", name)


def workload_file(name: str) -> Path:
    """The file that describes a workload.

    Raises:
        UsageError: no such workload (the nearest are named).
    """
    return _file("workloads", "workload", name)


def load_node(name: str) -> NodeProfile:
    """The profile of a node type.

    Raises:
        UsageError: no such node type (the nearest are named), or its file is wrong.
    """
    return _load_node(node_file(name))


def load_workload(name: str) -> WorkloadProfile:
    """The profile of a workload.

    Raises:
        UsageError: no such workload (the nearest are named), or its file is wrong.
    """
    path = workload_file(name)
    return read_model(path, WorkloadProfile, context={"file": path.stem})


def all_nodes() -> tuple[NodeProfile, ...]:
    """Every node type's profile, sorted by name."""
    return tuple(_load_node(path) for path in _files("nodes").values())


@cache
def _load_node(path: Path) -> NodeProfile:
    return read_model(path, NodeProfile, context={"file": path.stem, "workloads": workload_names()})


def _file(kind: str, what: str, name: str) -> Path:
    files = _files(kind)
    try:
        return files[name.strip().casefold()]
    except KeyError:
        raise unknown_name(what, name, files) from None
