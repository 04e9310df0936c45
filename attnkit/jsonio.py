"""JSON out and in.

Out: dataclasses to plain values, tuples and sets to lists (sets sorted, so that output is stable), paths to text, numbers that
JSON cannot hold (NaN, infinities) to null. In: one strict reader for files and answers that others wrote.
"""

from __future__ import annotations

import json
import math
import os
import stat
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


MAX_BYTES = 16 * 2**20
MAX_DEPTH = 64
MAX_INTEGER = 2**63


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """The text of a regular file; anything else (a pipe, a device) is refused unopened, as reading it may never end.

    Raises:
        UsageError: absent, no regular file, over `limit` bytes, not UTF-8; the message names the path.
    """
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            raise UsageError(f"{path}: {'is a directory' if stat.S_ISDIR(kind) else 'is not a regular file'}")
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > limit:
        raise UsageError(f"{path}: has more than {limit} bytes, the most that is read")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from None


def read_json(path: Path, limit: int = MAX_BYTES) -> Any:
    """The document in a file; see `read_text` and `parse_json`."""
    return parse_json(read_text(path, limit), str(path))


def parse_json(text: str | bytes, source: str, *, infinity: bool = False) -> Any:
    """One JSON document, strictly: no key twice, no NaN or infinity, integers of 64 bits, at most MAX_DEPTH levels.

    Args:
        text: the document.
        source: where it came from, for the message.
        infinity: take Infinity and NaN nevertheless, which Python's own writer makes and models' configurations hold.

    Raises:
        UsageError: it is none; the message names source, line and column where they are known.
    """
    constant = float if infinity else _constant
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=constant)
        _check_values(document)
    except json.JSONDecodeError as error:
        raise UsageError(f"{source}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise UsageError(f"{source}: nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {shorten(twice)!r} is given twice")
    return made


def _integer(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) >= MAX_INTEGER:
        raise ValueError(f"number {shorten(text)} has more than 64 bits")
    return value


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"number {shorten(text)} is too large")
    return value


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _check_values(document: Any) -> None:
    """Depth and text, without recursion: a lone half of a surrogate pair can be written nowhere."""
    level, depth = [document], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value)
            elif isinstance(value, dict):
                for key in value:
                    _check_text(key)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
        level = below


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text with half of a surrogate pair") from None


def shorten(text: str, length: int = 80) -> str:
    """Text from outside for a message: its beginning, with an ellipsis where it is longer."""
    return text if len(text) <= length else f"{text[:length]}…"


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
        new.write_text(text, encoding="utf-8", errors="replace")
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
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
