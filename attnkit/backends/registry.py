"""Names, aliases and lookup of every backend: the one list the docs, the CLI and Ansible read."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from attnkit.backends.base import Backend
from attnkit.errors import unknown_name

MODULES: tuple[str, ...] = (
    "flash_attn",
    "triton_attn",
    "xformers",
    "torch_sdpa",
    "flex_attention",
    "no_attention",
    "tree_attn",
    "triton_mla",
    "mla",
    "flashinfer",
    "rocm",
    "ipex",
    "pallas",
    "dual_chunk",
    "differential",
    "turing",
)
"""Modules of this package, one a family, in the order of the table in the docs. Each has a tuple BACKENDS."""


@cache
def all_backends() -> tuple[Backend, ...]:
    """One instance of every backend, in table order."""
    found: list[Backend] = []
    for module in MODULES:
        found.extend(import_module(f"attnkit.backends.{module}").BACKENDS)
    return tuple(found)


@cache
def spellings() -> dict[str, str]:
    """Canonical name by every accepted spelling, case-folded."""
    table: dict[str, str] = {}
    for backend in all_backends():
        for spelling in (backend.name, *backend.aliases):
            owner = table.setdefault(spelling.casefold(), backend.name)
            if owner != backend.name:
                raise AssertionError(f"spelling {spelling!r} belongs to both {owner} and {backend.name}")
    return table


def canonical(name: str) -> str:
    """The canonical name of any spelling, in any letter case; UsageError with the nearest names otherwise."""
    table = spellings()
    try:
        return table[name.strip().casefold()]
    except KeyError:
        raise unknown_name("backend", name, [b.name for b in all_backends()]) from None


def get(name: str) -> Backend:
    """The backend of any spelling; UsageError with the nearest names otherwise."""
    wanted = canonical(name)
    return next(b for b in all_backends() if b.name == wanted)
