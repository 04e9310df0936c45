"""From a node, a profile, a model and a workload to a decision: what `attnkit select` and `attnkit boot` share.

Imports neither torch nor any vendor library.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from attnkit.backends.base import Accepted, Rejected
from attnkit.backends.installed import assumed_installed, installed_versions
from attnkit.backends.registry import plugin_findings
from attnkit.backends.versions import Installed
from attnkit.errors import unknown_name
from attnkit.hardware.device import Device
from attnkit.jsonio import to_plain
from attnkit.profiles.files import load_workload
from attnkit.profiles.settings import Settings, effective
from attnkit.select.choose import Decision, combine, select
from attnkit.select.node import Node
from attnkit.select.parallel import per_rank
from attnkit.spec import DTYPES, KV_CACHE_DTYPES, TOWERS, AttentionSpec, Dtype, LayerKind, OtherLayers

HERE = "this environment"


@dataclass(frozen=True)
class Requirements:
    """What must be served.

    Args:
        source: where it came from.
        specs: one per distinct kind of attention layer of the language model; empty where it holds none.
        notes: what a person should know.
        layers: every kind of attention layer, towers included; empty where no model was given.
        other: layers without softmax attention.
        not_understood: towers that are not, each with its field.
        backends: the engine's name of what computes each of `layers`, None where it has none; empty where it was not asked.
    """

    source: str
    specs: tuple[AttentionSpec, ...]
    notes: tuple[str, ...] = ()
    layers: tuple[LayerKind, ...] = ()
    other: tuple[OtherLayers, ...] = ()
    not_understood: tuple[str, ...] = ()
    backends: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class LayerChoice:
    """What is chosen for one kind of layer; None where nothing can serve it, and then why."""

    kind: LayerKind
    chosen: Accepted | None
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A decision with everything it was made from."""

    node: Node
    settings: Settings
    requirements: Requirements
    decision: Decision
    installed_source: str
    layers: tuple[LayerChoice, ...] = ()

    @property
    def attention_free(self) -> bool:
        """The model holds no softmax attention: there is nothing to choose, and nothing to test."""
        return not self.requirements.specs

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, as `attnkit select --json` prints them."""
        return {
            "node_type": self.node.profile.name if self.node.profile else None,
            "node_type_source": self.node.source,
            "why": self.node.why,
            "platform": self.node.profile.platform if self.node.profile else None,
            "need": to_plain(self.requirements),
            "installed": self.installed_source,
            "chosen": to_plain(self.decision.chosen),
            "layers": [
                {
                    **to_plain(choice.kind),
                    "backend": choice.chosen.backend if choice.chosen else None,
                    "provider": choice.chosen.provider if choice.chosen else None,
                    "rejected": to_plain(choice.rejected),
                }
                for choice in self.layers
            ],
            "decision": to_plain(self.decision),
        }


def make_plan(
    node: Node,
    *,
    model: str | None = None,
    workload: str | None = None,
    explicit: str | None = None,
    assume_installed: bool = False,
    overrides: dict[str, Any] | None = None,
    requirements: Requirements | None = None,
) -> Plan:
    """Decide.

    Args:
        node: device and profile.
        model: config.json, model directory or preset; None takes the profile's usual requirements.
        workload: name of a workload profile.
        explicit: a backend that must be taken.
        assume_installed: treat every library that the platform's image holds as installed; always so for another machine.
        overrides: dtype, kv_cache_dtype, block_size and tensor_parallel that the engine's command sets.
        requirements: what the engine itself says that it builds, of one rank; None: read from the model's configuration.

    Raises:
        UsageError: an unknown name, a model config that cannot be read.
    """
    workload_profile = load_workload(workload) if workload is not None else None
    settings = effective(node.profile, workload_profile)
    ranks = (overrides or {}).get("tensor_parallel", 1)
    if requirements is None:
        requirements = _one_rank(_requirements(node.device, settings, model, overrides or {}), ranks)
    installed: Installed
    if assume_installed or not node.here:
        installed = assumed_installed(node.device)
        image = f"platform {node.profile.platform} image" if node.profile else f"an image for {node.device.arch}"
        source = f"assumed from {image}"
    else:
        installed, source = installed_versions(), HERE

    def decide(spec: AttentionSpec, explicit: str | None, workload: str | None) -> Decision:
        return select(
            node.device,
            spec,
            installed,
            order=settings.order,
            order_source=settings.order_source,
            explicit=explicit,
            workload=workload,
        )

    alone = {spec: decide(spec, explicit, workload) for spec in requirements.specs}
    if alone:
        decision = combine(list(alone.values()))
    else:
        decision = Decision(node.device, AttentionSpec(), (), (), explicit, (), "nothing to choose: attention-free")
    layers = []
    for kind in requirements.layers:
        # The language model is served by one backend; a tower by its own, which the explicit choice is not about.
        own = decide(kind.spec, None, None) if kind.role in TOWERS else alone.get(kind.spec, decision)
        chosen = own.chosen if kind.role in TOWERS else decision.chosen
        layers.append(LayerChoice(kind, chosen, () if chosen else own.rejected))
    unused = tuple(map(str, plugin_findings()))
    decision = replace(decision, warnings=(*decision.warnings, *unused))
    return Plan(node, settings, requirements, decision, source, tuple(layers))


def _requirements(device: Device, settings: Settings, model: str | None, overrides: dict[str, Any]) -> Requirements:
    """The model's requirements with what profile and command say about dtype, cache and block size; the command wins."""
    dtype = overrides.get("dtype") or (None if settings.dtype == "auto" else settings.dtype)
    block_size = overrides.get("block_size", settings.block_size)
    cache = overrides.get("kv_cache_dtype", settings.kv_cache_dtype)
    checked = _checked_dtype(dtype)
    if cache not in KV_CACHE_DTYPES:
        raise unknown_name("KV cache dtype", cache, KV_CACHE_DTYPES)
    model = model or settings.model
    if model is None:
        spec = AttentionSpec(op=settings.op, dtype=checked or _usual_dtype(device), kv_cache_dtype=cache, block_size=block_size)
        return Requirements("a usual decoder (no model was given)", (spec,))
    from attnkit.select.model_config import need_from_config

    found = need_from_config(model, dtype=dtype, block_size=block_size)

    def cached(spec: AttentionSpec) -> AttentionSpec:
        return spec if spec.block_size is None else replace(spec, kv_cache_dtype=cache)

    layers = tuple(replace(kind, spec=cached(kind.spec)) for kind in found.layers)
    return Requirements(model, tuple(map(cached, found.specs)), found.notes, layers, found.other, found.not_understood)


def _one_rank(need: Requirements, ranks: int) -> Requirements:
    """The requirements of one tensor-parallel rank."""
    if ranks == 1:
        return need
    specs = tuple(dict.fromkeys(per_rank(spec, ranks) for spec in need.specs))
    layers = tuple(replace(kind, spec=per_rank(kind.spec, ranks)) for kind in need.layers)
    return replace(
        need, specs=specs, layers=layers, notes=(*need.notes, f"heads are those of one of {ranks} tensor-parallel ranks")
    )


def _checked_dtype(name: str | None) -> Dtype | None:
    for known in DTYPES:
        if name == known:
            return known
    if name is None:
        return None
    raise unknown_name("dtype", name, DTYPES)


def _usual_dtype(device: Device) -> Dtype:
    """What models are served in on this device: bfloat16, but float16 where the tensor cores have no bfloat16."""
    return "float16" if device.vendor == "nvidia" and device.arch in ("sm_70", "sm_72", "sm_75") else "bfloat16"
