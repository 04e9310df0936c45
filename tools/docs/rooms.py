"""docs/development/packages.svg: the packages of attnkit and the direction of imports, from the import-linter contract."""

from __future__ import annotations

import ast
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[2]
WIDTH, LEFT, RIGHT, ROW, GAP = 940, 20, 70, 68, 12
UNITS = 6.6
"""Width of a character at the size of the summaries, about."""


def layers() -> list[list[str]]:
    """Rows of packages, the importing ones first."""
    tomllib = import_module("tomllib")  # of Python 3.11 and newer, as the locked environments are; typed as for 3.10
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts: list[dict[str, Any]] = document["tool"]["importlinter"]["contracts"]
    contract = next(c for c in contracts if c["type"] == "layers")
    rows = [row.replace(":", "|").split("|") for row in contract["layers"]]
    return [[name.strip().strip("()").removeprefix("attnkit.") for name in row] for row in rows]


def summary(name: str) -> str:
    """The first sentence of a package's docstring, without what follows a colon, semicolon or full stop."""
    path = ROOT / "attnkit" / name
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    return " ".join(text.split()).rstrip(".")


def svg() -> str:
    """The picture."""
    rows = layers()
    height = len(rows) * (ROW + GAP) + GAP + 8
    label = "attnkit's packages from cli to errors; imports go downward only"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" role="img"'
        f' aria-label="{label}">',
        '  <defs><marker id="tip" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#475569"/></marker></defs>',
        f'  <rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    inner = WIDTH - LEFT - RIGHT
    for index, row in enumerate(rows):
        y = GAP + index * (ROW + GAP)
        width = (inner - GAP * (len(row) - 1)) / len(row)
        for column, name in enumerate(row):
            x = LEFT + column * (width + GAP)
            lines += [
                f'  <rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{ROW}" rx="8" fill="#f1f5f9" stroke="#334155"/>',
                f'  <text x="{x + 12:.0f}" y="{y + 22}" font-size="15" font-weight="600" fill="#0f172a">{escape(name)}</text>',
                *(
                    f'  <text x="{x + 12:.0f}" y="{y + 41 + 17 * line}" font-size="12.5" fill="#334155">{escape(text)}</text>'
                    for line, text in enumerate(_wrapped(summary(name), width - 24))
                ),
            ]
    x = WIDTH - RIGHT / 2
    lines += [
        f'  <path d="M{x:.0f} {GAP} V{height - 26}" stroke="#475569" stroke-width="2" marker-end="url(#tip)"/>',
        f'  <text x="{x - 8:.0f}" y="{height / 2:.0f}" font-size="13" fill="#334155" text-anchor="middle"'
        f' transform="rotate(-90 {x - 8:.0f} {height / 2:.0f})">imports go down</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: float) -> list[str]:
    """The text in at most two lines, with an ellipsis where words are missing."""
    return textwrap.wrap(text, int(width / UNITS), max_lines=2, placeholder=" …")
