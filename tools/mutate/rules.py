"""Mutants by rule: one small change of the text each."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Args:
        path: of the file, below the package. line: the text of the line where it is changed, and column: how far into it.
        rule: what kind of change. before, after: the text there.
        offset: of `before` in the file.
    """

    path: str
    line: str
    column: int
    rule: str
    before: str
    after: str
    offset: int

    @classmethod
    def at(cls, path: str, source: str, offset: int, rule: str, before: str, after: str) -> Mutant:
        """The change of `before` at this offset of a file's text."""
        start = source.rfind("\n", 0, offset) + 1
        line = source[start:].partition("\n")[0]
        return cls(path, line.strip(), max(0, offset - start - (len(line) - len(line.lstrip()))), rule, before, after, offset)

    @property
    def name(self) -> str:
        """What tables and results call it; the same wherever the line moves to."""
        change = f"{_short(self.before)} -> {_short(self.after)}"
        return (
            f"{self.path}: {change}"
            if _short(self.line) in change
            else f"{self.path}: {change} at {self.column} of {self.line[:90]}"
        )

    def applied(self, source: str) -> str:
        """The file's text with the change."""
        end = self.offset + len(self.before)
        assert source[self.offset : end] == self.before, self.name
        return source[: self.offset] + self.after + source[end:]


def _short(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:70] or "(nothing)"


def mutants(root: Path, path: str, most: int, functions: tuple[str, ...] = ()) -> list[Mutant]:
    """At most so many mutants of a file, every rule in turn, always the same ones; of Python's those in `functions`, if any."""
    source = (root / path).read_text(encoding="utf-8")
    found = list(_python(path, source, functions) if path.endswith(".py") else _cpp(path, source))
    draw = random.Random(path)
    draw.shuffle(found)
    by_rule: dict[str, list[Mutant]] = {}
    for mutant in found:
        by_rule.setdefault(mutant.rule, []).append(mutant)
    picked: list[Mutant] = []
    while len(picked) < most and any(by_rule.values()):
        picked.extend(rest.pop() for rest in by_rule.values() if rest)
    return picked[:most]


_COMPARE = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!=")}
_BINARY = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Div: ("/", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.Mod: ("%", "//"),
}
_SWAPPED = {"maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max"}
_WRITES = ("store", "write_rows", "write_lse", "write_nothing", "copy_")


def _python(path: str, source: str, functions: tuple[str, ...]) -> Iterator[Mutant]:
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def at(node: ast.AST, rule: str, after: str, first: int | None = None, before: str | None = None) -> Mutant:
        offset = starts[node.lineno - 1] + node.col_offset if first is None else first  # type: ignore[attr-defined]
        text = before if before is not None else ast.get_source_segment(source, node) or ""
        return Mutant.at(path, source, offset, rule, text, after)

    def between(left: ast.expr, right: ast.expr, old: str, new: str, rule: str, node: ast.AST) -> Iterator[Mutant]:
        begin = starts[(left.end_lineno or 1) - 1] + (left.end_col_offset or 0)
        gap = source[begin : starts[right.lineno - 1] + right.col_offset]
        if gap.count(old) == 1:
            yield at(node, rule, new, begin + gap.index(old), old)

    for node in _computing(ast.parse(source), functions):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARE and len(node.ops) == 1:
            yield from between(node.left, node.comparators[0], *_COMPARE[type(node.ops[0])], "comparison", node)
        elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            yield from between(node.left, node.right, *_BINARY[type(node.op)], "operator", node)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            yield at(node, "factor dropped", ast.get_source_segment(source, node.left) or "")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
            yield at(node, "negation dropped", ast.get_source_segment(source, node.operand) or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, int) and not isinstance(node.value, bool):
            yield at(node, "constant", str(node.value + 1))
        elif isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield at(node, "constant", str(node.value * 1.02 or 1.0))
        elif isinstance(node, ast.Attribute) and node.attr in _SWAPPED:
            end = starts[(node.end_lineno or 1) - 1] + (node.end_col_offset or 0)
            yield at(node, "maximum or minimum", _SWAPPED[node.attr], end - len(node.attr), node.attr)
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg == "mask" and not isinstance(keyword.value, ast.Constant):
                    yield at(keyword.value, "mask dropped", "None")
        elif isinstance(node, ast.AugAssign):
            yield at(node, "step dropped", "pass")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = node.value.func
            if (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) in _WRITES:
                yield at(node, "write dropped", "pass")
        elif isinstance(node, ast.BoolOp):
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            yield from between(node.values[0], node.values[1], f" {old} ", f" {new} ", "logic", node)


_SKIPPED = (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr, ast.AnnAssign, ast.ClassDef)


def _computing(tree: ast.AST, functions: tuple[str, ...]) -> Iterator[ast.AST]:
    """The nodes inside functions that compute: no decorators, defaults, annotations, docstrings, messages."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.FunctionDef):
            for statement in node.body:
                yield from walk(statement)
            return
        if isinstance(node, _SKIPPED) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            return
        yield node
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    for top in ast.iter_child_nodes(tree):
        if isinstance(top, ast.FunctionDef) and (not functions or top.name in functions):
            yield from walk(top)


_CPP = (
    ("comparison", r" < ", " <= "),
    ("comparison", r" <= ", " < "),
    ("comparison", r" > ", " >= "),
    ("comparison", r" >= ", " > "),
    ("comparison", r" == ", " != "),
    ("operator", r" \+ ", " - "),
    ("operator", r" - ", " + "),
    ("operator", r" \* ", " + "),
    ("operator", r" / ", " * "),
    ("operator", r" % ", " / "),
    ("step dropped", r" \+= ", " = "),
    ("logic", r" && ", " || "),
    ("logic", r" \|\| ", " && "),
    ("constant", r"\b0\.0f\b", "1.0f"),
    ("constant", r"\b1\.0f\b", "1.02f"),
    ("constant", r"\b0\b(?!\.)", "1"),
    ("constant", r"\b2\b(?!\.)", "3"),
    ("maximum or minimum", r"maximum<W>", "minimum_<W>"),
    ("type", r"int64_t", "int32_t"),
)


def _cpp(path: str, source: str) -> Iterator[Mutant]:
    """Of the lines outside preprocessor blocks, comments, templates' heads and constants' definitions."""
    offset, depth = 0, 0
    for line in source.splitlines(keepends=True):
        text = line.strip()
        depth += text.startswith(("#if", "#ifdef")) - text.startswith("#endif")
        code = line.split("//")[0]
        plain = text.startswith(("#", "//", "template", "constexpr", "static_assert", "using", "namespace", "extern", "asm"))
        if depth == 0 and not plain and "(" in code + ";" and line.startswith(" "):
            for rule, pattern, after in _CPP:
                for match in re.finditer(pattern, code):
                    if "minimum_" not in after:
                        yield Mutant.at(path, source, offset + match.start(), rule, match.group(), after)
        offset += len(line)
