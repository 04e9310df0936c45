"""Profiles: what a node type is, and what serves best on it; what a workload changes of that.

A profile is one small YAML file, `nodes/NAME.yaml` or `workloads/NAME.yaml`. Nothing is inherited, no field has two
meanings. They are read from ATTNKIT_PROFILES where that is set (it replaces the built-in ones), else from the package.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from attnkit.backends.registry import canonical
from attnkit.errors import UsageError, unknown_name
from attnkit.hardware.device import Detection, Device, Vendor
from attnkit.spec import Dtype, KvCacheDtype, Op
from attnkit.yaml_file import read_model

Platform = Literal["cuda-ampere", "cuda-turing", "rocm", "ipex", "xpu", "tpu", "cpu"]
ProfileLevel = Literal["quick", "standard", "extended"]

BlockSize = Annotated[int, Field(ge=1, le=1024)]


def _known_backend(name: str) -> str:
    try:
        return canonical(name)
    except UsageError as error:
        raise ValueError(str(error)) from None


BackendName = Annotated[str, AfterValidator(_known_backend)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Engine(_Strict):
    """What the engine is started with; what the user's own command says wins over it.

    Args:
        args: arguments after the model. env: environment variables.
    """

    args: list[str] = []
    env: dict[str, str] = {}


class Match(_Strict):
    """Which devices the node type has.

    A device fits where vendor and arch do, and, if any of `pci_ids`, `name` is given, one of those does too; `any_feature` must
    be met as well.

    Args:
        vendor: nvidia, amd, intel, google or cpu.
        arch: patterns of architectures (sm_75, gfx942).
        pci_ids: vendor:device, lower case.
        name: regular expression, searched in the device's name without regard to case.
        any_feature: at least one of these device features must be there (CPUs: flags).
    """

    vendor: Vendor
    arch: Annotated[list[str], Field(min_length=1)]
    pci_ids: list[Annotated[str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")]] = []
    name: str | None = None
    any_feature: list[str] = []

    @field_validator("name")
    @classmethod
    def _is_regex(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from None
        return value


class Changes(_Strict):
    """What a workload sets; None leaves what the node has."""

    backends: list[BackendName] | None = None
    dtype: Literal["auto"] | Dtype | None = None
    kv_cache_dtype: KvCacheDtype | None = None
    block_size: BlockSize | None = None
    level: ProfileLevel | None = None
    engine: Engine = Engine()


class NodeProfile(_Strict):
    """A node type.

    Args:
        name: as in the file's name.
        title: what people call it.
        match: which devices it has.
        platform: the image family it runs.
        backends: names to try, first choice first (any spelling); the chain along which boot may fall back.
        dtype: "auto" takes the model's; another one is taken even where the model's differs, with a warning.
        kv_cache_dtype: see `attnkit.spec`.
        block_size: tokens a cache block.
        level: how thorough the self-test at boot is.
        engine: what the engine is started with.
        workloads: per workload, what differs on this node type; it wins over the workload's own profile.
    """

    name: str
    title: str
    match: Match
    platform: Platform
    backends: Annotated[list[BackendName], Field(min_length=1)]
    dtype: Literal["auto"] | Dtype = "auto"
    kv_cache_dtype: KvCacheDtype = "auto"
    block_size: BlockSize = 16
    level: ProfileLevel = "standard"
    engine: Engine = Engine()
    workloads: dict[str, Changes] = {}


class WorkloadProfile(Changes):
    """What a kind of model or use changes.

    Args:
        name, title: as in `NodeProfile`.
        op: the operation that the workload is about.
        model: preset that stands for it where no model is given.
    """

    name: str
    title: str
    op: Op = "paged"
    model: str | None = None


@dataclass(frozen=True)
class Settings:
    """A node's profile with a workload's changes in it: workload on the node, else workload, else node, field by field.

    Args:
        order: names to try, None where nothing states any; order_source: who stated them.
        engine_args: the node's, then the workload's.
    """

    order: tuple[str, ...] | None
    order_source: str
    dtype: str
    kv_cache_dtype: KvCacheDtype
    block_size: int
    level: ProfileLevel
    op: Op
    model: str | None
    engine_args: tuple[str, ...]
    engine_env: dict[str, str]


def effective(node: NodeProfile | None, workload: WorkloadProfile | None) -> Settings:
    """Put a node's profile and a workload's together."""
    here = node.workloads.get(workload.name) if node and workload else None
    layers = [layer for layer in (here, workload, node) if layer is not None]
    names = {id(here): f"profile {node.name if node else ''}, workload {workload.name if workload else ''}"}
    names |= {id(workload): f"workload {workload.name}"} if workload else {}
    names |= {id(node): f"profile {node.name}"} if node else {}
    stated = next((layer for layer in layers if layer.backends is not None), None)
    engines = [layer.engine for layer in reversed(layers)]
    return Settings(
        order=tuple(stated.backends) if stated and stated.backends else None,
        order_source=names[id(stated)] if stated else "",
        dtype=next((x.dtype for x in layers if x.dtype is not None), "auto"),
        kv_cache_dtype=next((x.kv_cache_dtype for x in layers if x.kv_cache_dtype is not None), "auto"),
        block_size=next((x.block_size for x in layers if x.block_size is not None), 16),
        level=next((x.level for x in layers if x.level is not None), "standard"),
        op=workload.op if workload else "paged",
        model=workload.model if workload else None,
        engine_args=tuple(arg for engine in engines for arg in engine.args),
        engine_env={name: value for engine in engines for name, value in engine.env.items()},
    )


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
    here = Path(__file__).resolve().parent
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


@dataclass(frozen=True)
class Candidate:
    """A node type that was weighed against a device, and what came of it."""

    node: str
    fits: bool
    why: str


@dataclass(frozen=True)
class NodeMatch:
    """The node type of a box.

    Args:
        node: its name; None where no profile describes what is in the box.
        device: the device it was matched on.
        why: one sentence.
        candidates: every node type with this vendor's devices, the most specific match first.
    """

    node: str | None
    device: Device
    why: str
    candidates: tuple[Candidate, ...] = ()


def match_node(detection: Detection) -> NodeMatch:
    """The most specific node type for a box: PCI id before name before architecture, accelerators before the CPU.

    An accelerator that no profile describes is a clear no: nothing is guessed, and its CPU does not serve in its place.

    Raises:
        UsageError: nothing at all was detected.
    """
    if not detection.devices:
        raise UsageError(f"no device was detected under {detection.root}, not even a CPU")
    accelerators = [d for d in detection.devices if d.kind != "cpu"]
    results = [_match(device) for device in accelerators or detection.devices]
    return next((r for r in results if r.node is not None), results[0])


def _match(device: Device) -> NodeMatch:
    weighed = sorted(
        ((*_weigh(profile.match, device), profile.name) for profile in all_nodes() if profile.match.vendor == device.vendor),
        key=lambda w: (-w[0], w[2]),
    )
    candidates = tuple(Candidate(name, score > 0, why) for score, why, name in weighed)
    found = f"{device.name} ({device.arch}{', ' + device.pci_id if device.pci_id else ''})"
    best = candidates[0] if candidates and candidates[0].fits else None
    if best is None:
        advice = "describe it in a profile of its own (ATTNKIT_PROFILES) or name a node type"
        return NodeMatch(None, device, f"no node type describes {found}; {advice}", candidates)
    return NodeMatch(best.node, device, f"{found}: {best.why}", candidates)


def _weigh(match: Match, device: Device) -> tuple[int, str]:
    """How specifically `match` fits (0: not at all; 1 architecture, 2 name, 3 PCI id), and why."""
    if not any(fnmatchcase(device.arch, pattern) for pattern in match.arch):
        return 0, f"has {' or '.join(match.arch)}"
    if match.any_feature and not set(match.any_feature) & set(device.features):
        return 0, f"has {' or '.join(match.any_feature)}"
    if device.pci_id and device.pci_id in match.pci_ids:
        return 3, f"PCI id {device.pci_id}"
    if match.name and re.search(match.name, device.name, re.IGNORECASE):
        return 2, f"name matches {match.name!r}"
    if match.pci_ids or match.name:
        return 0, "neither the PCI id nor the name is one of its"
    return 1, f"architecture {device.arch}"


def schema() -> dict[str, object]:
    """JSON Schema of both kinds of profile, for editors: `$defs` NodeProfile and WorkloadProfile."""
    from pydantic.json_schema import models_json_schema

    _, definitions = models_json_schema(
        [(NodeProfile, "validation"), (WorkloadProfile, "validation")],
        title="attnkit profiles",
        ref_template="#/$defs/{model}",
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **definitions,
        "anyOf": [{"$ref": "#/$defs/NodeProfile"}, {"$ref": "#/$defs/WorkloadProfile"}],
    }
