"""Values as tables and pages show them."""

from __future__ import annotations

from typing import Any


def short(value: Any) -> str:
    """A value for a table: digests shortened as Docker does."""
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    name, at, digest = text.partition("@sha256:")
    return f"{name.rpartition('/')[2]}@{digest[:12]}" if at else text


def span(seconds: float) -> str:
    """A time span for people, in the largest unit that says enough."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def elapsed(seconds: float) -> str:
    """A time span to the second: 3 min 10 s."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def printable(value: Any, keep: str = "") -> str:
    """A text of a node's as it may go to a terminal: control characters are shown as escapes, those in `keep` left alone."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in str(value))
