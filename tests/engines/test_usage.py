"""What the engines' commands and driver say where something is missing; needs no engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import attnkit
from attnkit.engines.vllm.layer import EngineMovedError, interface
from attnkit.errors import UsageError, require_packages


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("equal_tokens", ["--models", "nonsense"], "unknown model 'nonsense'"),
        ("equal_embeddings", ["--nonsense"], "unrecognized arguments"),
    ],
)
def test_a_mistake_is_a_message(module: str, arguments: list[str], said: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(attnkit.__file__).parents[1])}
    command = [sys.executable, "-m", f"attnkit.engines.{module}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_packages_are_named() -> None:
    require_packages("this", "json")
    with pytest.raises(UsageError, match="this needs absent_one and absent_two, not installed here"):
        require_packages("this", "absent_one", "json", "absent_two")


def test_a_refused_configuration_says_nothing_of_the_backend() -> None:
    moved = pytest.raises(EngineMovedError, match="its configuration classes: ValueError: no such model")
    with moved, interface("its configuration classes", ValueError):
        raise ValueError("no such model")
    with pytest.raises(ValueError, match="the computation"), interface("something else"):
        raise ValueError("the computation")
