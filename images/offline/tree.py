"""Packs an image as a root tree for hosts without a container engine: `make bundle PLATFORM=… FORM=tree`.

The tree travels in pieces of a size that a slow or guarded path takes, with their checksums, a script that unpacks them, and
`attnkit-run`, which starts commands in it (images/offline/attnkit_run.sh). It is a plain root file system, which other
programs can start, too; those were not tried.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from images.builder import build
from images.builder.container_engine import client, docker
from images.in_image import stamp
from images.offline import install

PIECE_BYTES = 58 << 20
LEVEL = 19
WINDOW = 27
"""zstd's window, a power of two: libraries repeat what lies a hundred megabytes before. Unpacking needs as much memory."""
ENVIRONMENT = "etc/attnkit/environment"
"""The image's variables, NAME=VALUE a line; attnkit-run reads them."""
LEFT_OUT = (".dockerenv", "dev/")
UNPACK = f"""\
#!/bin/sh
# unpack.sh NEW-FOLDER: checks the pieces and unpacks the tree; needs zstd and tar. As root, files keep their owners.
set -eu
[ $# = 1 ] && [ ! -e "$1" ] || {{ echo "usage: unpack.sh NEW-FOLDER" >&2; exit 2; }}
here=$(cd "$(dirname "$0")" && pwd)
(cd "$here" && sha256sum --check --quiet {install.SUMS})
mkdir -p "$1"
cat "$here"/piece-* | zstd -dc --long={WINDOW} | tar -xf - -C "$1"
echo "start commands in it with: $here/attnkit-run $1 -- COMMAND"
"""


class TreeError(Exception):
    """The tree cannot be packed; the message says why."""


def members(exported: IO[bytes], environment: Iterable[str]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """What goes into the tree, of a file system as a container engine exports it; its variables in a file."""
    text = "".join(f"{line}\n" for line in environment).encode()
    added = tarfile.TarInfo(ENVIRONMENT)
    added.size, added.mtime, added.mode = len(text), stamp.MOMENT, 0o644
    yield added, io.BytesIO(text)
    with tarfile.open(fileobj=exported, mode="r|") as archive:
        for member in archive:
            if not member.name.startswith(LEFT_OUT) or member.name == "dev":
                yield member, archive.extractfile(member) if member.isreg() else None


def split(stream: IO[bytes], folder: Path, size: int = PIECE_BYTES) -> list[Path]:
    """Write a stream as piece-00, piece-01 … of at most so many bytes."""
    pieces: list[Path] = []
    while chunk := stream.read(size):
        pieces.append(folder / f"piece-{len(pieces):02}")
        pieces[-1].write_bytes(chunk)
    return pieces


def write(exported: IO[bytes], environment: Iterable[str], packed: IO[bytes], level: int) -> None:
    """Compress what an engine exported into a file; TreeError where zstd is missing or fails."""
    command = ["zstd", f"-{level}", f"--long={WINDOW}", "-T0", "-q", "-c"]
    try:
        compressing = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=packed)
    except FileNotFoundError:
        raise TreeError("there is no zstd here: install it") from None
    with compressing:
        assert compressing.stdin is not None
        with tarfile.open(fileobj=compressing.stdin, mode="w|", format=tarfile.GNU_FORMAT) as archive:
            for member, content in members(exported, environment):
                archive.addfile(member, content)
        compressing.stdin.close()
    if compressing.returncode:
        raise TreeError(f"zstd ended with {compressing.returncode}")


def pack(tag: str, folder: Path, level: int = LEVEL) -> list[Path]:
    """Pack an image that the engine has into an empty folder, with the scripts that unpack and start it; returns the pieces.

    Raises:
        TreeError: a step failed.
    """
    whole = folder / "tree.tar.zst"
    container = docker("create", tag, "-")
    try:
        with subprocess.Popen([client(), "export", container], stdout=subprocess.PIPE) as exporting, whole.open("wb") as packed:
            assert exporting.stdout is not None
            write(exporting.stdout, json.loads(build.inspect(tag, "{{json .Config.Env}}")), packed, level)
        if exporting.returncode:
            raise TreeError(f"docker export ended with {exporting.returncode}")
    finally:
        docker("rm", container)
    with whole.open("rb") as stream:
        pieces = split(stream, folder)
    whole.unlink()
    shutil.copy2(Path(__file__).with_name("attnkit_run.sh"), folder / "attnkit-run")
    (folder / "unpack.sh").write_text(UNPACK, encoding="utf-8")
    for name in ("attnkit-run", "unpack.sh"):
        (folder / name).chmod(0o755)
    return pieces
