"""Which architectures exist, and what a device of each is."""

from __future__ import annotations

import pytest

from attnkit import profiles
from attnkit.errors import UsageError
from attnkit.hardware.archs import known_archs, named, pretend


def test_every_architecture_that_a_profile_names_exists() -> None:
    assert {arch for node in profiles.all_nodes() for arch in node.match.arch} <= known_archs()


@pytest.mark.parametrize(
    ("given", "arch"), [("SM_75", "sm_75"), (" gfx942 ", "gfx942"), ("sm_70", "sm_70"), ("gfx803", "gfx803")]
)
def test_one_that_exists_is_taken_supported_or_not(given: str, arch: str) -> None:
    assert named(given) == arch


@pytest.mark.parametrize("arch", ["sm_7", "sm_999", "gfx9", "H1000", "", "tpu", "x86"])
def test_one_that_does_not_exist_is_wrong_usage(arch: str) -> None:
    with pytest.raises(UsageError, match=f"unknown device architecture {arch!r}"):
        named(arch)


def test_every_architecture_has_a_vendor_and_a_kind() -> None:
    kinds = {(device.vendor, device.kind) for device in (pretend(arch, arch) for arch in known_archs())}
    assert kinds == {("nvidia", "gpu"), ("amd", "gpu"), ("intel", "gpu"), ("google", "tpu"), ("cpu", "cpu")}
