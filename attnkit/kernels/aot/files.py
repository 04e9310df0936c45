"""The files of a kernel directory: what is known of each, and taking a compiled kernel out of Triton's cache."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from attnkit.jsonio import read_json

MANIFEST = "manifest.json"
SOURCE = ".source"
KNOWN = "known.json"
"""In a directory of kept kernels: the facts of every file by key, as of when it was compiled."""


@dataclass(frozen=True)
class Precompiled:
    """One compiled variant.

    Args:
        target, name, kernel: as in `aot.Variant`.
        key: Triton's cache key, the directory's name.
        binary: file with the machine code.
        files: size and sha256 of every file by name.
    """

    target: str
    name: str
    kernel: str
    key: str
    binary: str
    files: dict[str, tuple[int, str]]


def facts(path: Path) -> tuple[int, str]:
    """Size and sha256 of a file."""
    data = path.read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()


def folder_facts(folder: Path) -> dict[str, tuple[int, str]]:
    """`facts` of every file of a folder by name."""
    return {path.name: facts(path) for path in sorted(folder.iterdir()) if path.is_file()}


def copy_kernel(folder: Path, out: Path) -> Path:
    """Copy a kernel's folder into the kernel directory `out`.

    The copy of its source stays behind: it is half of the size, and nothing that loads a kernel reads it. Group files lose
    their absolute paths, which `aot_cache` does not read.
    """
    there = out / folder.name
    there.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("__grp__"):
            names = sorted(name for name in json.loads(path.read_text())["child_paths"] if not name.endswith(SOURCE))
            (there / path.name).write_text(json.dumps({"child_paths": {name: name for name in names}}) + "\n")
        elif path.is_file() and not path.name.endswith(SOURCE):
            shutil.copyfile(path, there / path.name)
    return there


def drop_altered(cache: Path) -> None:
    """Remove from a directory of kept kernels those that are no longer as they were when they were noted.

    One that nobody noted stays: another build may be writing it. Triton takes it only once its group file is there, the last.
    """
    known = read_json(cache / KNOWN) if (cache / KNOWN).is_file() else {}
    for name, files in known.items() if isinstance(known, dict) else ():
        folder = cache / Path(name).name
        if folder.is_dir() and files != {n: list(f) for n, f in folder_facts(folder).items()}:
            shutil.rmtree(folder)


def record_cache(cache: Path) -> None:
    """Note what a directory of kept kernels holds."""
    held = {folder.name: folder_facts(folder) for folder in sorted(cache.iterdir()) if folder.is_dir()}
    (cache / KNOWN).write_text(json.dumps(held))
