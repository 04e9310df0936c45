"""Every name that users rely on, read from the package that is first on the path.

    python tools/public_names.py > tests/data/public-names.json

A test holds the package to the committed list: names may be added, none may go. Read from the sources and the running command
line, wherever a module lies, so that a release can be compared with any other:

    PYTHONPATH=OTHER_CHECKOUT python tools/public_names.py
"""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

import attnkit

PACKAGE = Path(attnkit.__file__).resolve().parent
TOOLS = Path(__file__).resolve().parent
TREE = TOOLS.parent / "tests" / "data" / "trees" / "a100"

IMPORTED = ("attnkit.api", "attnkit.spec", "attnkit.errors", "attnkit.select", "attnkit.profiles")
"""Modules that users import."""

REFERENCED = ("attnkit.cli:main", "attnkit.engines.vllm_plugin:register", "attnkit.kernels.aot_cache:BakedCacheManager")
"""Paths that stand in installed metadata and in environment variables (TRITON_CACHE_MANAGER)."""

RUN = ("attnkit.cli", "attnkit.publish")
"""Modules that images and playbooks run with python -m."""

JSON_COMMANDS = (
    ("detect", "--root", str(TREE), "--json"),
    ("backends", "--root", str(TREE), "--json"),
    ("select", "--device", "sm_75", "--json"),
    ("resolve", "FLASH_ATTN", "--vllm", "0.33.0", "--json"),
)


def collect() -> dict[str, list[str]]:
    """Kind of name to the sorted names."""
    schema = _model("BootReport").model_json_schema(mode="serialization", by_alias=True)
    found = {
        "imports": _imports(),
        "runnable modules": iter(RUN),
        "commands": _commands(_root_command(), "attnkit"),
        "environment variables": _in_sources(r"\b(ATTNKIT_[A-Z_]*[A-Z])\b", TOOLS),
        "events": _in_sources(r'\.emit\(\s*"([a-z.]+)"'),
        "exit codes": (f"{name}={value}" for name, value in vars(attnkit.errors).items() if name.startswith("EXIT_")),
        "metrics": _in_sources(r'[Gg]auge\(\s*"(attnkit_\w+)"'),
        "boot report": _schema_fields(schema, schema.get("$defs", {})),
        "readiness file": iter(_model("Readiness").model_fields),
        "JSON output": _json_output(),
    }
    return {kind: sorted(set(names)) for kind, names in found.items()}


def _sources() -> Iterator[tuple[str, str]]:
    """Name and text of each module."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path.read_text(encoding="utf-8")


def _in_sources(pattern: str, *more: Path) -> Iterator[str]:
    for _, text in _sources():
        yield from re.findall(pattern, text)
    for path in (path for folder in more for path in folder.rglob("*.py")):
        yield from re.findall(pattern, path.read_text(encoding="utf-8"))


def _model(name: str) -> Any:
    """The pydantic model of that name, wherever it is defined."""
    module = next(module for module, text in _sources() if f"class {name}(" in text)
    return getattr(importlib.import_module(module), name)


def _imports() -> Iterator[str]:
    yield from REFERENCED
    for name in IMPORTED:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", None) or _defined(Path(str(module.__file__))):
            yield f"{name}:{public}"


def _defined(path: Path) -> Iterator[str]:
    """What a module defines at its top without an underscore; what it merely imports is not its own."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if not name.startswith("_"))


def _root_command() -> Any:
    return typer.main.get_command(importlib.import_module("attnkit.cli").main)


def _commands(command: Any, path: str) -> Iterator[str]:
    """Commands, their arguments and options, and the variables that stand for these."""
    yield path
    for parameter in command.params:
        variables = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or ()
        for name in _accepted([*parameter.opts, *parameter.secondary_opts]):
            yield f"{path} {name}"
            yield from (f"{path} {name} = ${variable}" for variable in variables)
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{path} {name}")


def _accepted(names: list[str]) -> list[str]:
    """The names, and the old ones that are still taken."""
    try:
        from attnkit.cli.group import RENAMED
    except ImportError:  # a release without old names
        return names
    return [*names, *(f"--{old}" for old, new in RENAMED.items() if f"--{new}" in names)]


def _schema_fields(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> Iterator[str]:
    """decision.rejected[].backend and the like."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for part in schema.get("anyOf", ()):
        yield from _schema_fields(part, definitions, path)
    if "items" in schema:
        yield from _schema_fields(schema["items"], definitions, f"{path}[]")
    for name, inner in schema.get("properties", {}).items():
        field = f"{path}.{name}" if path else name
        yield field
        yield from _schema_fields(inner, definitions, field)


def _json_output() -> Iterator[str]:
    for arguments in JSON_COMMANDS:
        done = CliRunner().invoke(importlib.import_module("attnkit.cli").main, arguments)
        yield from (f"{arguments[0]} {path}" for path in _keys(json.loads(done.stdout), ""))


def _keys(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _keys(item, f"{path}[]")
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield f"{path}.{name}"
            yield from _keys(inner, f"{path}.{name}")


if __name__ == "__main__":
    print(json.dumps(collect(), indent=1, ensure_ascii=False))
