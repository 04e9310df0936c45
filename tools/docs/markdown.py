"""What the generated pages share: tables, escaped cells, links to the source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SOURCE = "https://github.com/attnkit/attnkit/blob/main"
"""Files of the repository that are not pages. `tools/docs/links.py` checks that they exist."""


def cell(text: str) -> str:
    """Text that breaks no table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; empty cells become a dash."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(value or '–' for value in row)} |" for row in rows)]


def page(title: str, *lines: str) -> str:
    """A whole page."""
    return "\n".join([f"# {title}", "", *lines]).rstrip("\n") + "\n"
