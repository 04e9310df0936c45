"""The local wheel folder, offered to pip so that its wheels win.

pip ranks a candidate whose hash it knows above one whose hash it does not, and a folder lists no hashes: beside an index, a
wheel in a plain `--find-links` folder loses against a release of the same version. A page of links with hashes fixes that.
"""

from __future__ import annotations

import hashlib
import os
from html import escape
from pathlib import Path
from urllib.parse import quote

PAGE = "links.html"


class WheelFolderError(Exception):
    """ATTNKIT_WHEELS names something that is not a directory."""


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    seen = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            seen.update(chunk)
    return seen.hexdigest()


def wheel_folder() -> Path | None:
    """The local wheel folder: ATTNKIT_WHEELS, else PIP_FIND_LINKS where that is a directory, else None."""
    chosen = os.environ.get("ATTNKIT_WHEELS")
    if chosen:
        if not Path(chosen).is_dir():
            raise WheelFolderError(f"ATTNKIT_WHEELS={chosen}: not a directory")
        return Path(chosen)
    links = os.environ.get("PIP_FIND_LINKS", "")
    return Path(links) if links and Path(links).is_dir() else None


def write_page(folder: Path | None, page: Path, *, relative: bool) -> None:
    """Write a page of links to every wheel in the folder, each with its sha256; an empty page without a folder.

    Args:
        folder: where the wheels are.
        page: the file to write.
        relative: link to files beside the page (the folder is mounted elsewhere) instead of to where they are now.
    """
    lines = ["<!DOCTYPE html>", "<html><head><title>wheels</title></head><body>"]
    for wheel in sorted(folder.glob("*.whl")) if folder else []:
        address = quote(wheel.name) if relative else wheel.resolve().as_uri()
        lines.append(f'<a href="{escape(address)}#sha256={sha256(wheel)}">{escape(wheel.name)}</a>')
    page.write_text("\n".join([*lines, "</body></html>", ""]), encoding="utf-8")
