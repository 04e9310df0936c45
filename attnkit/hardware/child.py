"""A child process that asks a vendor's library, with a deadline: where a GPU has fallen off the bus, the library hangs."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from typing import Any, NamedTuple

DEADLINE_SECONDS = 20.0
_KILLED_SECONDS = 1.0
"""A process that hangs in the driver cannot be killed; nobody waits for it longer than this."""


class Answer(NamedTuple):
    """How a child ended: its exit code (negative: by a signal), its output, and the last line of its messages."""

    code: int
    text: str
    last: str


def start_child(module: str, root: str, text: str = "") -> subprocess.Popen[str]:
    """Start a process that runs `main` of MODULE with ROOT as its argument and `text` on its stdin."""
    child = subprocess.Popen(
        [sys.executable, "-c", f"from {module} import main; main()", root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    with suppress(BrokenPipeError), child.stdin:
        child.stdin.write(text)
    child.stdin = None  # communicate would write to it
    return child


def answer_of(child: subprocess.Popen[str], ends: float) -> Answer | None:
    """What the child answered; None where it had not by `ends` (time.monotonic), and was killed."""
    left = None if child.poll() is not None else max(0.0, ends - time.monotonic())
    try:
        out, err = child.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(_KILLED_SECONDS)
        return None
    return Answer(child.returncode, out, (err.strip().splitlines() or ["no message"])[-1])


def with_tuples(plain: dict[str, Any]) -> dict[str, Any]:
    """A dataclass's fields as JSON gives them back, its tuples tuples again."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
