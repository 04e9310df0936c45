"""The locks: complete, hashed, free of index addresses, and in step with what they are made from."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

from images import IMAGES, ROOT
from images.builder import lock, platforms

FILES = [path for entry in lock.LOCKS.values() for path in (entry.target, entry.cuda_target) if path.is_file()]


def _names(path: Path) -> set[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {Requirement(line).name.lower().replace("_", "-") for line in lines if line and not line.startswith(("#", "-"))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_requirement_is_pinned_and_hashed(path: Path) -> None:
    blocks = lock.blocks(path.read_text(encoding="utf-8"))
    assert len(blocks) > (0 if path.stem in ("sbom", "bundle") else 10)
    for key, block in blocks.items():
        assert re.match(r"^[a-z0-9.-]+==[^\s;]+( ; .+)?$", key), key
        assert lock.HASH.search(block), key


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_lock_names_an_index(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host|@ file", text)


@pytest.mark.parametrize("name", lock.LOCKS)
def test_everything_asked_for_is_locked(name: str) -> None:
    entry = lock.LOCKS[name]
    locked = set(platforms.pins(entry.target))
    assert lock.direct(entry) <= locked


def test_attnkits_own_requirements_are_those_of_the_package(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (IMAGES / "requirements" / "attnkit.in").read_text(encoding="utf-8").splitlines()
    asked = {str(Requirement(line)) for line in lines if line and not line.startswith("#")}
    assert asked == {str(Requirement(text)) for text in project["dependencies"]}


def test_the_cuda_libraries_are_apart() -> None:
    for name, library in (("cpu", "cu13"), ("tests", "cu13"), ("tpu", "cu13"), ("ipex", "cu12")):
        entry = lock.LOCKS[name]
        main, cuda = set(platforms.pins(entry.target)), set(platforms.pins(entry.cuda_target))
        assert not main & cuda
        assert f"nvidia-cudnn-{library}" in cuda
        assert not {n for n in main if n.startswith("nvidia-") and n != "nvidia-ml-py"}


def test_torch_carries_the_hashes_of_both_builds() -> None:
    """An index's releases of one torch version and at least one +cpu wheel, which only a CPU index or a wheel folder has."""
    known = {
        "2.13.0": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
        "2.8.0": "cb06175284673a581dd91fb1965662ae4ecaba6e5c357aa0ea7bb8b84b6b7eeb",
    }
    for name, version in (("cpu", "2.13.0"), ("tests", "2.13.0"), ("tpu", "2.13.0"), ("ipex", "2.8.0")):
        blocks = lock.blocks(lock.LOCKS[name].target.read_text(encoding="utf-8"))
        block = next(text for key, text in blocks.items() if key == f"torch=={version}")
        assert known[version] in block
        assert len(lock.HASH.findall(block)) > 5


def test_splitting_a_resolution_keeps_known_hashes_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "ROOT", tmp_path)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("ATTNKIT_WHEELS", raising=False)
    (tmp_path / "x.in").write_text("torch\ntriton\n", encoding="utf-8")
    a, b, c = ("sha256:" + letter * 64 for letter in "abc")
    (tmp_path / "x.txt").write_text(f"torch==1.0 \\\n    --hash={b}\n", encoding="utf-8")
    fresh = f"nvidia-x==1 \\\n    --hash={c}\ntorch==1.0 \\\n    --hash={a}\ntriton==2 \\\n    --hash={c}\n"
    main, cuda = lock.split(lock.Lock("x.in", "3.11", universal=False), fresh)
    assert f"torch==1.0 \\\n    --hash={a} \\\n    --hash={b}\n" in main
    assert "triton==2" in main
    assert "nvidia-x==1" in cuda
    assert "nvidia-x" not in main


def test_an_unknown_lock_is_a_usage_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "images.builder.lock", "test"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert f"unknown lock 'test'. Did you mean tests? Known: {', '.join(lock.LOCKS)}" in done.stderr
