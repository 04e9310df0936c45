"""A few thousand hostile inputs: none gives a traceback, takes long or grows memory. `make fuzz-inputs` draws 50,000."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_three_thousand_inputs() -> None:
    command = [sys.executable, "-m", "tools.fuzz.inputs", "--draws", "3000", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3000 inputs in" in done.stdout
    assert ", 0 problems" in done.stdout


def test_what_breaks_is_reported() -> None:
    from tools.fuzz import inputs

    def broken(_draw: object, _folder: Path) -> None:
        raise KeyError("unforeseen")

    inputs.KINDS["models"], before = broken, inputs.KINDS["models"]
    try:
        outcomes = [outcome for _, _, outcome, _ in inputs.run(3, 1, "models")]
    finally:
        inputs.KINDS["models"] = before
    assert all("KeyError: 'unforeseen'" in outcome for outcome in outcomes)
