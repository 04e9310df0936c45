"""A simulated device rehearses a fleet, and can never be taken for a verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]
TREES = Path(__file__).resolve().parents[1] / "data" / "trees"


def test_a_right_answer_is_planted_never_pass(start: Start) -> None:
    boot = start("--simulated-device", "right", "--root", TREES / "a100")
    assert boot.wait() == 4
    report = boot.report
    assert (report["verdict"], report["planted_answer"], report["exit_code"]) == ("planted", "right", 4)
    assert {verdict["outcome"] for verdict in report["selftest"]} == {"skipped"}
    assert report["decision"]["installed_source"].startswith("assumed")
    assert all(event["planted_answer"] == "right" for event in boot.events)
    metrics = boot.metrics_path.read_text()
    assert "attnkit_planted_answer 1.0" in metrics
    assert 'attnkit_verdict{outcome="pass"} 0.0' in metrics


def test_a_wrong_answer_falls_back_along_the_profile(start: Start) -> None:
    boot = start("--planted-answer", "wrong:FLASH_ATTN", "--model", "llama-3", "--root", TREES / "a100")
    assert boot.wait() == 4
    assert [(f["from"], f["to"]) for f in boot.report["fallbacks"]] == [("FLASH_ATTN", "FLASHINFER")]
    assert (boot.report["verdict"], boot.report["backend"]) == ("planted", "FLASHINFER")


@pytest.mark.parametrize("answer", ["wrong", "crash"])
def test_where_every_answer_is_bad_the_boot_fails(start: Start, answer: str) -> None:
    boot = start("--simulated-device", answer, "--root", TREES / "a100")
    assert boot.wait() == 1
    assert (boot.report["verdict"], boot.report["backend"]) == ("fail", None)


def test_an_unknown_answer_is_wrong_usage(start: Start) -> None:
    boot = start("--simulated-device", "maybe")
    assert boot.wait() == 2
    assert "unknown simulated device 'maybe'. Known: right, wrong, crash, hang" in boot.err
