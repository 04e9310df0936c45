"""Rebuilds an image and compares its layers: the same inputs without any cache, and the same with a changed attnkit.

Used by examine.py (`--rebuild`). A layer is named by the digest of its content.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from images import CACHE, ROOT
from images.builder import build
from images.builder.container_engine import EngineError, client, docker
from images.builder.platforms import Platform

CHUNK = 1 << 24
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
    context, arguments, names = build.prepare(platform, wheel)
    tag = f"attnkit-rebuilt:{uuid.uuid4().hex}"
    if like and build.inspect(like, build.INPUTS_OF) != names[build.INPUTS]:
        raise EngineError(f"{like} did not come from this tree as it is now: make image PLATFORM={platform.name} first")
    options = ["--progress", "plain", "-t", tag, *(["--no-cache"] if like else [])]
    build.docker_build(context, arguments, *options, labels=names, show=True)
    try:
        yield tag
    finally:
        docker("rmi", tag)


def changed_wheel(folder: Path) -> Path:
    """attnkit's wheel from a copy of the tree with one more line in one module."""
    tree = folder / "tree"
    tree.mkdir()
    for name in build.WHEEL_SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, tree)
    module = tree / "attnkit" / "__init__.py"
    module.write_text(module.read_text(encoding="utf-8") + CHANGE, encoding="utf-8")
    return build.build_wheel(tree, folder / "wheel")


def compressed(image: str, wanted: set[str]) -> int:
    """Bytes of these layers as a registry sends them: gzip, as `docker push` compresses."""
    total = 0
    with tempfile.TemporaryFile(dir=CACHE) as file:
        subprocess.run([client(), "save", image], stdout=file, check=True)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            manifest = json.load(archive.extractfile("manifest.json") or io.BytesIO())[0]
            for name, digest in zip(manifest["Layers"], layers(image), strict=True):
                member = archive.extractfile(name)
                if digest in wanted and member is not None:
                    squeeze = zlib.compressobj(6, wbits=31)
                    while chunk := member.read(CHUNK):
                        total += len(squeeze.compress(chunk))
                    total += len(squeeze.flush())
    return total


def compare(platform: Platform, image: str) -> dict[str, Any]:
    """Build twice more: which of the image's layers came out the same each time, by digest, and what a node would fetch."""
    before = layers(image)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="rebuild-") as scratch:
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
