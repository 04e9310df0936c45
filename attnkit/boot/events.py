"""Boot's events: one JSON line each, or the lines for people that a renderer makes of them.

Event names are a contract: boot, detect, devices, select, selftest.case, selftest.verdict, device.left_out, collective,
fallback, report, engine.start, engine.healthy, engine.completion, engine.backend, ready, engine.exit, error. The engine's own
output goes to stderr.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, TextIO, TypeAlias

import structlog

from attnkit.jsonio import to_plain

Name: TypeAlias = Literal[
    "boot",
    "detect",
    "devices",
    "select",
    "selftest.case",
    "selftest.verdict",
    "device.left_out",
    "collective",
    "fallback",
    "report",
    "engine.start",
    "engine.healthy",
    "engine.completion",
    "engine.backend",
    "ready",
    "engine.exit",
    "error",
]


class Events:
    """Writes events to a stream. Safe from several threads; a reader that went away ends the output, not the boot.

    Args:
        stream: where to write; stdout where None.
        render: makes the text of an event; None: one line of JSON.
    """

    def __init__(self, stream: TextIO | None = None, render: Callable[[Mapping[str, Any]], str] | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._lock = threading.Lock()
        self._closed = False
        processors: list[Any] = [
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _ordered,
            (lambda _logger, _method, fields: render(fields))
            if render
            else structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
        self._log: Any = structlog.wrap_logger(
            _Line(self._write), processors=processors, wrapper_class=structlog.BoundLoggerBase
        )
        self._always: dict[str, Any] = {}

    def bind(self, **fields: Any) -> None:
        """Fields that every later event carries (an injected fault)."""
        self._always.update({key: to_plain(value) for key, value in fields.items()})

    def emit(self, name: Name, **fields: Any) -> None:
        """Write one event; dataclasses and tuples among the fields become plain JSON."""
        plain = {key: to_plain(value) for key, value in fields.items()}
        self._log._proxy_to_logger("msg", name, **{**plain, **self._always})

    def _write(self, text: str) -> None:
        with self._lock:
            if self._closed or not text:
                return
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except (BrokenPipeError, ValueError):
                self._closed = True


class _Line:
    """The logger structlog wraps: hands finished text on."""

    def __init__(self, write: Any) -> None:
        self.msg = write


def _ordered(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Event and time first, so that a person can read the raw lines too."""
    head = {"event": fields.pop("event"), "time": fields.pop("time")}
    return {**head, **fields}
