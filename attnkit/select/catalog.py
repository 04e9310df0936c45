"""Every backend as a table row: names, providers with versions, usable here or why not, evidence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attnkit.backends.base import Backend, Provider, Reason, missing
from attnkit.backends.installed import installed_versions
from attnkit.backends.registry import PluginFinding, all_backends, plugin_findings
from attnkit.backends.versions import Installed, split_requirement
from attnkit.hardware.device import Device
from attnkit.select.evidence import Evidence, best_word, evidence_for
from attnkit.select.node import inspect_machine
from attnkit.spec import AttentionSpec


@dataclass(frozen=True)
class ProviderRow:
    """A provider here.

    Args:
        version: of its first requirement, None where that is not installed or nothing is required.
        usable: on this machine's device with what is installed, whatever the model needs.
        reasons: why not.
    """

    name: str
    version: str | None
    requires: tuple[str, ...]
    usable: bool
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class BackendRow:
    """A backend here; `evidence` is the word for this machine's architecture, `proven` lists every target's."""

    name: str
    aliases: tuple[str, ...]
    summary: str
    automatic: bool
    usable: bool
    why_not: str
    providers: tuple[ProviderRow, ...]
    evidence: str
    proven: tuple[Evidence, ...]


def catalog(root: Path | str = "/") -> tuple[BackendRow, ...]:
    """One row a backend, for the machine under `root`: in the registry's order, then the plugins not used."""
    device = inspect_machine(root).match.device
    installed = installed_versions()
    unused = (_unused(finding) for finding in plugin_findings())
    return (*(_row(backend, device, installed) for backend in all_backends()), *unused)


def _row(backend: Backend, device: Device, installed: Installed) -> BackendRow:
    providers = tuple(_provider(provider, device, installed) for provider in backend.providers)
    usable = any(p.usable for p in providers)
    nearest = min(providers, key=lambda p: len(p.reasons), default=None)
    why_not = "" if usable or nearest is None else "; ".join(r.message for r in nearest.reasons)
    return BackendRow(
        name=backend.name,
        aliases=backend.aliases,
        summary=backend.summary,
        automatic=backend.automatic,
        usable=usable,
        why_not=why_not,
        providers=providers,
        evidence=best_word(backend.name, device.arch),
        proven=evidence_for(backend.name),
    )


def _unused(finding: PluginFinding) -> BackendRow:
    """The row of a plugin of which nothing is used; it has the entry point's name."""
    return BackendRow(finding.name, (), "a plugin that is not used", False, False, str(finding), (), "none", ())


def _provider(provider: Provider, device: Device, installed: Installed) -> ProviderRow:
    about_device = tuple(r for r in provider.capability.reject(AttentionSpec(), device) if r.code in ("device", "arch"))
    reasons = (*about_device, *missing(provider, installed))
    first = split_requirement(provider.requires[0])[0] if provider.requires else None
    return ProviderRow(
        name=provider.name,
        version=installed.get(first) if first else None,
        requires=provider.requires,
        usable=not reasons,
        reasons=reasons,
    )
