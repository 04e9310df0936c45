"""Dataclasses to plain JSON values: tuples and sets to lists (sets sorted, so that output is stable), paths to text,
numbers that JSON cannot hold (NaN, infinities) to null."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

from attnkit.errors import UsageError


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


RUN_DIRECTORY = Path("/run/attnkit")


def now() -> str:
    """The time in UTC, RFC 3339."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` in one step: a reader sees the old text or the new one, never half of it.

    Raises:
        UsageError: the directory or the file cannot be written; the message names the path.
    """
    with _beside(path) as new:
        new.write_text(text, encoding="utf-8")
        new.chmod(0o644)
        new.replace(path)


def check_writable(path: Path) -> None:
    """Make sure that `write_atomically` can write `path`, without touching what is there.

    Raises:
        UsageError: it cannot; the message names the path.
    """
    with _beside(path):
        return


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new file in the directory of `path`, gone afterwards; what goes wrong with it becomes a UsageError about `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
