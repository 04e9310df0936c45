"""Environments from locks: nothing but an environment is ever replaced, and no package is needed to make one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from images import IMAGES, ROOT


def test_only_a_virtual_environment_is_replaced(tmp_path: Path, repo_root: Path) -> None:
    """Making an environment clears its folder, which must not happen to anything else, nor through a link."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x", encoding="utf-8")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "lock.txt").write_text("", encoding="utf-8")
    for folder in (precious, tmp_path / "link"):
        command = [sys.executable, "-m", "images.builder.venv", str(folder), str(tmp_path / "lock.txt")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=repo_root)
        assert done.returncode == 2
        assert "is a link or not a virtual environment" in done.stderr
    assert (precious / "thesis.tex").is_file()


@pytest.mark.parametrize(
    "script",
    [
        *(["-m", f"images.builder.{name}"] for name in ("venv", "container_engine")),
        *(["-I", str(path)] for path in [*sorted(IMAGES.glob("in_image/[!_]*.py")), IMAGES / "offline" / "install.py"]),
    ],
    ids=lambda script: script[-1].removeprefix(f"{IMAGES}/"),
)
def test_what_starts_on_a_bare_python_needs_no_package(script: list[str]) -> None:
    """Without site-packages; with -I, what is shipped alone is not helped by the checkout either."""
    done = subprocess.run([sys.executable, "-S", *script, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
