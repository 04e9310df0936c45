"""Choosing a backend: a pure function of devices, need, profile and what is installed.

The answer is an object, not a log line: what was chosen, what else would have worked in which order, and every reason against
the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attnkit.backends.base import Accepted, Reason, Rejected
from attnkit.backends.registry import all_backends, canonical, get
from attnkit.backends.versions import Installed
from attnkit.errors import how_to_install
from attnkit.hardware.device import Device
from attnkit.select.order import built_in_order, with_the_operations_own
from attnkit.spec import AttentionSpec, Op

_WORKLOAD_OP: dict[str, Op] = {"mla": "mla_decode", "speculative-tree": "tree"}
"""Workloads that only make sense for a need with this operation."""


@dataclass(frozen=True)
class Decision:
    """The outcome of `select`.

    Args:
        device: the device it was made for.
        spec: the need.
        accepted: backends that can serve, in order of preference; the first is the choice. Empty: nothing can.
        rejected: every other backend with its reasons (code "policy": it could serve, but the profile's order leaves it out).
        explicit: the name asked for, None where the order of the profile (or the built-in order of the device) decided.
        order: the names tried, first choice first, and where that order came from.
        order_source: "explicit", "profile NAME" or "built-in for sm_90".
        warnings: what a person should know though it is no reason against (a workload set aside, a dtype changed …).
    """

    device: Device
    spec: AttentionSpec
    accepted: tuple[Accepted, ...]
    rejected: tuple[Rejected, ...]
    explicit: str | None
    order: tuple[str, ...]
    order_source: str
    warnings: tuple[str, ...] = ()

    @property
    def chosen(self) -> Accepted | None:
        """The first accepted, None where nothing can serve."""
        return self.accepted[0] if self.accepted else None


def select(
    device: Device,
    spec: AttentionSpec,
    installed: Installed,
    *,
    order: Sequence[str] | None = None,
    order_source: str = "",
    explicit: str | None = None,
    workload: str | None = None,
) -> Decision:
    """Choose a backend. Pure: same arguments, same answer; nothing is imported, probed or logged.

    Args:
        device: see `Device`.
        spec: what is needed.
        installed: versions by requirement name; see `attnkit.backends.installed.installed_versions`.
        order: names to try, first choice first (any spelling); None takes the built-in order for the device. Backends made for
            the need's operation (MLA, tree, dual chunk, differential) come before it where it names none of them.
        order_source: where `order` came from, for the report.
        explicit: one name that must be taken. It works or is rejected with its reasons; nothing replaces it.
        workload: name of the workload, for a warning where it does not fit the need. NO_ATTENTION stays explicit even there.

    Raises:
        UsageError: a name in `order` or `explicit` is unknown.
    """
    wanted = None if explicit is None else canonical(explicit)
    if wanted is not None:
        names: tuple[str, ...] = (wanted,)
        source = "explicit"
    elif order is None:
        names, source = built_in_order(device, spec), f"built-in for {device.arch}"
    else:
        names, source = with_the_operations_own(tuple(canonical(n) for n in order), device, spec)
        source = (order_source or "given") + source
    found = {backend.name: backend.evaluate(spec, device, installed) for backend in all_backends()}
    accepted: list[Accepted] = []
    rejected: list[Rejected] = []
    for name in (*names, *(n for n in found if n not in names)):
        outcome = found[name]
        if isinstance(outcome, Rejected):
            rejected.append(outcome)
            continue
        against = _policy(name, names, wanted, source)
        if against is None:
            accepted.append(outcome)
        else:
            rejected.append(Rejected(name, (against,)))
    return Decision(
        device=device,
        spec=spec,
        accepted=tuple(accepted),
        rejected=tuple(rejected),
        explicit=wanted,
        order=names,
        order_source=source,
        warnings=_warnings(spec, workload),
    )


def _policy(name: str, names: tuple[str, ...], wanted: str | None, source: str) -> Reason | None:
    """Why a backend that could serve is left out nevertheless, or None."""
    if wanted is not None:
        return None if name == wanted else Reason("policy", f"could serve, but {wanted} was asked for explicitly")
    if not get(name).automatic:
        return Reason("policy", "never chosen automatically; only an explicit choice takes it")
    return None if name in names else Reason("policy", f"could serve, but is not in the order ({source})")


def _warnings(spec: AttentionSpec, workload: str | None) -> tuple[str, ...]:
    op = _WORKLOAD_OP.get(workload or "")
    if op is None or op == spec.op:
        return ()
    return (f"workload {workload} is for {op}; this need is {spec.op}, so the workload changes nothing",)


def no_backend_text(rejected: tuple[Rejected, ...], device: str, explicit: str | None, vendor: str = "cpu") -> str:
    """Every reason against every backend, one a line; only the asked one's where one was asked for."""
    name = canonical(explicit) if explicit else None
    asked = [r for r in rejected if name is None or r.backend == name]
    if one := _torch_alone(asked, vendor):
        return f"no backend can serve on {device}: {one}"
    said = {reason.message for r in asked for reason in r.reasons}
    if len(said) == 1 and len(asked) > 1:  # what is wrong with the device is wrong for every backend
        return f"no backend can serve on {device}: {said.pop()}"
    head = (
        f"{name} cannot serve on {device}, and an explicit choice never falls back:"
        if name
        else f"no backend can serve on {device}:"
    )
    return "\n".join([head, *(f"  {r.backend}: {reason.message}" for r in asked for reason in r.reasons)])


def _torch_alone(asked: list[Rejected], vendor: str) -> str:
    """What to install, where nothing but installations is in the way of what the device can run, and torch is; else ''."""
    made = [r for r in asked if not any(reason.code in ("device", "arch", "op", "policy") for reason in r.reasons)]
    lacking = [any(reason.message.split(": ")[-1] == "torch is not installed" for reason in r.reasons) for r in made]
    if not any(lacking):
        return ""
    return f"torch is not installed: {how_to_install(['torch'], vendor)}; for a CPU without CUDA's 3 GB see the README"


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
