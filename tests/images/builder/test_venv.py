"""Environments from locks: nothing but an environment is ever replaced."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


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
