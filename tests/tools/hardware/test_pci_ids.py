"""The table of PCI ids: what the generator makes of a database, and that the committed table is in the form that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnkit.hardware import ids
from tools.hardware import pci_ids

EXCERPT = """#
#\tVersion: 2026.08.22
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t1114  Krackan [Radeon 840M / 860M Graphics]
\t1586  Strix Halo [Radeon Graphics / Radeon 8050S Graphics / Radeon 8060S Graphics]
\t150e  Strix [Radeon 880M / 890M]
\t1902  Krackan2
\t73a4  Navi 21 USB
\t73bf  Navi 21 [Radeon RX 6800/6800 XT / 6900 XT]
\t\t1002 0e3a  Radeon RX 6900 XT
\t740f  Aldebaran/MI200 [Instinct MI210]
\tab38  Navi 10 HDMI Audio
\t9999  Navigation Thing [Radeon Nothing]
10de  NVIDIA Corporation
\t0fb8  GP107GL High Definition Audio Controller
\t1eb8  TU104GL [Tesla T4]
\t1fb9  TU117GLM [Quadro T1000 Mobile]
\t1f0a  TU106 [GeForce GTX 1650]
\t22a3  GH100 [H100 NVSwitch]
\t2820  AD106M [GeForce RTX 4070 Max-Q / Mobile]
\t2900  GB100 [Reserved Dev ID A]
\t2b00  GB10B [Jetson AGX Thor]
\t2c18  GB203M / GN22 [GeForce RTX 5090 Max-Q / Mobile]
\t2e12  GB20B [GB10]
\t9998  GH1000 [H9000]
1af4  Red Hat, Inc.
\t1050  Virtio 1.0 GPU
8086  Intel Corporation
\t0bd5  Ponte Vecchio XT (2 Tile) [Data Center GPU Max 1550]
\t56a0  DG2 [Arc A770]
\t64a0  Lunar Lake [Intel Arc Graphics 130V / 140V]
\te20b  Battlemage G21 [Arc B580]
C 03  Display controller
\t00  VGA compatible controller
"""
ROWS = [
    ids.Row("1002", "Aldebaran", "740f", "Instinct MI210"),
    ids.Row("1002", "Krackan", "1114", "Radeon 840M / 860M Graphics"),
    ids.Row("1002", "Krackan2", "1902", ""),
    ids.Row("1002", "Navi 21", "73bf", "Radeon RX 6800/6800 XT / 6900 XT"),
    ids.Row("1002", "Strix", "150e", "Radeon 880M / 890M"),
    ids.Row("1002", "Strix Halo", "1586", "Radeon Graphics / Radeon 8050S Graphics / Radeon 8060S Graphics"),
    ids.Row("10de", "AD106", "2820", "GeForce RTX 4070 Max-Q / Mobile"),
    ids.Row("10de", "GB10B", "2b00", "Jetson AGX Thor"),
    ids.Row("10de", "GB203", "2c18", "GeForce RTX 5090 Max-Q / Mobile"),
    ids.Row("10de", "GB20B", "2e12", "GB10"),
    ids.Row("10de", "TU104", "1eb8", "Tesla T4"),
    ids.Row("10de", "TU106", "1f0a", "GeForce GTX 1650"),
    ids.Row("10de", "TU117", "1fb9", "Quadro T1000 Mobile"),
    ids.Row("8086", "Battlemage G21", "e20b", "Arc B580"),
    ids.Row("8086", "DG2", "56a0", "Arc A770"),
    ids.Row("8086", "Ponte Vecchio", "0bd5", "Data Center GPU Max 1550"),
]


def test_the_table_is_made_by_code_name() -> None:
    assert pci_ids.read(EXCERPT.splitlines(keepends=True)) == ("2026.08.22", ROWS)


def test_the_committed_table_is_current_whatever_database_this_machine_has(tmp_path: Path) -> None:
    assert pci_ids.problems() == []
    assert pci_ids.main(["--check"]) == 0
    altered = tmp_path / "pci_ids.tsv"
    altered.write_text(pci_ids.render("2026.08.22", ROWS) + "10de\tGX999\tffff\tZ900\n", encoding="utf-8")
    assert len(pci_ids.problems(altered)) == 2, "a die that no rule names, and a row that is not where it belongs"


def test_every_row_of_the_excerpt_is_in_the_committed_table() -> None:
    assert not {row for row in ROWS if row.vendor != "8086"} - set(ids.rows())


@pytest.mark.parametrize(
    ("pci_id", "name", "arch", "features"),
    [
        ("10de:2820", "NVIDIA GeForce RTX 4070 Laptop GPU", "sm_89", ()),
        ("10de:2c18", "NVIDIA GeForce RTX 5090 Laptop GPU", "sm_120", ()),
        ("10de:2182", "NVIDIA GeForce GTX 1660 Ti", "sm_75", ("no-tensor-cores",)),
        ("10de:1f91", "NVIDIA GeForce GTX 1650 Laptop GPU", "sm_75", ("no-tensor-cores",)),
        ("10de:1eb8", "Tesla T4", "sm_75", ()),
        ("1002:740f", "AMD Instinct MI210", "gfx90a", ()),
        ("8086:5690", "Intel Arc A770M Graphics", "xe-hpg", ()),
    ],
)
def test_names_and_architectures(pci_id: str, name: str, arch: str, features: tuple[str, ...]) -> None:
    known = ids.lookup(pci_id)
    assert known is not None and (known.name, known.arch, known.features) == (name, arch, features)


def test_a_gpu_inside_a_processor_is_integrated() -> None:
    assert ids.integrated("1002:164e") and ids.integrated("1002:150e")
    assert not ids.integrated("1002:1586"), "Strix Halo serves"
