"""Words of evidence follow from reports: never higher than what a report shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attnkit.errors import UsageError
from attnkit.select import evidence
from tools.docs.evidence import collect


def _collect(tmp_path: Path, document: dict) -> list[tuple[str, str, str]]:
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    return [(e.backend, e.target, e.word) for e in collect(tmp_path, tmp_path)]


def _selftest(**verdict: object) -> dict:
    whole = {"backend": "B", "provider": "p", "level": "standard", "outcome": "pass", "fault": None, **verdict}
    device = {"name": "card", "arch": "sm_90"}
    return {"kind": "selftest", "created": "2026-01-02T03:04:05Z", "device": device, "verdicts": [whole]}


@pytest.mark.parametrize(
    ("verdict", "word"),
    [
        ({}, "measured"),
        ({"level": "quick"}, None),
        ({"outcome": "fail"}, None),
        ({"outcome": "inconclusive"}, None),
        ({"fault": "scale"}, None),
        ({"provider": "attnkit-interpreter"}, "emulated"),
    ],
)
def test_words_of_self_tests(tmp_path: Path, verdict: dict, word: str | None) -> None:
    assert _collect(tmp_path, _selftest(**verdict)) == ([("B", "sm_90", word)] if word else [])


@pytest.mark.parametrize(("code", "word"), [(evidence.TURING_NATIVE, "measured"), ("sm_75 PTX on another card", "emulated")])
def test_words_of_turing(tmp_path: Path, code: str, word: str) -> None:
    verdict = {"backend": "TURING_ATTN", "provider": "attnkit", "level": "standard", "outcome": "pass"}
    document = {"kind": "turing", "created": "2026-01-02", "device": "card", "code": code, "selftest": [verdict]}
    assert _collect(tmp_path, document) == [("TURING_ATTN", "sm_75", word)]


def test_a_kernel_that_did_not_compile_takes_the_word_away(tmp_path: Path) -> None:
    rows = [{"backend": "B", "target": "gfx942", "ok": True}, {"backend": "B", "target": "gfx942", "ok": False}]
    document = {"kind": "cross-compile", "created": "2026-01-02", "compiler": "triton", "kernels": rows}
    assert _collect(tmp_path, document) == []


def test_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a report of attnkit"):
        _collect(tmp_path, {"kind": "poem"})
