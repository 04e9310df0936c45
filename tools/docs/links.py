"""A hook of mkdocs: links into the repository must lead to a file or folder that exists (`--strict` makes it an error)."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"https://github\.com/attnkit/attnkit/(?:blob|tree)/main/([^)\s#\"'>`]+)")
LOG = logging.getLogger("mkdocs.hooks.links")


def missing(markdown: str) -> list[str]:
    """Paths that a page links to and the repository does not have."""
    return [path for path in LINK.findall(markdown) if not (ROOT / path).exists()]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Warn about each missing path; the text stays as it is."""
    for path in missing(markdown):
        LOG.warning("%s links to %s, which the repository does not have", page.file.src_uri, path)
    return markdown
