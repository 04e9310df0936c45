"""The built-in order of backends for a device."""

from __future__ import annotations

from fnmatch import fnmatchcase

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


def with_the_operations_own(order: tuple[str, ...], device: Device, spec: AttentionSpec) -> tuple[tuple[str, ...], str]:
    """The order without repetitions, led by the operation's own backends where it names none, and words that say so.

    A node's order is written for paged attention. For MLA, trees and the rest it would end at TORCH_SDPA or at nothing.
    """
    own = _row(_MLA_ORDER, device) if spec.op == "mla_decode" else _OP_FIRST.get(spec.op, ())
    if spec.features & _MODS:
        own = (*own, "FLEX_ATTENTION")
    lead = () if set(own) & set(order) else own
    need = spec.op if spec.op not in ("paged", "varlen") else " and ".join(sorted(spec.features & _MODS))
    return tuple(dict.fromkeys((*lead, *order))), f", led by the backends for {need}" if lead else ""
