"""Slimming an environment: what runs stays, and a library that would not load is not replaced."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy

from images.in_image import slim


def test_slimming_leaves_what_runs(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in (
        "torch/bin/torch_shm_manager",
        "torch/bin/test_api",
        "torch/testing/__init__.py",
        "torch/include/torch.h",
        "pack/tests/test_x.py",
        "pack/core.py",
        "pack/core.pyi",
        "pack-1.dist-info/licenses/tests/LICENSE",
        "tests/top.py",
        "triton/backends/nvidia/include/cuda.h",
    ):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(b"x" * 10)
    assert slim.main([str(tmp_path)]) == 0
    left = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert left == {
        "torch/bin/torch_shm_manager",
        "torch/testing/__init__.py",
        "pack/core.py",
        "pack-1.dist-info/licenses/tests/LICENSE",
        "tests/top.py",
        "triton/backends/nvidia/include/cuda.h",
    }


def test_a_library_that_stripping_broke_is_recognised(tmp_path: Path) -> None:
    library = next(Path(numpy.__file__).parent.joinpath("_core").glob("_multiarray_umath*.so"))
    assert slim.loads(library)
    broken = tmp_path / "broken.so"
    data = bytearray(library.read_bytes())
    table, entry, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    first = next(
        table + i * entry for i in range(count) if struct.unpack_from("<I", data, table + i * entry)[0] == slim.LOAD_SEGMENT
    )
    struct.pack_into("<Q", data, first + 8, struct.unpack_from("<Q", data, first + 8)[0] + 8)
    broken.write_bytes(data)
    assert not slim.loads(broken)


def test_a_library_under_several_names_is_held_once(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    same = ("a/lib.so", "a/lib.so.1", "a/lib.so.1.2", "b/lib.so")
    for name, content in {"a/x.so": "diff", **dict.fromkeys(same, "same")}.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(content, encoding="utf-8")
    assert slim.main([str(tmp_path)]) == 0
    assert {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_symlink()} == {
        "a/lib.so.1",
        "a/lib.so.1.2",
    }
    assert (site / "a" / "lib.so.1.2").read_text(encoding="utf-8") == "same"
