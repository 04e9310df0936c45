"""Filters: findings and results of many nodes as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DOCUMENTATION = r"""
name: fleet_table
short_description: Rows as the lines of a table
version_added: 0.1.0
description: Lines up the columns of a list of dictionaries, first a line with the column names.
options:
  _input:
    description: The rows.
    type: list
    elements: dict
    required: true
  columns:
    description: Which keys to show, in this order.
    type: list
    elements: str
    required: true
author:
  - The attnkit authors
"""


def fleet_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """The rows as lines of equal width; a value that is missing or null is shown as a dash, false as NO."""

    def shown(value: Any) -> str:
        if value is None or value == "":
            return "-"
        if isinstance(value, bool):
            return "ok" if value else "NO"
        return f"{value:.1f}" if isinstance(value, float) else str(value)

    cells = [[str(c) for c in columns], *([shown(row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


class FilterModule:
    """The filters of this collection."""

    def filters(self) -> dict[str, Any]:
        """Names and functions."""
        return {"fleet_table": fleet_table}
