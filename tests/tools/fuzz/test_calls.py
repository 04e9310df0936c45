"""The fuzzer: a few hundred draws of what runs here are right, and a wrong answer is found and printed as a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed here")

import torch

from attnkit.backends import registry
from attnkit.backends.torch_device import device_of
from attnkit.spec import AttentionOutput
from tools.fuzz import calls
from tools.fuzz.build import Built, build
from tools.fuzz.draws import Draw, draws

TORCH = registry.get("TORCH_SDPA").providers[-1]
HERE = device_of(torch.empty(0))
INTERPRETED = {"TRITON_ATTN": 6, "TREE_ATTN": 4, "TRITON_MLA": 5, "DUAL_CHUNK_FLASH_ATTN": 1, "DIFFERENTIAL_FLASH_ATTN": 2}
"""Draws of each: about a second of the interpreter a draw, several for dual chunk and differential attention."""


@pytest.mark.parametrize(("backend", "number"), [("TORCH_SDPA", 120), ("FLEX_ATTENTION", 6)])
def test_random_calls(backend: str, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert calls.main(["--backend", backend, "--provider", "torch", "--draws", str(number)]) == 0, capsys.readouterr().out
    assert f"{backend}/torch: {number} run, 0 refused, 0 wrong" in capsys.readouterr().out


def test_random_calls_in_the_interpreter(repo_root: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed here")
    program = """
import json, sys
sys.path.append(sys.argv[1])
from tools.fuzz.calls import main
from tools.kernels.interpreter import lean
lean()
sys.exit(max(main(["--backend", name, "--draws", str(draws)]) for name, draws in json.loads(sys.argv[2]).items()))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(repo_root), json.dumps(INTERPRETED)],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    for name, number in INTERPRETED.items():
        assert f"{name}/attnkit-interpreter: {number} run, 0 refused, 0 wrong" in done.stdout


def test_a_wrong_answer_is_found_and_printed_as_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    right = calls._run

    def slightly_off(made: Built, backend: str, provider: str | None) -> AttentionOutput:
        result = right(made, backend, provider)
        result.out[:1] *= 1.01
        return result

    assert not calls.fuzz(registry.get("TORCH_SDPA"), TORCH, "cpu", 5, seed=3).wrong
    monkeypatch.setattr(calls, "_run", slightly_off)
    found = calls.fuzz(registry.get("TORCH_SDPA"), TORCH, "cpu", 5, seed=3).wrong
    assert found and all(len(text.splitlines()) <= 10 for text in found)
    space: dict[str, object] = {}
    exec(found[0], space)
    with pytest.raises(AssertionError):
        space["test_draw"]()  # type: ignore[operator]
    monkeypatch.undo()
    space["test_draw"]()  # type: ignore[operator]


@pytest.mark.parametrize("where", ["an input", "around the output"])
def test_foreign_writes_are_found(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    right = calls._run

    def careless(made: Built, backend: str, provider: str | None) -> AttentionOutput:
        result = right(made, backend, provider)
        assert made.around is not None
        (made.call.batch.query if where == "an input" else made.around).view(-1)[0] = 1.0
        return result

    monkeypatch.setattr(calls, "_run", careless)
    assert "was written" in calls.problem(Draw(out="inside"), "TORCH_SDPA", "torch")


def test_draws_repeat_and_are_claimed() -> None:
    first, again, other = (list(islice(draws(TORCH.capability, HERE, seed), 30)) for seed in (1, 1, 2))
    assert first == again != other
    assert all(not TORCH.capability.reject(build(draw).call.spec(), HERE) for draw in first)
    assert eval(str(first[0]), {"Draw": Draw}) == first[0]
    assert str(replace(Draw(), causal=False)) == "Draw(causal=False)"


def test_a_backend_that_runs_nowhere_here_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert calls.main(["--backend", "FLASHMLA"]) == 2
    assert "no provider of FLASHMLA runs on cpu here" in capsys.readouterr().err
