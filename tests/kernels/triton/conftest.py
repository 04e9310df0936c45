"""What the compiling tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Triton's cache of this run, of all workers: nothing out of the user's cache, and no kernel compiled twice."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "triton-cache"
    folder.mkdir(exist_ok=True)
    return folder
