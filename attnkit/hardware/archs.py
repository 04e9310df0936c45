"""Architectures that exist, so that one which does not is told apart from one that nothing here supports."""

from __future__ import annotations

from functools import cache

from attnkit.errors import unknown_name
from attnkit.hardware import ids, tegra
from attnkit.hardware.device import Device, Kind, Vendor

_VENDORS: tuple[tuple[str, Vendor, Kind], ...] = (
    ("sm_", "nvidia", "gpu"),
    ("gfx", "amd", "gpu"),
    ("xe", "intel", "gpu"),
    ("tpu-", "google", "tpu"),
)
_CPUS = ("x86_64", "aarch64", "ppc64le", "s390x", "riscv64", "loongarch64")
_OF_NO_LISTED_DEVICE = (
    *("gfx802", "gfx803", "gfx805", "gfx909", "gfx940", "gfx941", "gfx1013", "gfx1153", "gfx1250", "gfx1251"),
    *("sm_101", "xe"),
)
"""Real, and of no device in the id table: LLVM's AMDGPU processors, ptxas's targets, and what torch says of an Intel GPU."""


@cache
def known_archs() -> frozenset[str]:
    """sm_75, gfx942, xe-hpg, tpu-v5e, x86_64 … as `attnkit detect` shows them."""
    listed = {known.arch for known in ids.known_ids().values()} | {arch for dies in ids.DIES.values() for arch in dies.values()}
    return frozenset({*listed, *tegra.ARCHS, *_OF_NO_LISTED_DEVICE, *_CPUS})


def named(arch: str) -> str:
    """A known architecture, whatever letter case it was given in.

    Raises:
        UsageError: there is none of this name; the nearest are named.
    """
    if (name := arch.strip().casefold()) in known_archs():
        return name
    raise unknown_name("device architecture", arch, known_archs())


def pretend(arch: str, name: str) -> Device:
    """A device of `arch` as selection sees it, without a machine around it; a node type may name one newer than our tables.

    Raises:
        UsageError: no vendor calls an architecture so.
    """
    for prefix, vendor, kind in (*_VENDORS, *((cpu, "cpu", "cpu") for cpu in _CPUS)):
        if arch.startswith(prefix):
            return Device(vendor=vendor, kind=kind, name=name, arch=arch, source="given")
    raise unknown_name("device architecture", arch, known_archs())
