"""Profiles: what a node type is, and what serves best on it; what a workload changes of that.

A profile is one small YAML file, `nodes/NAME.yaml` or `workloads/NAME.yaml`. Nothing is inherited, no field has two
meanings. Node types that set nothing but what their architecture sets share one file, `families.yaml`. ATTNKIT_PROFILES names
folders with files of your own (several are separated as in PATH): they add to the built-in ones, and a file with the name of a
built-in one replaces it as a whole. The first folder that has a name wins.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from attnkit.backends.registry import canonical
from attnkit.errors import UsageError, unknown_name
from attnkit.hardware.device import Vendor
from attnkit.spec import Dtype, KvCacheDtype, Op

Platform = Literal["cuda-ampere", "cuda-turing", "rocm", "ipex", "xpu", "tpu", "cpu"]
ProfileLevel = Literal["quick", "standard", "extended"]
OnBadDevice = Literal["fail", "leave_out"]

BlockSize = Annotated[int, Field(ge=1, le=1024)]


def _known_backend(name: str) -> str:
    try:
        return canonical(name)
    except UsageError as error:
        raise ValueError(str(error)) from None


def _is_regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


Regex = Annotated[str, AfterValidator(_is_regex)]
PciId = Annotated[str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")]
BackendName = Annotated[str, AfterValidator(_known_backend)]


def _is_the_files(name: str, info: ValidationInfo) -> str:
    if info.context and name != info.context["file"]:
        raise ValueError(f"{name!r} is not the file's name {info.context['file']!r}: the two must agree")
    return name


def _known_workload(name: str, info: ValidationInfo) -> str:
    if info.context and name not in info.context["workloads"]:
        raise ValueError(str(unknown_name("workload", name, info.context["workloads"])))
    return name


ProfileName = Annotated[str, AfterValidator(_is_the_files)]


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
        preferred_over: node types whose devices are left out where a machine has both; different devices are refused otherwise.
    """

    vendor: Vendor
    arch: Annotated[list[str], Field(min_length=1)]
    pci_ids: list[PciId] = []
    name: Regex | None = None
    any_feature: list[str] = []
    preferred_over: list[str] = []


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
        on_bad_device: what a device that fails where its equals pass comes to: "fail" ends the boot, "leave_out" hides it
            from the engine, which serves from the others.
        engine: what the engine is started with.
        workloads: per workload, what differs on this node type; it wins over the workload's own profile.
    """

    name: ProfileName
    title: str
    match: Match
    platform: Platform
    backends: Annotated[list[BackendName], Field(min_length=1)]
    dtype: Literal["auto"] | Dtype = "auto"
    kv_cache_dtype: KvCacheDtype = "auto"
    block_size: BlockSize = 16
    level: ProfileLevel = "standard"
    on_bad_device: OnBadDevice = "fail"
    engine: Engine = Engine()
    workloads: dict[Annotated[str, AfterValidator(_known_workload)], Changes] = {}


class Product(_Strict):
    """A node type of a family: its title, and which of the family's devices it has (see `Match`).

    Args:
        arch: fewer architectures than the family's; None: all of them.
    """

    title: str
    arch: list[str] | None = None
    pci_ids: list[PciId] = []
    name: Regex | None = None
    any_feature: list[str] = []


class Family(_Strict):
    """Node types that differ in nothing but their devices; the fields are those of `NodeProfile` and `Match`.

    Args:
        nodes: node type to what is its own.
    """

    vendor: Vendor
    arch: Annotated[list[str], Field(min_length=1)]
    platform: Platform
    backends: Annotated[list[BackendName], Field(min_length=1)]
    dtype: Literal["auto"] | Dtype = "auto"
    kv_cache_dtype: KvCacheDtype = "auto"
    block_size: BlockSize = 16
    level: ProfileLevel = "standard"
    on_bad_device: OnBadDevice = "fail"
    engine: Engine = Engine()
    nodes: dict[str, Product]

    def profiles(self) -> list[NodeProfile]:
        """The profile of each node type."""
        return [self._profile(name, product) for name, product in self.nodes.items()]

    def _profile(self, name: str, product: Product) -> NodeProfile:
        return NodeProfile(
            name=name,
            title=product.title,
            match=Match(
                vendor=self.vendor,
                arch=product.arch or self.arch,
                pci_ids=product.pci_ids,
                name=product.name,
                any_feature=product.any_feature,
            ),
            platform=self.platform,
            backends=self.backends,
            dtype=self.dtype,
            kv_cache_dtype=self.kv_cache_dtype,
            block_size=self.block_size,
            level=self.level,
            on_bad_device=self.on_bad_device,
            engine=self.engine,
        )


class Families(_Strict):
    """The file `families.yaml`."""

    families: list[Family]


class WorkloadProfile(Changes):
    """What a kind of model or use changes.

    Args:
        name, title: as in `NodeProfile`.
        op: the operation that the workload is about.
        model: preset that stands for it where no model is given.
    """

    name: ProfileName
    title: str
    op: Op = "paged"
    model: str | None = None


def schema() -> dict[str, object]:
    """JSON Schema of all kinds of profile file, for editors: `$defs` NodeProfile, WorkloadProfile and Families."""
    from pydantic.json_schema import models_json_schema

    _, definitions = models_json_schema(
        [(NodeProfile, "validation"), (WorkloadProfile, "validation"), (Families, "validation")],
        title="attnkit profiles",
        ref_template="#/$defs/{model}",
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **definitions,
        "anyOf": [{"$ref": f"#/$defs/{kind}"} for kind in ("NodeProfile", "WorkloadProfile", "Families")],
    }
