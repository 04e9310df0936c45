"""Published packages, downloaded once by pip and kept in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from attnkit.errors import UsageError

_SOURCE_ONLY = frozenset({"flash-attn"})
"""Published as source alone. pip asks such a package for its metadata, which runs its setup.py."""

_ENVIRONMENT = {"FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}  # setup.py then wants no CUDA compiler


def fetch(package: str, version: str, cache: Path) -> Path:
    """The wheel, or where there is none the source distribution, of one version of a package on PyPI.

    Args:
        cache: folder to look in first and to download to.

    Raises:
        UsageError: pip cannot download it; the message has pip's last line.
    """
    cache.mkdir(parents=True, exist_ok=True)
    found = _find(package, version, cache)
    if found is not None:
        return found
    how = ["--no-build-isolation", "--no-binary", ":all:"] if package in _SOURCE_ONLY else ["--only-binary", ":all:"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
    command = [*pip, *how, f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **_ENVIRONMENT})
    found = _find(package, version, cache)
    if done.returncode or found is None:
        last = (done.stderr.strip() or "nothing was downloaded").splitlines()[-1]
        raise UsageError(f"pip cannot download {package}=={version}: {last}")
    return found


def _find(package: str, version: str, cache: Path) -> Path | None:
    for path in sorted(cache.iterdir()):
        try:
            if path.suffix == ".whl":
                name, found, *_ = parse_wheel_filename(path.name)
            else:
                name, found = parse_sdist_filename(path.name)
        except (InvalidWheelFilename, InvalidSdistFilename):
            continue
        if name == canonicalize_name(package) and found == Version(version):
            return path
    return None
