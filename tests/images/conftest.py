"""What the image tests share: the demo's machines as modules, and the built cpu image."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "deploy" / "demo"))


@pytest.fixture(scope="session")
def cpu_image() -> str:
    """The cpu image of this working tree, built by the documented command."""
    done = subprocess.run(["make", "image", "PLATFORM=cpu"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return "attnkit:cpu"
