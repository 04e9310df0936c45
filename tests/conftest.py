"""What the whole test suite shares: which machine-dependent tests may run, and that the installed package is the one tested."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import attnkit

ROOT = Path(__file__).resolve().parent.parent
TREES = ROOT / "tests" / "data" / "trees"

# At the end, so that the installed attnkit comes first: the packages tools and images are in the checkout alone.
sys.path.append(str(ROOT))


@cache
def _docker_runs() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30).returncode == 0


@cache
def _cuda_device() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason; ATTNKIT_REQUIRE_DOCKER=1 turns a missing engine into a failure.

    With several workers a file's tests share one, as they share its fixtures; those marked slow go to whichever is free.
    """
    require_docker = os.environ.get("ATTNKIT_REQUIRE_DOCKER") == "1"
    for item in items:
        if item.get_closest_marker("docker") and not require_docker and not _docker_runs():
            item.add_marker(pytest.mark.skip(reason="no container engine runs here (make engine starts one)"))
        if item.get_closest_marker("gpu") and not _cuda_device():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here; the last report is in docs/reports"))
        if config.pluginmanager.hasplugin("xdist") and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


def pytest_report_header() -> str:
    """Say which attnkit is under test: the wheel in site-packages, or this checkout."""
    return f"attnkit {attnkit.__version__} from {Path(attnkit.__file__).parent}"


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def trees() -> Path:
    """Made hardware trees, one directory a node type."""
    return TREES
