#!/usr/bin/env python3
"""Makes a tree the same on every build: `stamp.py TREE [--compile DIR …]`.

Every file, directory and link gets one fixed time, and Python's bytecode is compiled again in a fixed order, so that the layer
made from the tree depends on its content alone. Runs in the build stages with the standard library only. A stage collects
what it adds to the image below a folder of its own, stamps it, and `COPY --from=STAGE FOLDER/ /` keeps those times, also of
directories.
"""

from __future__ import annotations

import argparse
import compileall
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

MOMENT = 315532800
"""1980-01-01, the oldest time that a zip archive can hold: every file's, and so what compiled modules name as the source's."""

SHARES = 8
"""Parts that the modules of a folder are compiled in; the same on every machine, whatever its number of cores."""


def entries(tree: Path) -> Iterator[str]:
    """Every path below the tree, then the tree itself; links are not followed."""
    for folder, names, files in os.walk(tree, topdown=False):
        yield from (f"{folder}/{name}" for name in (*names, *files))
    yield str(tree)


def settle(tree: Path) -> int:
    """Set every time that differs from MOMENT; returns how many did. A file with the right time is left alone: changing it
    would copy it from the layer below."""
    count = 0
    for path in entries(tree):
        if os.lstat(path).st_mtime_ns != MOMENT * 10**9:
            os.utime(path, (MOMENT, MOMENT), follow_symlinks=False)
            count += 1
    return count


def compile_in_order(tree: Path, modules: list[Path]) -> int:
    """Compile modules; tracebacks will name the files as they are called when the tree is /. Returns how many compiled."""
    mode = PycInvalidationMode.TIMESTAMP
    return sum(
        bool(compileall.compile_file(path, force=True, quiet=2, invalidation_mode=mode, stripdir=tree, prependdir="/"))
        for path in modules
    )


def compile_all(tree: Path, folder: Path) -> int:
    """Compile every module below the folder and return how many compiled. What a compiled module looks like depends on what
    its process compiled before, so each share has a fixed order and a fresh process."""
    modules = sorted(path for path in folder.rglob("*.py") if path.is_file() and not path.is_symlink())
    shares = [(tree, modules[start::SHARES]) for start in range(SHARES)]
    with multiprocessing.get_context("spawn").Pool(maxtasksperchild=1) as pool:
        return sum(pool.starmap(compile_in_order, shares, chunksize=1))


def main(argv: list[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", type=Path, help="what becomes a layer, as it lies below /")
    parser.add_argument("--compile", type=Path, nargs="*", default=[], metavar="DIR", help="compile the Python modules in here")
    args = parser.parse_args(argv)
    if args.compile and sys.flags.hash_randomization:
        print("error: bytecode is the same every time only with PYTHONHASHSEED=0 in the environment", file=sys.stderr)
        return 2
    for folder in (args.tree, *args.compile):
        if not folder.is_dir():
            print(f"error: no such directory: {folder}", file=sys.stderr)
            return 2
    settled = settle(args.tree)
    compiled = sum(compile_all(args.tree, folder) for folder in args.compile)
    settled += settle(args.tree)
    print(f"stamp: {settled} times set, {compiled} modules compiled below {args.tree}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
