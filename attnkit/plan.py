"""From a box, a profile, a model and a workload to a decision: what `attnkit select` and `attnkit boot` share.

Imports neither torch nor any vendor library.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from attnkit.backends.base import Accepted, Installed, Reason, Rejected
from attnkit.backends.registry import all_backends
from attnkit.errors import UsageError, unknown_name
from attnkit.hardware import detect
from attnkit.hardware.device import Detection, Device, Kind, Vendor
from attnkit.plain import to_plain
from attnkit.profiles import NodeMatch, NodeProfile, Settings, all_nodes, effective, load_node, load_workload, match_node
from attnkit.select import Decision, installed_versions, select
from attnkit.spec import DTYPES, KV_CACHE_DTYPES, AttentionSpec, Dtype

HERE = "this environment"

_VENDOR_BY_ARCH: tuple[tuple[str, Vendor, Kind], ...] = (
    ("sm_*", "nvidia", "gpu"),
    ("gfx*", "amd", "gpu"),
    ("xe*", "intel", "gpu"),
    ("tpu*", "google", "tpu"),
    ("x86_64", "cpu", "cpu"),
    ("aarch64", "cpu", "cpu"),
    ("ppc64le", "cpu", "cpu"),
    ("s390x", "cpu", "cpu"),
)


@dataclass(frozen=True)
class Box:
    """A box as found, and the node type it makes."""

    detection: Detection
    match: NodeMatch

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found: dict[str, Any] = to_plain(self.detection)
        return {"node_type": self.match.node, "why": self.match.why, "candidates": to_plain(self.match.candidates)} | found


@dataclass(frozen=True)
class Place:
    """Where the attention is to run.

    Args:
        device: the device selection looks at.
        profile: the node profile, None where none matches.
        source: "detected" (matched by what is in the box), "given" (--node) or "device" (--device).
        why: one sentence on how the profile was found.
        detection: what is in the box, None where another box is asked about.
        here: True where the device is in this box.
    """

    device: Device
    profile: NodeProfile | None
    source: str
    why: str
    detection: Detection | None
    here: bool


@dataclass(frozen=True)
class Need:
    """What must be served: one spec per distinct kind of attention layer, and where they came from."""

    source: str
    specs: tuple[AttentionSpec, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A decision with everything it was made from."""

    place: Place
    settings: Settings
    need: Need
    decision: Decision
    installed_source: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, as `attnkit select --json` prints them."""
        return {
            "node_type": self.place.profile.name if self.place.profile else None,
            "node_type_source": self.place.source,
            "why": self.place.why,
            "platform": self.place.profile.platform if self.place.profile else None,
            "need": to_plain(self.need),
            "installed": self.installed_source,
            "chosen": to_plain(self.decision.chosen),
            "decision": to_plain(self.decision),
        }


def inspect_box(root: Path | str = "/") -> Box:
    """What is in the box whose sys and proc lie under `root`."""
    detection = detect(root)
    return Box(detection, match_node(detection))


def place(*, root: Path | str = "/", node: str | None = None, arch: str | None = None) -> Place:
    """Find the device and the profile.

    Args:
        root: another / to read sys and proc from.
        node: a node type; None: what the box is detected as.
        arch: an architecture (sm_75, gfx942 …): ask about such a device instead of this box.

    Raises:
        UsageError: unknown node type or architecture, or the two do not fit each other.
    """
    if arch is not None:
        return _elsewhere(arch, node)
    box = inspect_box(root)
    if node is None:
        profile = load_node(box.match.node) if box.match.node else None
        return Place(box.match.device, profile, "detected", box.match.why, box.detection, here=True)
    profile = load_node(node)
    device = next((d for d in box.detection.devices if fits(profile, d)), None)
    if device is not None:
        return Place(device, profile, "given", f"node type {profile.name} was given", box.detection, here=True)
    pretended = _pretend(_first_arch(profile), profile.title)
    return Place(
        pretended, profile, "given", f"node type {profile.name} was given; this box has no such device", None, here=False
    )


def make_plan(
    where: Place,
    *,
    model: str | None = None,
    workload: str | None = None,
    explicit: str | None = None,
    assume_installed: bool = False,
    overrides: dict[str, Any] | None = None,
) -> Plan:
    """Decide.

    Args:
        where: device and profile.
        model: config.json, model directory or preset; None takes the profile's usual need.
        workload: name of a workload profile.
        explicit: a backend that must be taken.
        assume_installed: treat every library that the platform's image bakes as installed; always so for another box.
        overrides: dtype, kv_cache_dtype and block_size that the engine's command sets.

    Raises:
        UsageError: an unknown name, a model config that cannot be read.
    """
    workload_profile = load_workload(workload) if workload is not None else None
    settings = effective(where.profile, workload_profile)
    need = _need(where.device, settings, model, overrides or {})
    installed: Installed
    if assume_installed or not where.here:
        installed = assumed_installed(where.device)
        image = f"platform {where.profile.platform} image" if where.profile else f"an image for {where.device.arch}"
        source = f"assumed from {image}"
    else:
        installed, source = installed_versions(), HERE
    decisions = [
        select(
            where.device,
            spec,
            installed,
            order=settings.order,
            order_source=settings.order_source,
            explicit=explicit,
            workload=workload,
        )
        for spec in need.specs
    ]
    return Plan(where, settings, need, combine(decisions), source)


def combine(decisions: list[Decision]) -> Decision:
    """One decision for several kinds of layer: only what serves every kind is accepted; reasons name the layer they concern."""
    first, *others = decisions
    if not others:
        return first
    refused: dict[str, list[Reason]] = {}
    for decision in decisions:
        for rejected in decision.rejected:
            label = _layer(decision.spec)
            refused.setdefault(rejected.backend, []).extend(Reason(r.code, f"{label}: {r.message}") for r in rejected.reasons)
    for decision in decisions:  # a reason that holds for every layer is said once, without the layer's name
        for rejected in decision.rejected:
            for reason in rejected.reasons:
                if all(reason in _reasons(d, rejected.backend) for d in decisions):
                    mine = refused[rejected.backend]
                    refused[rejected.backend] = [reason] + [
                        r for r in mine if not r.message.endswith(f": {reason.message}") and r != reason
                    ]
    accepted: tuple[Accepted, ...] = tuple(a for a in first.accepted if a.backend not in refused)
    warnings = tuple(dict.fromkeys(w for d in decisions for w in d.warnings))
    return replace(
        first,
        accepted=accepted,
        rejected=tuple(Rejected(name, tuple(dict.fromkeys(reasons))) for name, reasons in refused.items()),
        warnings=warnings,
    )


def _reasons(decision: Decision, backend: str) -> tuple[Reason, ...]:
    return next((r.reasons for r in decision.rejected if r.backend == backend), ())


def _layer(spec: AttentionSpec) -> str:
    features = f" with {', '.join(sorted(spec.features))}" if spec.features else ""
    return f"{spec.op} {spec.num_heads}/{spec.num_kv_heads} heads of {spec.head_dim}{features}"


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


def fits(profile: NodeProfile, device: Device) -> bool:
    """True where the device has the vendor and an architecture that the profile names."""
    return profile.match.vendor == device.vendor and any(fnmatchcase(device.arch, pattern) for pattern in profile.match.arch)


def _elsewhere(arch: str, node: str | None) -> Place:
    if node is not None:
        profile = load_node(node)
        device = _pretend(arch, profile.title)
        if not fits(profile, device):
            raise UsageError(f"node type {node} has {' or '.join(profile.match.arch)}, not {arch}")
        return Place(device, profile, "given", f"node type {node} and device {arch} were given", None, here=False)
    device = _pretend(arch, arch)
    fitting = [profile for profile in all_nodes() if fits(profile, device)]
    if not fitting:
        return Place(device, None, "device", f"no node type has a {arch} device", None, here=False)
    chosen, *rest = fitting
    others = f"; also {', '.join(p.name for p in rest)} (--node picks one)" if rest else ""
    return Place(
        replace(device, name=chosen.title),
        chosen,
        "device",
        f"the first node type with a {arch} device{others}",
        None,
        here=False,
    )


def _pretend(arch: str, name: str) -> Device:
    """A device of `arch` as selection sees it, without a box around it."""
    for pattern, vendor, kind in _VENDOR_BY_ARCH:
        if fnmatchcase(arch, pattern):
            return Device(vendor=vendor, kind=kind, name=name, arch=arch, source="given")
    known = ", ".join(pattern for pattern, _, _ in _VENDOR_BY_ARCH)
    raise UsageError(f"unknown device architecture {arch!r}. Known forms: {known}")


def _first_arch(profile: NodeProfile) -> str:
    return profile.match.arch[0]


def _need(device: Device, settings: Settings, model: str | None, overrides: dict[str, Any]) -> Need:
    """The model's need with what profile and command say about dtype, cache and block size; the command wins."""
    dtype = overrides.get("dtype") or (None if settings.dtype == "auto" else settings.dtype)
    block_size = overrides.get("block_size", settings.block_size)
    cache = overrides.get("kv_cache_dtype", settings.kv_cache_dtype)
    checked = _checked_dtype(dtype)
    if cache not in KV_CACHE_DTYPES:
        raise unknown_name("KV cache dtype", cache, KV_CACHE_DTYPES)
    model = model or settings.model
    if model is None:
        spec = AttentionSpec(op=settings.op, dtype=checked or _usual_dtype(device), kv_cache_dtype=cache, block_size=block_size)
        return Need("a usual decoder (no model was given)", (spec,))
    from attnkit.models import need_from_config

    found = need_from_config(model, dtype=dtype, block_size=block_size)
    specs = tuple(spec if spec.block_size is None else replace(spec, kv_cache_dtype=cache) for spec in found.specs)
    return Need(model, specs, found.notes)


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
