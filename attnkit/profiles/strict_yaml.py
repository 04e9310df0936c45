"""Reading a small YAML file into a pydantic model, with errors that point at the line and name what is allowed.

Refused: a key twice (YAML libraries silently let the last one win), tags beyond JSON's kinds of values, and what would take
unbounded time or memory (size, depth, aliases that multiply).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from attnkit.errors import UsageError, did_you_mean
from attnkit.jsonio import MAX_INTEGER, read_text, shorten

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

M = TypeVar("M", bound=BaseModel)


MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_NODES = 50_000
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}


def read_model(path: Path, model: type[M], context: dict[str, Any] | None = None) -> M:
    """The file as `model`, whose validators see `context`.

    Raises:
        UsageError: unreadable, not YAML, a key twice, an unknown field, a wrong type or value; file, line and field are named.
    """
    node = _compose(path)
    try:
        return model.model_validate(yaml.constructor.SafeConstructor().construct_document(node), context=context)
    except ValidationError as error:
        raise UsageError("\n".join(_describe(path, node, model, e) for e in error.errors())) from None
    except yaml.YAMLError as error:
        raise UsageError(_syntax(path, error)) from None


def read_mapping(path: Path) -> dict[Any, Any]:
    """The file's mapping, as it stands, without a model.

    Raises:
        UsageError: unreadable, not YAML, a key twice, or no mapping.
    """
    try:
        mapping: dict[Any, Any] = yaml.constructor.SafeConstructor().construct_document(_compose(path))
    except yaml.YAMLError as error:
        raise UsageError(_syntax(path, error)) from None
    return mapping


def _compose(path: Path) -> Any:
    text = read_text(path, MAX_BYTES)
    try:
        _check_depth(path, text)
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise UsageError(_syntax(path, error)) from None
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}:1: is not a mapping of fields to values")
    _check_nodes(path, node)
    return node


def _syntax(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{path}:{mark.line + 1}: not YAML: {problem}" if mark else f"{path}: not YAML: {problem}"


def _check_depth(path: Path, text: str) -> None:
    """Before anything recursive sees the text: events come one after the other."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise UsageError(f"{path}:{line}: nested deeper than {MAX_DEPTH} levels")


def _check_nodes(path: Path, root: yaml.Node) -> None:
    """Every node as often as aliases repeat it; one inside itself is as deep as it gets."""
    stack, count = [(root, 1)], 0
    while stack:
        node, depth = stack.pop()
        where = f"{path}:{node.start_mark.line + 1}"
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            raise UsageError(f"{where}: its aliases come to more than {MAX_NODES} values, or {MAX_DEPTH} levels")
        if isinstance(node, yaml.MappingNode):
            _refuse_duplicates(path, node)
            stack += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            stack += [(part, depth + 1) for part in node.value]
        else:
            _check_scalar(where, node)
        if node.tag not in _TAGS:
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise UsageError(f"{where}: {kind} is not read; quote the value to make it text")


def _check_scalar(where: str, node: yaml.Node) -> None:
    kind = node.tag.rpartition(":")[2]
    if node.tag not in _TAGS or kind == "merge":
        return
    try:
        value = yaml.constructor.SafeConstructor().construct_document(node)
    except (yaml.YAMLError, ValueError, LookupError, ArithmeticError):
        raise UsageError(f"{where}: {shorten(node.value)!r} is no {kind}") from None
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise UsageError(f"{where}: {shorten(node.value)} has more than 64 bits")


def _refuse_duplicates(path: Path, node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{path}:{line}: a field's name must be text")
        if key.value in seen:
            raise UsageError(f"{path}:{line}: field {key.value!r} is given twice; first in line {seen[key.value]}")
        seen[key.value] = line


def _describe(path: Path, root: yaml.Node, model: type[BaseModel], error: Any) -> str:
    location = tuple(part for part in error["loc"] if part != "[key]")
    field = ".".join(str(part) for part in location)
    kind, where = error["type"], f"{path}:{_line(root, location)}: "
    if kind == "extra_forbidden":
        allowed = _fields(model, location[:-1])
        return f"{where}unknown field {field!r}.{did_you_mean(str(location[-1]), allowed)} Allowed: {', '.join(allowed)}"
    if kind == "missing":
        return f"{where}field {field!r} is missing; it is required"
    got = shorten(f"{error['input']!r}", 200)
    if kind == "literal_error":
        allowed = [part.strip("'") for part in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return (
            f"{where}{field}: {got} is not allowed.{did_you_mean(str(error['input']), allowed)} Allowed: {', '.join(allowed)}"
        )
    message = str(error["ctx"]["error"]) if kind == "value_error" else f"{got}: {error['msg'][0].lower()}{error['msg'][1:]}"
    return f"{where}{field}: {message}" if field else f"{where}{message}"


def _line(node: yaml.Node, location: Sequence[str | int]) -> int:
    """The line of a field: of its key where it has one, else of the nearest thing around it."""
    line = node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _fields(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The fields of the model at `location` inside `model`."""
    current: Any = model
    for part in location:
        field = current.model_fields.get(str(part)) if isinstance(current, type) and issubclass(current, BaseModel) else None
        current = field.annotation if field else _value_model(current) or current
    current = current if isinstance(current, type) and issubclass(current, BaseModel) else _value_model(current) or model
    return list(current.model_fields)


def _value_model(annotation: Any) -> type[BaseModel] | None:
    """The model inside dict[str, Model] or Model | None."""
    arguments = getattr(annotation, "__args__", ())
    return next((a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)), None)
