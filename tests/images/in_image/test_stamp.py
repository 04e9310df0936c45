"""What makes our layers the same on every build: one time for every file, and bytecode in order."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from images.in_image import stamp


def _tree(folder: Path) -> Path:
    package = folder / "opt" / "lib" / "thing"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("NAMES = {'a', 'b', 'c'}\nfrom . import other\n", encoding="utf-8")
    (package / "other.py").write_text("def f(x):\n    return x in {'one', 'two', 'three'}\n", encoding="utf-8")
    (package / "link").symlink_to("nowhere")
    return folder


def _content(tree: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for path in sorted(tree.rglob("*")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[path.relative_to(tree).as_posix()] = (path.lstat().st_mtime_ns, digest)
    return found


def _stamp(tree: Path, seed: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, stamp.__file__, str(tree), "--compile", str(tree / "opt")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": seed})


def test_two_trees_of_the_same_content_become_the_same(tmp_path: Path) -> None:
    first, second = _tree(tmp_path / "first"), _tree(tmp_path / "second")
    os.utime(second / "opt" / "lib" / "thing" / "other.py", (1_000_000_000, 1_000_000_000))
    assert _content(first) != _content(second)
    for tree in (first, second):
        done = _stamp(tree, "0")
        assert done.returncode == 0, done.stderr
        assert "2 modules compiled" in done.stdout
    assert _content(first) == _content(second)
    assert {time for time, _ in _content(first).values()} == {stamp.MOMENT * 10**9}


def test_compiling_with_a_random_hash_seed_is_refused(tmp_path: Path) -> None:
    done = _stamp(_tree(tmp_path / "tree"), "random")
    assert done.returncode == 2
    assert "PYTHONHASHSEED=0" in done.stderr
