"""A claim that the compiler refuses is found without the card."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed here")

from triton import knobs

from tools.fuzz import compiled
from tools.fuzz.draws import Draw

NARROW = Draw(dtype="float16", head_dim=16, head_dim_v=16, cache="float8_e4m3fn", seqs=((1, 300),))
"""On an H200 its kernel did not compile: two float8 columns at a time leave eight, and a product takes at least sixteen."""


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))


def test_a_narrow_head_with_a_float8_cache_compiles() -> None:
    seen: set[str] = set()
    assert not list(compiled.refused_by_the_compiler("TRITON_ATTN", "sm_90", [NARROW], seen)) and seen


def test_what_does_not_compile_is_said_with_its_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: str, launch: object) -> None:
        raise ValueError("outer") from ValueError("eight columns")

    monkeypatch.setattr(compiled, "compile_one", refuse)
    (said,) = compiled.refused_by_the_compiler("TRITON_ATTN", "sm_90", [NARROW], set())
    assert str(NARROW) in said and "eight columns" in said


def test_a_target_without_our_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert compiled.main(["--target", "sm_90", "--backend", "FLASHINFER", "--draws", "1"]) == 2
    assert "no kernel of FLASHINFER is for sm_90" in capsys.readouterr().err
