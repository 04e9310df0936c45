"""The comparisons of engines: what is asked wrongly is a message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import attnkit


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("equal_tokens", ["--models", "nonsense"], "unknown model 'nonsense'"),
        ("equal_embeddings", ["--nonsense"], "unrecognized arguments"),
    ],
)
def test_a_mistake_is_a_message(repo_root: Path, module: str, arguments: list[str], said: str) -> None:
    path = os.pathsep.join((str(Path(attnkit.__file__).parents[1]), str(repo_root)))
    command = [sys.executable, "-m", f"tools.engines.{module}", *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
