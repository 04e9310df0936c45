"""The lab's images: a slim stand-in for every platform's image, and the image of the machines.

A stand-in runs the real `attnkit boot` on a recorded hardware tree. It has no torch and no kernels, so the device is
simulated; its labels say so, and no boot of it ever passes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from deploy.demo import fleet
from images.builder import base, build, container_engine, platforms

HERE = Path(__file__).resolve().parent
STAGE = fleet.ROOT / ".cache" / "lab-images"
REPOSITORY = "attnkit-lab"
STAND_IN = f"{REPOSITORY}-stand-in"
PYTHON = "3.11"
"""The distribution base's, as images/platforms.yaml says for cpu."""
LAUNCHER = """#!/bin/sh
exec python3 -m attnkit.cli "$@"
"""
BALLAST = 96_000_000
"""Bytes of a layer that no other release has, for a disk that fills up."""


def closure(name: str) -> set[str]:
    """A distribution and everything it needs here, normalised."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if current in found:
            continue
        found.add(current)
        for text in metadata.requires(current) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(needed.name)
    return found


def locked(lock: Path, names: set[str]) -> str:
    """The part of a hash-locked requirements file that concerns these distributions."""
    blocks = re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8"))
    kept = [block for block in blocks if (name := re.match(r"([A-Za-z0-9._-]+)==", block)) and name[1].lower() in names]
    return "\n".join(kept) + "\n"


def stage(wheel: Path) -> Path:
    """The build context of the stand-in: attnkit and what it needs, installed for the image's Python, without pip in it."""
    context = STAGE / "context"
    site = context / "site"
    wanted = locked(fleet.ROOT / "images" / "requirements" / "cpu.txt", closure("attnkit") - {"attnkit"})
    marker = STAGE / "requirements.txt"
    if not site.is_dir() or not marker.is_file() or marker.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(context, ignore_errors=True)
        site.mkdir(parents=True)
        marker.unlink(missing_ok=True)
        requirements = STAGE / "wanted.txt"
        requirements.write_text(wanted, encoding="utf-8")
        pip_install(site, "--require-hashes", "-r", str(requirements))
        marker.write_text(wanted, encoding="utf-8")
    for old in site.glob("attnkit*"):
        shutil.rmtree(old)
    pip_install(site, str(wheel))
    for extra in ("bin", "share"):
        shutil.rmtree(site / extra, ignore_errors=True)
    for record in site.glob("attnkit-*.dist-info/direct_url.json"):
        record.unlink()
    for name in ("Dockerfile", "engine.py"):
        shutil.copy2(HERE / "stand_in" / name, context)
    (context / "attnkit").write_text(LAUNCHER, encoding="utf-8")
    return context


def pip_install(site: Path, *what: str) -> None:
    """Install into a folder for the image's Python."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile", "--no-deps"]
    command += ["--target", str(site), "--upgrade", "--only-binary", ":all:", "--python-version", PYTHON, *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise fleet.DemoError(f"installing into the stand-in failed:\n{done.stderr.strip()[-1500:]}")


def labels(platform: platforms.Platform, release: str) -> dict[str, str]:
    """The labels of the real image (the driver's floor among them), and what tells a stand-in from it."""
    real = {key: value for key, value in build.labels(platform).items() if not key.endswith(".revision")}
    return real | {
        "org.opencontainers.image.title": f"STAND-IN without kernels for attnkit for {platform.title}",
        "attnkit.stand-in": "true",
        "attnkit.release": release,
    }


def build_all(wheel: Path, releases: Sequence[str], heavy: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """A tag by release and platform. All share their layers; labels (and with them the digest) differ.

    Args:
        wheel: attnkit's.
        releases: names of the releases to make for every platform.
        heavy: platforms by the name of a release that only they have, with a layer of `BALLAST` bytes of its own.
    """
    context = stage(wheel)
    fleet.node_image(STAND_IN, context, base.base_image(platforms.load()["cpu"].base))
    known = platforms.load()
    found: dict[str, dict[str, str]] = {}
    for release in releases:
        found[release] = {name: one_stand_in(platform, release) for name, platform in known.items()}
    for release, name in heavy.items():
        found[release] = {name: one_stand_in(known[name], release, ballast=True)}
    return found


def one_stand_in(platform: platforms.Platform, release: str, *, ballast: bool = False) -> str:
    """The stand-in of a platform and a release; its tag. Nothing is built where it is up to date."""
    tag = f"{REPOSITORY}:{platform.name}-{release}"
    wanted = labels(platform, release) | {"attnkit.inputs": build.inspect(STAND_IN, "{{.Id}}")}
    if wanted.items() <= json.loads(build.inspect(tag, "{{json .Config.Labels}}") or "{}").items():
        return tag
    # Of random bytes, so that no registry and no engine makes it smaller.
    heavy = f"USER 0\nRUN head -c {BALLAST} /dev/urandom > /opt/ballast\nUSER 10001:0\n" if ballast else ""
    command = [container_engine.client(), "build", "-q", "-t", tag, "-"]
    for key, value in wanted.items():
        command += ["--label", f"{key}={value}"]
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    done = subprocess.run(
        command, input=f"FROM {STAND_IN}\n{heavy}", capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        raise fleet.DemoError(f"{tag} did not build: {done.stderr.strip()[-800:]}")
    return tag
