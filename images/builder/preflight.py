"""Checks that the pins of an image agree: `python -m images.builder.preflight [PLATFORM …]`, and before every build.

Reads the lock, platforms.yaml, pins.yaml and the committed report of the Triton versions that Turing's hook was tested with;
fetches nothing, so that a mistake is found before 8 GB of downloads and not after them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from images import IMAGES, ROOT
from images.builder import platforms
from images.builder.platforms import DescriptionError, Platform

PINS = IMAGES / "pins.yaml"
TURING_REPORT = ROOT / "docs" / "reports" / "turing-triton-versions.json"
BY_MAJOR = ("cuda-bindings", "cuda-toolkit", "cuda-python", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc", "nvidia-cublas")
"""Packages whose own version is CUDA's."""
SAME_AS_FLASHINFER = ("flashinfer-cubin", "flashinfer-jit-cache")
"""They hold compiled code of one version of flashinfer-python, which refuses any other at import."""


def known(path: Path = PINS) -> dict[str, Any]:
    """pins.yaml."""
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def tested_triton(path: Path = TURING_REPORT) -> tuple[str, ...]:
    """The Triton versions that Turing's hook was tested with, as the committed report shows."""
    return tuple(run["triton"] for run in json.loads(path.read_text(encoding="utf-8"))["runs"])


def problems(platform: Platform) -> list[str]:
    """Every contradiction, in words; empty where a build may start, and for a platform without a lock."""
    if platform.lock_path is None:
        return []
    locked = platforms.pins(platform.lock_path)
    checks = (_described, _engine, _cuda, _triton)
    return [f"images/{platform.lock}: {text}" for check in checks for text in check(platform, locked)]


def _described(platform: Platform, locked: dict[str, str]) -> Iterator[str]:
    for name, version in ((platform.engine.package, platform.engine.version), ("torch", platform.torch)):
        if version and locked.get(name) != version:
            yield f"{name} is {locked.get(name, 'absent')}, platforms.yaml says {version}"


def _engine(platform: Platform, locked: dict[str, str]) -> Iterator[str]:
    package, version = platform.engine.package, platform.engine.version
    releases = known().get(package)
    if releases is None:
        return
    release = releases.get(version)
    if release is None:
        yield f"{package} {version} is not in images/pins.yaml (known: {', '.join(releases)}); read its metadata and add it"
        return
    if locked.get("torch") != release["torch"]:
        yield f"{package} {version} is built for torch {release['torch']}, not {locked.get('torch', 'absent')}"
    major = platform.cuda.major if platform.cuda else None
    if release["cuda"] != major:
        yield f"{package} {version} is built for CUDA {release['cuda']}; platforms.yaml says {major}"


def _cuda(platform: Platform, locked: dict[str, str]) -> Iterator[str]:
    flashinfer = locked.get("flashinfer-python")
    for name in SAME_AS_FLASHINFER:
        if name in locked and locked[name] != flashinfer:
            yield f"{name} is {locked[name]} and flashinfer-python {flashinfer or 'absent'}; they must be the same"
    if platform.cuda is None:
        return
    for name, version in locked.items():
        suffix = re.search(r"-cu(\d\d)$", name)
        found = suffix[1] if suffix else version.split(".")[0] if name in BY_MAJOR else None
        if found is not None and int(found) != platform.cuda.major:
            yield f"{name} {version} is for CUDA {found}, the image for CUDA {platform.cuda.major}"
    runtime = ".".join(locked.get("nvidia-cuda-runtime", "absent").split(".")[:2])
    floors = known()["cuda"]
    if str(floors.get(runtime)) != platform.cuda.driver:
        needs = f"needs driver {floors[runtime]}" if runtime in floors else f"is not in images/pins.yaml ({', '.join(floors)})"
        yield f"CUDA runtime {runtime} {needs}; platforms.yaml says {platform.cuda.driver}"


def _triton(platform: Platform, locked: dict[str, str]) -> Iterator[str]:
    if platform.kernels != "triton":
        return
    version = locked.get("triton")
    if version is None:
        yield f"kernels are precompiled for {', '.join(platform.targets)}, and triton is not locked"
    elif "sm_75" in platform.targets and version not in (tested := tested_triton()):
        yield (
            f"attnkit's Turing hook was not tested with Triton {version}: tensor cores would not be used; "
            f"tested: {', '.join(tested)} (docs/reports/{TURING_REPORT.name})"
        )


def require(chosen: Sequence[Platform]) -> None:
    """Refuse all platforms where the pins of one do not agree.

    Raises:
        DescriptionError: with every problem.
    """
    wrong = [f"{platform.name}: {text}" for platform in chosen for text in problems(platform)]
    if wrong:
        raise DescriptionError("the pins do not agree, so nothing was built:\n" + "\n".join(f"  {text}" for text in wrong))


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="PLATFORM", help="default: every platform that is built")
    args = parser.parse_args(argv)
    try:
        described = platforms.load()
        chosen = [platforms.find(name, described) for name in args.names] or [p for p in described.values() if not p.not_built]
        require(chosen)
    except DescriptionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for platform in chosen:
        print(f"[preflight] {platform.name}: the pins agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
