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

from attnkit.boot.redact import Redactor
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
    "engine.layers",
    "engine.backend",
    "ready",
    "engine.exit",
    "error",
]


class Events:
    """Writes events to a stream. Safe from several threads; a stream that takes nothing more ends the output, not the boot.

    Args:
        stream: where to write; stdout where None.
        render: makes the text of an event; None: one line of JSON.
        redactor: masks secrets in every field.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        render: Callable[[Mapping[str, Any]], str] | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._redactor = redactor or Redactor()
        self._encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self.lost = 0
        self._lock = threading.Lock()
        self._closed = False
        processors: list[Any] = [
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _ordered,
            (lambda _logger, _method, fields: render(fields))
            if render
            else structlog.processors.JSONRenderer(ensure_ascii=self._encoding.lower() not in ("utf-8", "utf8")),
        ]
        self._log: Any = structlog.wrap_logger(
            _Line(self._write), processors=processors, wrapper_class=structlog.BoundLoggerBase
        )
        self._always: dict[str, Any] = {}

    def bind(self, **fields: Any) -> None:
        """Fields that every later event carries (an injected fault)."""
        self._always.update(self._plain(fields))

    def emit(self, name: Name, **fields: Any) -> None:
        """Write one event; dataclasses and tuples among the fields become plain JSON."""
        self._log._proxy_to_logger("msg", name, **{**self._plain(fields), **self._always})

    def _plain(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        plain: dict[str, Any] = self._redactor.plain({key: to_plain(value) for key, value in fields.items()})
        return plain

    def _write(self, text: str) -> None:
        with self._lock:
            if self._closed or not text:
                return
            shown = text.encode(self._encoding, "replace").decode(self._encoding)  # JSON is ASCII where it must be
            try:
                self._stream.write(shown + "\n")
                self._stream.flush()
            except (BrokenPipeError, ValueError):
                self._closed = True
            except OSError:  # the disk is full: it may not stay so, and the report is what counts
                self.lost += 1


class _Line:
    """The logger structlog wraps: hands finished text on."""

    def __init__(self, write: Any) -> None:
        self.msg = write


def _ordered(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Event and time first, so that a person can read the raw lines too."""
    head = {"event": fields.pop("event"), "time": fields.pop("time")}
    return {**head, **fields}
