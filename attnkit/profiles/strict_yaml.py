"""Reading a small YAML file into a pydantic model, with errors that point at the line and name what is allowed.

Duplicate keys are refused, which YAML libraries silently let the last one win.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from attnkit.errors import UsageError, did_you_mean

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

M = TypeVar("M", bound=BaseModel)


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


def _compose(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    try:
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise UsageError(_syntax(path, error)) from None
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}:1: is not a mapping of fields to values")
    _refuse_duplicates(path, node)
    return node


def _syntax(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{path}:{mark.line + 1}: not YAML: {problem}" if mark else f"{path}: not YAML: {problem}"


def _refuse_duplicates(path: Path, node: yaml.Node) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(path, item)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.value in seen:
            raise UsageError(f"{path}:{line}: field {key.value!r} is given twice; first in line {seen[key.value]}")
        seen[key.value] = line
        _refuse_duplicates(path, value)


def _describe(path: Path, root: yaml.Node, model: type[BaseModel], error: Any) -> str:
    location = tuple(part for part in error["loc"] if part != "[key]")
    field = ".".join(str(part) for part in location)
    kind, where = error["type"], f"{path}:{_line(root, location)}: "
    if kind == "extra_forbidden":
        allowed = _fields(model, location[:-1])
        return f"{where}unknown field {field!r}.{did_you_mean(str(location[-1]), allowed)} Allowed: {', '.join(allowed)}"
    if kind == "missing":
        return f"{where}field {field!r} is missing; it is required"
    got = f"{error['input']!r}"
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
