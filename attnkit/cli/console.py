"""The console that every table is printed on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.table import Table

from attnkit.wording import printable

MAX_WIDTH = 100


class PlainConsole(Console):
    """Text is text: no markup in it, and control characters are shown instead of sent."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `Console.render`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def console() -> Console:
    """A console on stdout: 80 columns where it is no terminal, at most 100 where it is."""
    made = PlainConsole(highlight=False, markup=False, emoji=False)
    made.width = min(made.width, MAX_WIDTH)
    return made


def columns(*names: str, **options: Any) -> Table:
    """A table without lines, with these columns; numbers are not broken."""
    table = Table(box=None, pad_edge=False, header_style="bold", **options)
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name in ("error", "bound", "share"))
    return table
