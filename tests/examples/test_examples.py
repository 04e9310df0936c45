"""Every file of examples/ is run as its first lines say, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[[str], "list[str]"]


@pytest.fixture
def run(repo_root: Path, tmp_path: Path, environment: Callable[..., dict[str, str]]) -> Run:
    """run("python_api.py") → the lines that it printed, in an empty folder."""

    def example(name: str) -> list[str]:
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        command = [sys.executable if name.endswith(".py") else "sh", str(repo_root / "examples" / name)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(PATH=path), capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    return example


def test_python_api(run: Run) -> None:
    selected, named, agree = run("python_api.py")
    assert selected == "selected automatically: scaled_dot_product_attention, out [6, 8, 64]"
    assert named == "by name: scaled_dot_product_attention"
    assert agree == "both agree with plain torch"


def test_validate_in_python(run: Run) -> None:
    *cases, verdict = run("validate_in_python.py")
    assert len(cases) > 3 and all(line.startswith("pass ") for line in cases)
    assert verdict.startswith("TORCH_SDPA on ") and verdict.endswith(": pass")


def test_select_backend(run: Run, tmp_path: Path) -> None:
    lines = run("select_backend.sh")
    chosen = json.loads((tmp_path / "selection.json").read_text())["chosen"]["backend"]
    assert f"selected: {chosen}" in lines
    assert "--attention-backend" in " ".join(lines)


def test_boot_without_engine(run: Run, tmp_path: Path) -> None:
    lines = run("boot_without_engine.sh")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["verdict"], report["backend"]) == ("pass", "TORCH_SDPA")
    assert "TORCH_SDPA" in " ".join(lines)
    assert "TORCH_SDPA" in (tmp_path / "report.html").read_text()


@pytest.mark.engine
def test_transformers_model(run: Run) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed here")
    registered, *tokens = run("transformers_model.py")
    assert registered.startswith("registered: attnkit, ")
    assert len({line.partition(": ")[2] for line in tokens}) == 1 and len(tokens) == 3


def test_no_example_is_left_out(repo_root: Path) -> None:
    files = {path.stem for path in (repo_root / "examples").iterdir()} - {"README"}
    assert files == {name.removeprefix("test_") for name in globals() if name.startswith("test_")} - {"no_example_is_left_out"}
