"""Tables and lists of nodes for a terminal, as narrow as it is."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

WIDTH = 79


def table(rows: Sequence[Sequence[str]], columns: Mapping[str, str], width: int = WIDTH) -> list[str]:
    """Rows below the titles of their columns.

    Args:
        rows: a text a column.
        columns: title -> "wrap" if its cells may take several lines, "keep" if not, "right" for numbers.
        width: of the terminal, in characters.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    widths, gap = _fitted(rows, columns, width)
    made = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for (title, how), own in zip(columns.items(), widths, strict=True):
        justify: Literal["left", "right"] = "right" if how == "right" else "left"
        made.add_column(Text(title), overflow="fold", justify=justify, width=own)
    for row in rows:
        made.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(made)
    return [line.rstrip() for line in capture.get().splitlines()]


def _fitted(rows: Sequence[Sequence[str]], columns: Mapping[str, str], width: int) -> tuple[list[int], int]:
    """Widths of the columns and of the gap between them: the last columns are wrapped first, words broken only at need."""
    from rich.cells import cell_len

    cells = list(zip(columns, *rows, strict=True))
    widths = [max(map(cell_len, column)) for column in cells]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= width else 1
    excess = sum(widths) + gap * (len(widths) - 1) - width
    wraps = [i for i, how in enumerate(columns.values()) if how == "wrap"]
    for i in reversed(wraps):
        longest = max(cell_len(word) for text in cells[i] for word in text.split() or [""])
        cut = max(0, min(excess, widths[i] - longest))
        widths[i] -= cut
        excess -= cut
    for _ in range(excess):
        widths[max(wraps, key=lambda i: widths[i])] -= 1
    return widths, gap


def wrapped(text: str, width: int = WIDTH, indent: str = "    ") -> list[str]:
    """A text as lines, those after the first indented."""
    from rich.console import Console
    from rich.text import Text

    lines = Text(text).wrap(Console(width=width), width - len(indent), overflow="fold")
    return [(indent if i else "") + line.plain.rstrip() for i, line in enumerate(lines)]


def folded(names: Iterable[str]) -> str:
    """Names of nodes as Slurm and pdsh write them: gpu-1, gpu-2, gpu-4 -> gpu-[1-2,4]."""
    groups: dict[tuple[str, str, int], dict[int, str]] = {}
    for name in dict.fromkeys(names):
        found = re.fullmatch(r"(.*?)([0-9]{1,9})([^0-9]*)", name, re.DOTALL)
        if found is None:
            groups[(name, "", -1)] = {}
            continue
        digits = found[2]
        # Numbers with leading zeros belong together only with those of the same length.
        padded = len(digits) if digits.startswith("0") and len(digits) > 1 else 0
        groups.setdefault((found[1], found[3], padded), {})[int(digits)] = digits
    _join_padded(groups)
    return ", ".join(_written(prefix, suffix, numbers) for (prefix, suffix, _), numbers in groups.items())


def _join_padded(groups: dict[tuple[str, str, int], dict[int, str]]) -> None:
    """08 and 09 belong with 10: a number as long as the padded ones is one of them."""
    for (prefix, suffix, padded), numbers in list(groups.items()):
        if padded > 0 and (others := groups.get((prefix, suffix, 0))):
            moved = {number: digits for number, digits in others.items() if len(digits) == padded}
            numbers |= moved
            for number in moved:
                del others[number]
            if not others:
                del groups[(prefix, suffix, 0)]


def _written(prefix: str, suffix: str, numbers: Mapping[int, str]) -> str:
    if len(numbers) < 2:
        return prefix + "".join(numbers.values()) + suffix
    ranges: list[list[int]] = [[min(numbers)]]
    for before, number in pairwise(sorted(numbers)):
        if number == before + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    shown = (numbers[r[0]] if len(r) == 1 else f"{numbers[r[0]]}-{numbers[r[-1]]}" for r in ranges)
    return f"{prefix}[{','.join(shown)}]{suffix}"
