"""tests/ mirrors what it tests: a folder of tests that has no room is a room that moved, or a test that nobody will find."""

from __future__ import annotations

from pathlib import Path

ELSEWHERE = {"packaging"}
"""Folders about the project as a whole: what is in the wheel, in the checkout, in the layout."""
DATA = "data"


def test_every_folder_of_tests_has_a_room(repo_root: Path) -> None:
    tests = repo_root / "tests"
    folders = sorted({path.parent.relative_to(tests) for path in tests.rglob("test_*.py") if DATA not in path.parts})
    assert len(folders) > 20, "this test found no tests"
    lost = [str(folder) for folder in folders if not _room(repo_root, folder)]
    assert not lost, f"no attnkit/, tools/ or top folder of this name: tests/{', tests/'.join(lost)}. Move the tests along"


def _room(root: Path, folder: Path) -> bool:
    """A package or module of attnkit, or a folder of the checkout (tools/…, images/…, docs, examples)."""
    inside = root / "attnkit" / folder
    return folder.parts[0] in ELSEWHERE or inside.is_dir() or inside.with_suffix(".py").is_file() or (root / folder).is_dir()
