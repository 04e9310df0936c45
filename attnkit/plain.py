"""Dataclasses to plain JSON values: tuples and sets to lists (sets sorted, so that output is stable), paths to text,
numbers that JSON cannot hold (NaN, infinities) to null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any


def to_plain(value: Any) -> Any:
    """`value` as dicts, lists and scalars. Fields keep their order; an unknown type raises TypeError."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def to_json(value: Any) -> str:
    """Indented JSON of any dataclass, mapping or list."""
    return json.dumps(to_plain(value), indent=2, ensure_ascii=False)
