"""Keeping one architecture's GPU code: what stays is what that GPU runs, and the library loads, at the same addresses."""

from __future__ import annotations

import ctypes
import json
import random
import subprocess
from pathlib import Path

import pytest

from images.in_image import prune

SOURCE = """
__asm__(".section .nv_fatbin, \\"a\\"\\n.balign 8\\nfat_start:\\n.incbin \\"{name}\\"\\n.previous");
extern const char fat_start[] __attribute__((visibility("hidden")));
const char *fat(void) {{ return fat_start; }}
int answer(void) {{ static volatile int after = 42; return after; }}
"""


def _entry(name: str, size: int = 64) -> bytes:
    """An entry by its name, sm_90a or compute_80, with random content."""
    kind = prune.CUBIN if name.startswith("sm_") else prune.LTO if name.startswith("lto_") else prune.PTX
    digits = name.rpartition("_")[2]
    variant = {"a": prune.EXACT, "f": prune.FAMILY}.get(digits[-1], 0)
    content = random.Random(name).randbytes(size)
    return prune.ENTRY.pack(kind, 0x101, 64, size, 0, 0, 0, 1, int(digits.rstrip("af")), 0, 0, variant | 0x11, 0, 0) + content


def _fat_binary(*entries: bytes) -> bytes:
    return prune.HEAD.pack(int.from_bytes(prune.MAGIC, "little"), 1, 16, sum(map(len, entries))) + b"".join(entries)


def _names(data: bytes) -> list[str]:
    return [code.name for _, entries in prune.fat_binaries(data) for code in entries]


def _library(folder: Path, content: bytes) -> Path:
    (folder / "fat.bin").write_bytes(content)
    (folder / "lib.c").write_text(SOURCE.format(name=folder / "fat.bin"), encoding="utf-8")
    library = folder / "environment" / "lib.so"
    library.parent.mkdir()
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(folder / "lib.c")], check=True)
    return library


@pytest.mark.parametrize(
    ("held", "targets", "kept"),
    [
        ("sm_80 sm_90 sm_90a sm_100 compute_100", "sm_90", "sm_90 sm_90a"),
        ("sm_75 sm_80 sm_86 compute_80", "sm_89", "sm_86"),
        ("sm_80 compute_75 compute_80", "sm_90", "compute_80"),
        ("sm_80 compute_80 compute_90a", "sm_100", "compute_80"),
        ("sm_100 sm_100f sm_103a sm_120", "sm_100", "sm_100 sm_100f"),
        ("sm_100a sm_100f compute_90", "sm_103", "sm_100f"),
        ("sm_75 sm_80 sm_90 compute_90", "sm_75,sm_80", "sm_75 sm_80"),
        ("sm_80 lto_75 lto_80 lto_90", "sm_80", "sm_80 compute_80"),
        ("sm_80 sm_90 compute_80", "sm_75", ""),
    ],
)
def test_what_a_gpu_runs_stays(held: str, targets: str, kept: str) -> None:
    entries = prune.fat_binary(_fat_binary(*map(_entry, held.split())), 0)
    assert entries is not None
    assert " ".join(code.name for code in prune.chosen(entries, prune.architectures(targets))) == kept


def test_a_pruned_library_loads_and_refers_to_the_same_places(tmp_path: Path) -> None:
    first = _fat_binary(
        _entry("sm_80", 100_000), _entry("sm_90", 30_000), _entry("sm_90a", 5_000), _entry("compute_80", 200_000)
    )
    other = _fat_binary(_entry("sm_100", 300_000))
    library = _library(tmp_path, first + other)
    before = library.stat().st_size
    report = tmp_path / "report.json"
    assert prune.main([str(library.parent), "--arch", "sm_90", "--report", str(report)]) == 0
    assert library.stat().st_size < before - 550_000
    # Of the one without any code for sm_90 an entry stays that says so, without code.
    assert _names(library.read_bytes()) == ["sm_90", "sm_90a", "sm_100"]
    loaded = ctypes.CDLL(str(library))
    loaded.fat.restype = ctypes.c_void_p
    assert loaded.answer() == 42
    there = ctypes.string_at(loaded.fat(), 16 + 64 + 30_000 + 64 + 5_000)
    assert there == _fat_binary(_entry("sm_90", 30_000), _entry("sm_90a", 5_000))
    stub = prune.fat_binary(ctypes.string_at(loaded.fat() + len(first), 500), 0)
    assert stub is not None
    assert [(code.name, code.size < 300) for code in stub] == [("sm_100", True)]
    described = json.loads(report.read_text(encoding="utf-8"))
    assert described["architectures"] == ["sm_90"]
    removed = described["libraries"]["lib.so"]["removed"]
    assert {name: size > 90_000 for name, size in removed.items()} == {"sm_80": True, "compute_80": True, "sm_100": True}
    assert prune.code_in(library) == {"sm_90": 64 + 30_000, "sm_90a": 64 + 5_000}
    sections = subprocess.run(["readelf", "-SW", str(library)], capture_output=True, text=True, check=True)
    assert (".nv_fatbin" in sections.stdout, sections.stderr) == (True, "")
    again = library.read_bytes()
    assert prune.main([str(library.parent), "--arch", "sm_90"]) == 0
    assert library.read_bytes() == again


def test_what_only_looks_like_a_fat_binary_stays(tmp_path: Path) -> None:
    damaged = bytearray(_fat_binary(_entry("sm_80", 50_000), _entry("sm_90", 50_000)))
    damaged[16 + 4 : 16 + 8] = b"\xff\xff\xff\xff"
    library = _library(tmp_path, bytes(damaged))
    before = library.read_bytes()
    assert prune.main([str(library.parent), "--arch", "sm_90"]) == 0
    assert library.read_bytes() == before


def test_a_wrong_architecture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune.main([str(tmp_path), "--arch", "gfx942"]) == 2
    assert "sm_80,sm_90" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sm_90", "sm_90a", "sm_100f", "compute_80", "compute_90a"])
def test_code_is_called_as_it_is_read(name: str) -> None:
    assert prune.named(name).name == name


def test_code_of_another_kind_has_no_name() -> None:
    with pytest.raises(ValueError, match="gfx942"):
        prune.named("gfx942")
