"""Looking after one child process as PID 1 should: signals forwarded, orphans reaped, its exit code kept.

The first SIGTERM or SIGINT is forwarded to the child; the second kills it and everything in its process group. Without the
forwarding a container's stop would wait for its grace period and then lose requests in flight; without the reaping, worker
processes whose parent died would stay as zombies until the container ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from attnkit.errors import UsageError

KEPT_LINES = 30
MOST_KEPT = 1000
"""A child that writes matching lines for ever must not fill the memory."""
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = (signal.SIGTERM, signal.SIGINT)


class Supervisor:
    """Starts one child and waits for it. `wait` belongs on the main thread, where Python delivers signals.

    The child's stdout and stderr are passed on to our stderr byte for byte; the last lines are kept for the case that it dies.

    Args:
        argv: the command.
        env: its whole environment.
        keep: which lines of its output are kept for good, besides the last ones; None: none.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], keep: Callable[[str], bool] | None = None) -> None:
        self._argv = list(argv)
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None
        self._pump: threading.Thread | None = None
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._keep = keep
        self._kept: deque[str] = deque(maxlen=MOST_KEPT)
        self._asked_to_end = 0
        self._previous: dict[int, Any] = {}
        self.ended = threading.Event()
        self.exit_code: int | None = None

    @property
    def pid(self) -> int:
        """Process id of the child, which leads its own process group."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines of the child's output."""
        return tuple(self._lines)

    @property
    def kept(self) -> tuple[str, ...]:
        """The lines that `keep` asked for, oldest first."""
        return tuple(self._kept)

    @property
    def stopped_on_request(self) -> bool:
        """True where a signal asked for the end."""
        return self._asked_to_end > 0

    def start(self) -> None:
        """Start the child.

        Raises:
            UsageError: the command cannot be started; the message names it.
        """
        _adopt_orphans()
        for number in _FORWARDED:
            self._previous[number] = signal.signal(number, self._forward)
        try:
            self._process = subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self._restore()
            raise UsageError(f"cannot start {self._argv[0]!r}: {error.strerror}") from None
        self._pump = threading.Thread(target=self._pass_on, name="engine-output", daemon=True)
        self._pump.start()
        if self._asked_to_end:  # a signal came between installing the handlers and the start
            self._signal_group(signal.SIGTERM)

    def wait(self) -> int:
        """Reap until the child has ended; its exit code, 128 + n where signal n ended it."""
        while True:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                raise RuntimeError("the child was reaped by somebody else") from None
            if pid == self.pid:
                break
        code = os.waitstatus_to_exitcode(status)
        self.exit_code = 128 - code if code < 0 else code
        assert self._process is not None
        self._process.returncode = code  # reaped here: subprocess must not wait for it again
        if self._pump is not None:
            self._pump.join(timeout=1.0)  # a grandchild may still hold the pipe; what is there by now is enough
        self.ended.set()
        self._restore()
        return self.exit_code

    def stop(self) -> None:
        """Ask the child to end (the engine never became healthy)."""
        self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the child and its process group."""
        self._signal_group(signal.SIGKILL)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if number in _ENDING:
            self._asked_to_end += 1
            if self._asked_to_end > 1:
                self.kill()
                return
        if self._process is not None and self.exit_code is None:
            try:
                os.kill(self._process.pid, number)
            except ProcessLookupError:
                return

    def _signal_group(self, number: int) -> None:
        if self._process is None or self.exit_code is not None:
            return
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _pass_on(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        target = sys.stderr.buffer if hasattr(sys.stderr, "buffer") else None
        for line in self._process.stdout:
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            self._lines.append(text)
            if self._keep is not None and self._keep(text):
                self._kept.append(text)
            if target is not None:
                try:
                    target.write(line)
                    target.flush()
                except (BrokenPipeError, ValueError):
                    target = None


def _adopt_orphans() -> None:
    """Outside a container too, take over processes whose parent died, as PID 1 does, so that they are reaped here.

    Linux only (prctl PR_SET_CHILD_SUBREAPER, linux/prctl.h); elsewhere, and where it is refused, init has them.
    """
    if sys.platform.startswith("linux") and os.getpid() != 1:
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
