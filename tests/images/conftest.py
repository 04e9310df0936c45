"""What the image tests share: the built cpu image."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cpu_image() -> str:
    """The cpu image of this working tree, built by the documented command."""
    done = subprocess.run(["make", "image", "PLATFORM=cpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return "attnkit:cpu"
