"""Names, aliases and lookup of every backend: the one list the docs, the CLI and Ansible read.

Ours are the modules of this package. Another distribution adds its own through the entry-point group `attnkit.backends`: an
entry point names a `Backend` or a tuple of them ("my_package.attention:BACKENDS"). They are tried where a profile's order or an
explicit choice names them. A plugin that cannot be loaded, or takes a taken name, is a `PluginFinding`, not an exception.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata

from attnkit.backends.base import Backend
from attnkit.errors import UsageError, unknown_name

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

GROUP = "attnkit.backends"
"""The entry-point group of backends from other distributions."""


@dataclass(frozen=True)
class PluginFinding:
    """An entry point of the group `attnkit.backends` of which nothing is used.

    Args:
        name: the entry point's. distribution: name and version of the one that declares it. reason: why not, in one sentence.
    """

    name: str
    distribution: str
    reason: str

    def __str__(self) -> str:
        return f"backend plugin {self.name} of {self.distribution} is not used: {self.reason}"


def all_backends() -> tuple[Backend, ...]:
    """One instance of every backend: ours in table order, then those of plugins."""
    return _loaded()[0]


def plugin_findings() -> tuple[PluginFinding, ...]:
    """The plugins that are installed and not used, each with its reason."""
    return _loaded()[1]


@cache
def _loaded() -> tuple[tuple[Backend, ...], tuple[PluginFinding, ...]]:
    found = [backend for module in MODULES for backend in import_module(f"attnkit.backends.{module}").BACKENDS]
    _spellings(found)
    findings: list[PluginFinding] = []
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            more = [*found, *_backends_of(point.load())]
            _spellings(more)
            found = more
        except (Exception, SystemExit) as error:  # somebody else's module: whatever it raises is a finding about it
            said = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            origin = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
            findings.append(PluginFinding(point.name, origin, said.strip().splitlines()[0]))
    return tuple(found), tuple(findings)


def _backends_of(loaded: object) -> tuple[Backend, ...]:
    """What an entry point names, as a tuple."""
    found = (loaded,) if isinstance(loaded, Backend) else loaded
    if isinstance(found, tuple | list) and found and all(isinstance(one, Backend) for one in found):
        return tuple(found)
    raise UsageError(f"it names a {type(loaded).__name__}; it must name an attnkit.backends.base.Backend or a tuple of them")


def _spellings(backends: Iterable[Backend]) -> dict[str, str]:
    """Canonical name by every accepted spelling, case-folded.

    Raises:
        UsageError: two backends share a spelling; the message names both.
    """
    table: dict[str, Backend] = {}
    for backend in backends:
        for spelling in (backend.name, *backend.aliases):
            owner = table.setdefault(spelling.casefold(), backend)
            if owner is not backend:
                raise UsageError(f"its backend {backend.name} takes the name {spelling!r}, which {owner.name} has already")
    return {spelling: backend.name for spelling, backend in table.items()}


@cache
def spellings() -> dict[str, str]:
    """Canonical name by every accepted spelling, case-folded."""
    return _spellings(all_backends())


def canonical(name: str) -> str:
    """The canonical name of any spelling, in any letter case; UsageError with the nearest names otherwise."""
    try:
        return spellings()[name.strip().casefold()]
    except KeyError:
        unknown = unknown_name("backend", name, [b.name for b in all_backends()])
        raise UsageError(". ".join([str(unknown), *map(str, plugin_findings())])) from None


def get(name: str) -> Backend:
    """The backend of any spelling; UsageError with the nearest names otherwise."""
    wanted = canonical(name)
    return next(b for b in all_backends() if b.name == wanted)
