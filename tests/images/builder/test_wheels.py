"""The local wheel folder: a wheel in it wins over the index, and a folder that does not exist is named."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from images.builder import wheels


def _wheel(folder: Path, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"thing-{version}-py3-none-any.whl"
    info = f"thing-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_local_wheel_wins_over_the_index_only_through_the_page(tmp_path: Path) -> None:
    """pip prefers a candidate whose hash it knows: the reason for the page of links."""
    index, local = tmp_path / "index", tmp_path / "local"
    _wheel(index, "1.0")
    ours = _wheel(local, "1.0+cpu")
    wheels.write_page(index, tmp_path / "index.html", relative=False)
    wheels.write_page(local, local / wheels.PAGE, relative=True)
    hashes = [
        part
        for page in (tmp_path / "index.html", local / wheels.PAGE)
        for part in page.read_text().split('"')
        if "#sha256" in part
    ]
    pinned = tmp_path / "lock.txt"
    pinned.write_text("thing==1.0 " + " ".join(f"--hash=sha256:{h.split('=')[1]}" for h in hashes), encoding="utf-8")

    def chosen(links: Path) -> str:
        command = [sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--dry-run", "--quiet", "--report", "-"]
        command += ["--ignore-installed", "--no-deps", "--require-hashes", "--find-links", str(tmp_path / "index.html")]
        done = subprocess.run(
            [*command, "--find-links", str(links), "-r", str(pinned)], capture_output=True, text=True, check=True
        )
        return str(json.loads(done.stdout)["install"][0]["metadata"]["version"])

    assert chosen(local / wheels.PAGE) == "1.0+cpu"
    _wheel(tmp_path / "plain", "1.0+cpu")
    assert chosen(tmp_path / "plain") == "1.0", "pip now ranks by version alone: the page of links can go"
    assert ours.name.replace("+", "%2B") in (local / wheels.PAGE).read_text(encoding="utf-8")


def test_a_wheel_folder_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATTNKIT_WHEELS", str(tmp_path / "none"))
    with pytest.raises(wheels.WheelFolderError, match=r"ATTNKIT_WHEELS=.*none: not a directory"):
        wheels.wheel_folder()
