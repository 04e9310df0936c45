"""Looking after one child process as PID 1 should: signals forwarded, orphans reaped, its output drained, its exit code kept.

The first SIGTERM or SIGINT is forwarded to the child; the second kills it and everything in its process group. Without the
forwarding a container's stop would wait for its grace period and then lose requests in flight; without the reaping, worker
processes whose parent died would stay as zombies until the container ends. What is left of the child's processes once it is
gone is ended too, and all of it ends with this process, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from attnkit.errors import UsageError
from attnkit.isolation.lifeline import GroupGuard, end_with_parent
from attnkit.isolation.processes import RUNNING

KEPT_LINES = 30
_PROGRESS = re.compile(r"\d+(?:\.\d+)?\s?%|\b\d+/\d+\b")
"""A line that counts something, as loaders and compilers write them."""
MOST_KEPT = 1000
"""A child that writes matching lines for ever must not fill the memory."""
MAX_LINE = 8192
"""Longer lines are cut: 600 MB without a newline must not fill the memory either."""
MOST_WAITING = 1000
"""Lines that wait for a reader of our stderr; further ones are dropped and counted."""
REST_SECONDS = 5.0
REAP_POLL_SECONDS = 0.02
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = (signal.SIGTERM, signal.SIGINT)


class Supervisor:
    """Starts one child and waits for it. `wait` belongs on the main thread, where Python delivers signals.

    The child's stdout and stderr are read at once whatever becomes of our stderr, and passed on there line by line; the last
    lines are kept for the case that it dies.

    Args:
        argv: the command.
        env: its whole environment.
        keep: which lines of its output are kept for good, besides the last ones; None: none.
        clean: what is passed on and kept of a line (secrets masked); None: all of it.
        on_stop: called from a signal's handler at the first signal that asks for the end; must not wait.

    `last_progress` is when its output last counted something further (`time.monotonic`), None where it never did.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        keep: Callable[[str], bool] | None = None,
        clean: Callable[[str], str] | None = None,
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        self._argv = list(argv)
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: GroupGuard | None = None
        self._threads: list[threading.Thread] = []
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._keep = keep
        self._clean = clean
        self._on_stop = on_stop
        self._kept: deque[str] = deque(maxlen=MOST_KEPT)
        self._waiting: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._dropped = 0
        self._counted: deque[str] = deque(maxlen=KEPT_LINES)
        self.last_progress: float | None = None
        self._asked_to_end = 0
        self._previous: dict[int, Any] = {}
        self._others: frozenset[int] = frozenset()
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
        self._others = frozenset(_children())
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
                preexec_fn=end_with_parent,  # noqa: PLW1509  (one system call, no lock)
            )
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the command
            self.restore_signals()
            raise UsageError(f"cannot start {self._argv[0]!r}: {getattr(error, 'strerror', None) or error}") from None
        try:
            self._guard = GroupGuard(self._process.pid)
            self._threads = [
                threading.Thread(target=self._drain, name="engine-output", daemon=True),
                threading.Thread(target=self._pass_on, name="engine-output-writer", daemon=True),
            ]
            for thread in self._threads:
                thread.start()
        except BaseException:
            self.kill()
            with suppress(ChildProcessError):
                os.waitpid(self._process.pid, 0)
            self.restore_signals()
            raise
        if self._asked_to_end:  # a signal came between installing the handlers and the start
            self._signal_group(signal.SIGTERM)

    def wait(self, *, restore: bool = True) -> int:
        """Reap until the child has ended, then end what is left of its processes.

        Args:
            restore: give the signals back to who had them; else `restore_signals` does.

        Returns:
            The child's exit code, 128 + n where signal n ended it.
        """
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
                # a self-test beside the engine: the thread that started it waits for it
                if ended is not None and ended.si_pid in RUNNING:
                    time.sleep(REAP_POLL_SECONDS)
                    continue
                pid, status = os.waitpid(ended.si_pid if ended is not None else -1, 0)
            except ChildProcessError:
                raise RuntimeError("the child was reaped by somebody else") from None
            if pid == self.pid:
                break
        code = os.waitstatus_to_exitcode(status)
        self.exit_code = 128 - code if code < 0 else code
        assert self._process is not None
        self._process.returncode = code  # reaped here: subprocess must not wait for it again
        self.ended.set()
        self._end_rest()
        self._threads[0].join(timeout=1.0)  # a grandchild may still hold the pipe; what is there by now is enough
        with suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._threads[1].join(timeout=1.0)
        if restore:
            self.restore_signals()
        return self.exit_code

    def stop(self) -> None:
        """Ask the child to end (the engine never became healthy)."""
        self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the child and its process group."""
        self._signal_group(signal.SIGKILL)

    def abandon(self) -> None:
        """Something broke here: end the child, first politely, and reap it."""
        if self._process is None or self.exit_code is not None:
            return
        self.stop()
        timer = threading.Timer(REST_SECONDS, self.kill)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # no thread to be had
            self.kill()
        with suppress(RuntimeError):
            self.wait()
        timer.cancel()

    def restore_signals(self) -> None:
        """Give the signals back to who had them before `start`."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if number in _ENDING:
            self._asked_to_end += 1
            if self._on_stop is not None:
                self._on_stop()
            if self._asked_to_end > 1:
                self.kill()
                return
        if self._process is not None and self.exit_code is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def _signal_group(self, number: int) -> None:
        if self._process is None or self.exit_code is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _end_rest(self) -> None:
        """End the child's processes that are still there: its group, and orphans that came to us from outside the group."""
        deadline = time.monotonic() + REST_SECONDS
        number: int = signal.SIGTERM
        while rest := self._rest():
            if self._asked_to_end > 1 or time.monotonic() > deadline:
                number = signal.SIGKILL
            if time.monotonic() > deadline + REST_SECONDS:
                break  # in the kernel, and nobody can end it
            for pid in rest:
                with suppress(OSError):
                    os.kill(pid, number)
            time.sleep(0.05)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def _rest(self) -> set[int]:
        mine = {self._guard.pid} if self._guard is not None else set()
        return {pid for pid in _children() if pid not in self._others} - mine | set(_group(self.pid))

    def _drain(self) -> None:
        """Read everything at once; of a line without an end only the beginning is kept."""
        assert self._process is not None
        assert self._process.stdout is not None
        line, cut = b"", False
        while chunk := os.read(self._process.stdout.fileno(), 65536):
            *whole, rest = chunk.split(b"\n")
            for part in whole:
                self._take((line + part)[:MAX_LINE], cut or len(line) + len(part) > MAX_LINE)
                line, cut = b"", False
            cut = cut or len(line) + len(rest) > MAX_LINE
            line = (line + rest)[:MAX_LINE]
        if line:
            self._take(line, cut)

    def _take(self, data: bytes, cut: bool) -> None:
        text = data.decode("utf-8", "replace").rstrip("\r") + ("… (cut)" if cut else "")
        text = self._clean(text) if self._clean is not None else text
        self._lines.append(text)
        if _PROGRESS.search(text) and (seen := " ".join(_PROGRESS.findall(text))) not in self._counted:
            self._counted.append(seen)  # the same count again is no progress
            self.last_progress = time.monotonic()
        if self._keep is not None and self._keep(text):
            self._kept.append(text)
        try:
            self._waiting.put_nowait(text)
        except queue.Full:
            self._dropped += 1

    def _pass_on(self) -> None:
        """Write to our stderr, which may block (nobody reads) or refuse (its disk is full): the child never waits for that."""
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        while (text := self._waiting.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            lines = [text, *([f"attnkit: {dropped} lines of the engine were dropped here"] if dropped else [])]
            data = "".join(f"{line}\n" for line in lines).encode(encoding, "backslashreplace")
            with suppress(OSError):
                while data:
                    data = data[os.write(2, data) :]


def _children() -> Iterator[int]:
    """Process ids of this process's children."""
    return (pid for pid, parent, _ in _processes() if parent == os.getpid())


def _group(leader: int) -> Iterator[int]:
    """Process ids in the group of `leader`, zombies left out."""
    return (pid for pid, _, group in _processes() if group == leader)


def _processes() -> Iterator[tuple[int, int, int]]:
    """Process id, parent and process group of everything that runs here (proc(5)); nothing where there is no /proc."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            state, parent, group = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[:3]
            if state not in ("Z", "X"):
                yield int(path.parent.name), int(parent), int(group)


def _adopt_orphans() -> None:
    """Outside a container too, take over processes whose parent died, as PID 1 does, so that they are reaped here.

    Linux only (prctl PR_SET_CHILD_SUBREAPER, linux/prctl.h); elsewhere, and where it is refused, init has them.
    """
    if sys.platform.startswith("linux") and os.getpid() != 1:
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
