"""From a node, a profile, a model and a workload to a decision: what `attnkit select` and `attnkit boot` share.

Imports neither torch nor any vendor library.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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
from attnkit.spec import DTYPES, KV_CACHE_DTYPES, AttentionSpec, Dtype

HERE = "this environment"


@dataclass(frozen=True)
class Requirements:
    """What must be served: one spec per distinct kind of attention layer, and where they came from."""

    source: str
    specs: tuple[AttentionSpec, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A decision with everything it was made from."""

    node: Node
    settings: Settings
    requirements: Requirements
    decision: Decision
    installed_source: str

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
) -> Plan:
    """Decide.

    Args:
        node: device and profile.
        model: config.json, model directory or preset; None takes the profile's usual requirements.
        workload: name of a workload profile.
        explicit: a backend that must be taken.
        assume_installed: treat every library that the platform's image holds as installed; always so for another machine.
        overrides: dtype, kv_cache_dtype and block_size that the engine's command sets.

    Raises:
        UsageError: an unknown name, a model config that cannot be read.
    """
    workload_profile = load_workload(workload) if workload is not None else None
    settings = effective(node.profile, workload_profile)
    requirements = _requirements(node.device, settings, model, overrides or {})
    installed: Installed
    if assume_installed or not node.here:
        installed = assumed_installed(node.device)
        image = f"platform {node.profile.platform} image" if node.profile else f"an image for {node.device.arch}"
        source = f"assumed from {image}"
    else:
        installed, source = installed_versions(), HERE
    decisions = [
        select(
            node.device,
            spec,
            installed,
            order=settings.order,
            order_source=settings.order_source,
            explicit=explicit,
            workload=workload,
        )
        for spec in requirements.specs
    ]
    decision = combine(decisions)
    unused = tuple(map(str, plugin_findings()))
    return Plan(node, settings, requirements, replace(decision, warnings=(*decision.warnings, *unused)), source)


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
    specs = tuple(spec if spec.block_size is None else replace(spec, kv_cache_dtype=cache) for spec in found.specs)
    return Requirements(model, specs, found.notes)


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
