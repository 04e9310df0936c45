"""What the compiling tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triton's cache of this run, of all workers: nothing out of the user's cache, and no kernel compiled twice."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "triton-cache"
    folder.mkdir(exist_ok=True)
    return folder
