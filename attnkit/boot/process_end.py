"""How a boot's process ends: by a signal, by an exception that nobody foresaw, with a stdout that takes nothing more."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from attnkit.boot.ending import one_line
from attnkit.errors import AttnkitError, InternalError


class Stopped(BaseException):
    """A signal asked for the end before the engine was started. Not an Exception, so that no handler on the way keeps it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class Signals:
    """Whether a signal still ends the boot; once it is ending, another one must not end that."""

    over: bool = False


@contextmanager
def signals_stop() -> Iterator[Signals]:
    """SIGTERM and SIGINT end the boot. PID 1 ignores signals that it has no handler for."""
    state = Signals()

    def stop(number: int, _frame: FrameType | None) -> None:
        if not state.over:
            state.over = True
            raise Stopped(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield state
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def explain(error: Exception) -> AttnkitError:
    """An exception that nobody foresaw, in one line with its place; what the machine refused is no mistake of ours."""
    last = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    where = f" ({Path(last.filename).name}:{last.lineno})" if last else ""
    if isinstance(error, MemoryError):
        return InternalError("out of memory" + where, "give the container more memory")
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return InternalError(f"the machine refused: {error.strerror}{where}", _REFUSED[error.errno])
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return InternalError(f"the machine refused: {error}{where}", _REFUSED[errno.EAGAIN])
    return InternalError(f"attnkit itself broke: {type(error).__name__}: {one_line(str(error))}{where}")


_REFUSED = {
    errno.EMFILE: "raise the limit of open files (ulimit -n; --ulimit nofile in the container)",
    errno.ENFILE: "raise the host's limit of open files (fs.file-max)",
    errno.EAGAIN: "raise the limit of processes (ulimit -u; --pids-limit in the container)",
    errno.ENOMEM: "give the container more memory",
    errno.ENOSPC: "free disk space where boot writes",
}


def let_stdout_end() -> None:
    """A stdout that takes nothing (a full disk) must not change the exit code when Python flushes it at the very end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
