"""The id table as data: well-formed, and right about the cards that profiles are written for."""

from __future__ import annotations

import re

import pytest

from attnkit.hardware.ids import cannot_compute, known_ids, lookup

ARCH = {
    "10de": r"sm_\d{2,3}",
    "1002": r"gfx[0-9a-f]{3,4}",
    "8086": r"xe2?-hp[gc]",
    "1ae0": r"tpu-v\d[epx]?",
}


def test_entries_are_well_formed() -> None:
    table = known_ids()
    assert len(table) > 150
    for key, known in table.items():
        assert re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}(:[0-9a-f]{2}|:[0-9a-f]{4})?", key), key
        assert re.fullmatch(ARCH[key[:4]], known.arch), (key, known)
        assert known.name == known.name.strip() != ""
        assert not cannot_compute(key[:9])


@pytest.mark.parametrize(
    ("pci_id", "arch", "word"),
    [
        ("10de:1e04", "sm_75", "2080 Ti"),
        ("10de:1e07", "sm_75", "2080 Ti"),
        ("10de:1eb8", "sm_75", "T4"),
        ("10de:2204", "sm_86", "3090"),
        ("10de:2206", "sm_86", "3080"),
        ("10de:2216", "sm_86", "3080"),
        ("10de:20b0", "sm_80", "A100"),
        ("10de:20f1", "sm_80", "A100"),
        ("10de:2684", "sm_89", "4090"),
        ("10de:2331", "sm_90", "H100"),
        ("10de:2335", "sm_90", "H200"),
        ("10de:2901", "sm_100", "B200"),
        ("10de:2b85", "sm_120", "5090"),
        ("1002:740c", "gfx90a", "MI250X"),
        ("1002:74a1", "gfx942", "MI300X"),
        ("8086:e20b", "xe2-hpg", "B580"),
        ("8086:0bd5", "xe-hpc", "Max 1550"),
        ("1ae0:0062", "tpu-v5p", "v5p"),
        ("1ae0:005e", "tpu-v4", "v4"),
    ],
)
def test_known_cards(pci_id: str, arch: str, word: str) -> None:
    known = lookup(pci_id)
    assert known is not None
    assert known.arch == arch
    assert word in known.name


def test_a_revision_settles_which_product_an_id_is() -> None:
    assert [getattr(lookup("1002:744c", r), "name", None) for r in ("c8", "cc", "00", None)] == [
        "AMD Radeon RX 7900 XTX",
        "AMD Radeon RX 7900 XT",
        "AMD Radeon RX 7900 series",
        "AMD Radeon RX 7900 series",
    ]
    assert lookup("10de:fffe") is None
