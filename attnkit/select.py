"""Choosing a backend: a pure function of devices, need, profile and what is installed.

The answer is an object, not a log line: what was chosen, what else would have worked in which order, and every reason against
the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from attnkit.backends.base import Accepted, Installed, Reason, Rejected
from attnkit.backends.installed import lookup, requirement_names
from attnkit.backends.registry import all_backends, canonical, get
from attnkit.hardware.device import Device
from attnkit.spec import AttentionSpec, Op

_ORDER: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("nvidia", "sm_9*", ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "TORCH_SDPA")),
    ("nvidia", "sm_8*", ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "TORCH_SDPA")),
    ("nvidia", "sm_10*", ("FLASHINFER", "FLASH_ATTN", "TRITON_ATTN", "TORCH_SDPA")),
    ("nvidia", "sm_1*", ("FLASH_ATTN", "TRITON_ATTN", "TORCH_SDPA")),
    ("nvidia", "sm_75", ("TURING_ATTN", "XFORMERS", "TRITON_ATTN", "TORCH_SDPA")),
    ("nvidia", "*", ("XFORMERS", "TRITON_ATTN", "TORCH_SDPA")),
    ("amd", "gfx94*", ("ROCM_AITER_FA", "ROCM_FLASH", "TRITON_ATTN", "TORCH_SDPA")),
    ("amd", "gfx950", ("ROCM_AITER_FA", "ROCM_FLASH", "TRITON_ATTN", "TORCH_SDPA")),
    ("amd", "*", ("ROCM_FLASH", "TRITON_ATTN", "TORCH_SDPA")),
    ("intel", "*", ("IPEX", "TRITON_ATTN", "TORCH_SDPA")),
    ("google", "*", ("PALLAS",)),
    ("cpu", "x86_64", ("IPEX", "TORCH_SDPA")),
    ("cpu", "*", ("TORCH_SDPA",)),
)
"""Vendor, architecture pattern, names: the first row that matches a device is its built-in order for paged and varlen."""

_MLA_ORDER: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("nvidia", "sm_9*", ("FLASH_ATTN_MLA", "FLASHMLA", "TRITON_MLA")),
    ("nvidia", "sm_10*", ("FLASHINFER_MLA", "CUTLASS_MLA", "TRITON_MLA")),
    ("amd", "*", ("ROCM_AITER_MLA", "TRITON_MLA")),
    ("*", "*", ("TRITON_MLA",)),
)

_OP_FIRST: dict[Op, tuple[str, ...]] = {
    "tree": ("TREE_ATTN",),
    "dual_chunk": ("DUAL_CHUNK_FLASH_ATTN",),
    "differential": ("DIFFERENTIAL_FLASH_ATTN",),
}
"""Backends made for one operation come before whatever else the order names."""

_MODS = frozenset({"score_mod", "mask_mod"})

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
        installed: versions by requirement name; see `attnkit.select.installed_versions`.
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
        names, source = _with_the_ops_own(tuple(canonical(n) for n in order), device, spec)
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


def built_in_order(device: Device, spec: AttentionSpec) -> tuple[str, ...]:
    """The names to try on `device` where nobody gave an order, first choice first."""
    if spec.op == "mla_decode":
        return (*_row(_MLA_ORDER, device), "TORCH_SDPA")
    names = (*_OP_FIRST.get(spec.op, ()), *_row(_ORDER, device))
    return (*names, "FLEX_ATTENTION") if spec.features & _MODS else names


def _row(table: tuple[tuple[str, str, tuple[str, ...]], ...], device: Device) -> tuple[str, ...]:
    for vendor, arch, names in table:
        if fnmatchcase(device.vendor, vendor) and fnmatchcase(device.arch, arch):
            return names
    return ()


def _with_the_ops_own(order: tuple[str, ...], device: Device, spec: AttentionSpec) -> tuple[tuple[str, ...], str]:
    """The order without repetitions, led by the operation's own backends where it names none, and words that say so.

    A node's order is written for paged attention. For MLA, trees and the rest it would end at TORCH_SDPA or at nothing.
    """
    own = _row(_MLA_ORDER, device) if spec.op == "mla_decode" else _OP_FIRST.get(spec.op, ())
    if spec.features & _MODS:
        own = (*own, "FLEX_ATTENTION")
    lead = () if set(own) & set(order) else own
    need = spec.op if spec.op not in ("paged", "varlen") else " and ".join(sorted(spec.features & _MODS))
    return tuple(dict.fromkeys((*lead, *order))), f", led by the backends for {need}" if lead else ""


def _warnings(spec: AttentionSpec, workload: str | None) -> tuple[str, ...]:
    op = _WORKLOAD_OP.get(workload or "")
    if op is None or op == spec.op:
        return ()
    return (f"workload {workload} is for {op}; this need is {spec.op}, so the workload changes nothing",)


def installed_versions() -> Installed:
    """Versions of everything that any provider requires, None where absent. Looked up, not imported."""
    return lookup(requirement_names(all_backends()))
