"""What a reader of a how-to page has: a checkout, and an environment with attnkit into which packages may be installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def checkout(tmp_path: Path, repo_root: Path) -> Path:
    """A copy of what git tracks, to change."""
    copy = tmp_path / "attnkit"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=repo_root, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (repo_root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repo_root / name, copy / name)
    return copy


@pytest.fixture
def readers_environment(tmp_path: Path, environment: Callable[..., dict[str, str]]) -> dict[str, str]:
    """An environment of its own over that of these tests: attnkit and all libraries are there, installs go nowhere else."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    paths = {"base": str(home), "platbase": str(home)}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    (packages / "below.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name, module in {"attnkit": "attnkit.cli", "pip": "pip"}.items():
        script = home / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{home}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    return environment(PATH=f"{home}/bin{os.pathsep}{os.environ['PATH']}", COLUMNS="200", VIRTUAL_ENV=str(home))
