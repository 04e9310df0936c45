"""What is installed, seen from the backends: the providers that can run here, and what an image is expected to hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attnkit.backends.base import Backend, Provider, arch_matches, missing
from attnkit.backends.registry import all_backends
from attnkit.backends.versions import Installed, lookup, split_requirement
from attnkit.hardware.device import Device
from attnkit.spec import Op


def requirement_names(backends: Iterable[Backend]) -> tuple[str, ...]:
    """Every name that any provider of `backends` requires, sorted."""
    return tuple(sorted({name for backend in backends for name in backend.requirements}))


def first_provider(backend: Backend, device: Device, op: Op | None = None) -> Provider | None:
    """The provider that serves `device` where the call does not decide.

    Of those made for its architecture, or where there is none for its vendor, the first that is installed, else the first; None
    where none is made for them.

    Args:
        op: only providers with this operation.
    """
    able = [p for p in backend.providers if device.vendor in p.capability.archs and (op is None or op in p.capability.ops)]
    made = [p for p in able if arch_matches(device, p.capability.archs)] or able
    installed = backend.installed()
    return next((provider for provider in made if not missing(provider, installed)), made[0] if made else None)


def assumed_installed(device: Device) -> Installed:
    """Every library of every provider made for `device`, at a version that satisfies the provider's requirement.

    This is what an image of the device's platform is expected to hold; it says nothing about this environment.
    """
    from packaging.specifiers import SpecifierSet

    found: dict[str, str | None] = {}
    for backend in all_backends():
        for provider in backend.providers:
            if not arch_matches(device, provider.capability.archs):
                continue
            for text in provider.requires:
                name, specifier = split_requirement(text)
                floors = [s.version for s in SpecifierSet(specifier) if s.operator in (">=", "==", "~=", "<=")]
                found[name] = max([found.get(name) or "0", *floors], key=_version_key)
    return found


def _version_key(text: str) -> Any:
    from packaging.version import Version

    return Version(text)


def installed_versions() -> Installed:
    """Versions of everything that any provider requires, None where absent. Looked up, not imported."""
    return lookup(requirement_names(all_backends()))
