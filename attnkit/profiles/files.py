"""Finds and loads profile files."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from attnkit.errors import UsageError, unknown_name
from attnkit.profiles.schema import Families, NodeProfile, WorkloadProfile
from attnkit.profiles.strict_yaml import read_model

_FAMILIES = "families"


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
        if not any((folder / part).exists() for part in ("nodes", "workloads", f"{_FAMILIES}.yaml")):
            what = f"has no nodes/, workloads/ or {_FAMILIES}.yaml" if folder.is_dir() else "is not a folder"
            raise UsageError(
                f"ATTNKIT_PROFILES: {folder} {what}: give folders with nodes/NAME.yaml, workloads/NAME.yaml or "
                f"{_FAMILIES}.yaml in them, separated by {os.pathsep!r}"
            )
    return (*given, profile_dir())


def node_names() -> tuple[str, ...]:
    """Every node type, sorted: those with a file of their own, and those of `families.yaml`."""
    return tuple(sorted({*_files("nodes"), *_families()}))


def family_names() -> frozenset[str]:
    """The node types without a file of their own: their family sets everything."""
    return frozenset(_families()) - set(_files("nodes"))


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
    family = _families().get(name.strip().casefold()) if name.strip().casefold() not in _files("nodes") else None
    return family[0] if family else _file("nodes", "node type", name, node_names())


def workload_file(name: str) -> Path:
    """The file that describes a workload.

    Raises:
        UsageError: no such workload (the nearest are named).
    """
    return _file("workloads", "workload", name, workload_names())


def load_node(name: str) -> NodeProfile:
    """The profile of a node type.

    Raises:
        UsageError: no such node type (the nearest are named), or its file is wrong.
    """
    file = node_file(name)
    return _families()[name.strip().casefold()][1] if file.stem == _FAMILIES else _load_node(file)


def load_workload(name: str) -> WorkloadProfile:
    """The profile of a workload.

    Raises:
        UsageError: no such workload (the nearest are named), or its file is wrong.
    """
    path = workload_file(name)
    return read_model(path, WorkloadProfile, context={"file": path.stem})


def all_nodes() -> tuple[NodeProfile, ...]:
    """Every node type's profile, sorted by name.

    Raises:
        UsageError: a file is wrong.
    """
    profiles, problems = read_nodes()
    if problems:
        raise problems[0]
    return profiles


def read_nodes() -> tuple[tuple[NodeProfile, ...], tuple[UsageError, ...]]:
    """Every node type's profile that can be read, sorted by name, and what is wrong with the other files: a mistake in one
    node type's file does not hide the rest."""
    found: dict[str, NodeProfile] = {}
    problems: list[UsageError] = []
    for folder in reversed(profile_dirs()):
        try:
            found |= {profile.name: profile for _, profile in _families_in(folder)}
        except UsageError as error:
            problems.append(error)
    for name, path in _files("nodes").items():
        found.pop(name, None)  # a file of its own replaces the family's, also where it cannot be read
        try:
            found[name] = _load_node(path)
        except UsageError as error:
            problems.append(error)
    return tuple(found[name] for name in sorted(found)), tuple(problems)


@cache
def _load_node(path: Path) -> NodeProfile:
    return read_model(path, NodeProfile, context={"file": path.stem, "workloads": workload_names()})


def _families() -> dict[str, tuple[Path, NodeProfile]]:
    """The node types of every `families.yaml`, each with that file; the first folder that has a name has it."""
    found: dict[str, tuple[Path, NodeProfile]] = {}
    for folder in reversed(profile_dirs()):
        found |= {profile.name: (path, profile) for path, profile in _families_in(folder)}
    return found


def _families_in(folder: Path) -> list[tuple[Path, NodeProfile]]:
    path = folder / f"{_FAMILIES}.yaml"
    return [(path, profile) for profile in _load_families(path)] if path.is_file() else []


@cache
def _load_families(path: Path) -> tuple[NodeProfile, ...]:
    profiles = [profile for family in read_model(path, Families).families for profile in family.profiles()]
    names = [profile.name for profile in profiles]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{path}: node type {name!r} is in two families: name it once")
    return tuple(profiles)


def _file(kind: str, what: str, name: str, known: tuple[str, ...]) -> Path:
    try:
        return _files(kind)[name.strip().casefold()]
    except KeyError:
        raise unknown_name(what, name, known) from None
