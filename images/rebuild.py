#!/usr/bin/env python3
"""Builds an image anew and compares its layers: the same inputs without any cache, and the same with a changed attnkit.

Used by examine.py (`--rebuild`). A layer is named by the digest of its content.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import base
import build
import engine
from platforms import Platform

CHANGE = "\n# A line that changes nothing but the file.\n"


def layers(image: str) -> list[str]:
    """The digests of an image's layers, lowest first."""
    found: list[str] = json.loads(build.inspect(image, "{{json .RootFS.Layers}}"))
    return found


@contextmanager
def built(platform: Platform, wheel: Path, like: str = "") -> Iterator[str]:
    """The platform's image with this wheel of attnkit, under a name of its own, and gone afterwards.

    Args:
        platform: whose.
        wheel: of attnkit.
        like: an image that must have come from the same inputs; it is then built without any cache.

    Raises:
        EngineError: the build failed, or the image came from other inputs, so that nothing could be compared with it.
    """
    base_name = base.base_image(platform.base)
    context = build.stage(platform, wheel)
    tag = f"attnkit-rebuilt:{uuid.uuid4().hex}"
    arguments, names = build.build_arguments(platform, base_name), build.labels(platform)
    inputs = build.fingerprint(context, arguments, names, build.inspect(base_name, "{{.Id}}"))
    if like and build.inspect(like, '{{index .Config.Labels "attnkit.inputs"}}') != inputs:
        raise engine.EngineError(f"{like} did not come from this tree as it is now: make image PLATFORM={platform.name} first")
    build.docker_build(platform, context, arguments, names, (tag,), no_cache=bool(like), plain=True)
    try:
        yield tag
    finally:
        subprocess.run([engine.client(), "rmi", tag], capture_output=True, check=False)


def changed_wheel(folder: Path) -> Path:
    """attnkit's wheel from a copy of the tree in which one module has a line more."""
    tree = folder / "tree"
    tree.mkdir()
    for name in ("attnkit", "profiles"):
        shutil.copytree(build.ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(build.ROOT / name, tree)
    module = tree / "attnkit" / "boot.py"
    module.write_text(module.read_text(encoding="utf-8") + CHANGE, encoding="utf-8")
    return build.build_wheel(tree, folder / "wheel")


def compressed(image: str, wanted: set[str]) -> int:
    """Bytes of these layers as a registry sends them: gzip, as `docker push` compresses."""
    total = 0
    with tempfile.TemporaryFile(dir=engine.CACHE) as file:
        subprocess.run([engine.client(), "save", image], stdout=file, check=True)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            manifest = json.load(archive.extractfile("manifest.json") or io.BytesIO())[0]
            for name, digest in zip(manifest["Layers"], layers(image), strict=True):
                member = archive.extractfile(name)
                if digest in wanted and member is not None:
                    total += len(gzip.compress(member.read(), 6, mtime=0))
    return total


def compare(platform: Platform, image: str) -> dict[str, Any]:
    """Build twice more: which of the image's layers came out the same each time, by digest, and what a node would fetch."""
    before = layers(image)
    with tempfile.TemporaryDirectory(dir=engine.CACHE, prefix="rebuild-") as scratch:
        folder = Path(scratch)
        with built(platform, build.build_wheel(folder=folder / "same"), like=image) as again:
            repeated = set(layers(again))
        with built(platform, changed_wheel(folder)) as other:
            kept = set(layers(other))
            fetched = compressed(other, kept - set(before))
    return {
        "same_inputs_no_cache": [digest for digest in before if digest in repeated],
        "one_line_more_in_attnkit": [digest for digest in before if digest in kept],
        "fetched_bytes_compressed": fetched,
    }
