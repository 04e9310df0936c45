"""Child processes that report as JSON lines on a pipe of their own, several at once, each with a time limit.

What a child is to do goes to its stdin; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from attnkit.errors import describe_exit
from attnkit.jsonio import to_plain

CRASH_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV"}
KILLED_SECONDS = 5.0
EXIT_POLL_SECONDS = 0.02
"""How often a child is looked at that has closed its pipe and not yet ended."""


RUNNING: set[int] = set()
"""Process ids of children that are waited for here: whoever reaps every child of this process must leave them."""


@dataclass(frozen=True)
class ChildTask:
    """What one child is to do.

    Args:
        module: run as `python -m MODULE FD`; it reads `payload` as JSON from its stdin and writes JSON objects to FD, one a
            line.
        what: words for the process, for messages.
        timeout: seconds it may take.
        environment: variables beside those of this process.
        hint: which option changes the time limit, for the message.
    """

    module: str
    what: str
    payload: Any
    timeout: float
    environment: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""


@dataclass(eq=False)
class _Child:
    """A running child, the read end of its pipe, and what of a line has come so far."""

    position: int
    process: subprocess.Popen[bytes]
    pipe: int
    deadline: float
    rest: bytes = b""

    def read(self) -> list[bytes] | None:
        """The whole lines that have come; None where the writer closed the pipe."""
        chunk = os.read(self.pipe, 65536)
        if not chunk:
            return None
        *whole, self.rest = (self.rest + chunk).split(b"\n")
        return whole

    def end(self) -> None:
        """Kill it where it still runs."""
        os.close(self.pipe)
        if self.process.poll() is None:
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):  # one that hangs in the driver cannot be killed
                self.process.wait(KILLED_SECONDS)
        RUNNING.discard(self.process.pid)


def _start(position: int, task: ChildTask, threads: str | None) -> _Child:
    environment = {**os.environ, **({"OMP_NUM_THREADS": threads} if threads else {}), **task.environment}
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", task.module, str(write_end)],
            stdin=subprocess.PIPE,
            stdout=2,  # library chatter must not mix with our events
            pass_fds=(write_end,),
            env=environment,
        )
        RUNNING.add(process.pid)
    except OSError:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(json.dumps(to_plain(task.payload)).encode())
    return _Child(position, process, read_end, time.monotonic() + task.timeout)


def messages(tasks: Sequence[ChildTask]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The children's messages as they come, each with the position of its task; for each task at most one
    {"problem": outcome, "reason": text} of our own."""
    share = max(1, (os.cpu_count() or 1) // max(1, len(tasks)))
    # Without it every child would take a thread for each core.
    threads = str(share) if len(tasks) > 1 and "OMP_NUM_THREADS" not in os.environ else None
    children: list[_Child] = []
    try:
        with selectors.DefaultSelector() as selector:
            for position, task in enumerate(tasks):
                children.append(_start(position, task, threads))
                selector.register(children[-1].pipe, selectors.EVENT_READ, children[-1])
            running = list(children)
            while running:
                left = max(0.0, min(child.deadline for child in running) - time.monotonic())
                exiting = len(selector.get_map()) < len(running)
                for key, _ in selector.select(min(left, EXIT_POLL_SECONDS) if exiting else left):
                    lines = key.data.read()
                    yield from ((key.data.position, json.loads(line)) for line in lines or ())
                    if lines is None:
                        selector.unregister(key.fileobj)
                reading = [key.data for key in selector.get_map().values()]
                for child in list(running):
                    if child not in reading and child.process.poll() is not None:
                        running.remove(child)
                        yield from _exit_problem(child.position, tasks[child.position].what, child.process.returncode)
                    elif child.deadline <= time.monotonic():
                        running.remove(child)
                        child.process.kill()
                        if child in reading:
                            selector.unregister(child.pipe)
                        # a kernel that hangs, or a machine that is too slow or too busy: nobody can tell from here
                        hint = f" ({tasks[child.position].hint})" if tasks[child.position].hint else ""
                        reason = f"did not finish within {tasks[child.position].timeout:.0f} s{hint}"
                        yield child.position, {"problem": "inconclusive", "reason": reason}
    finally:
        for child in children:
            child.end()


def _exit_problem(position: int, what: str, code: int) -> Iterator[tuple[int, dict[str, Any]]]:
    if code == 0:
        return
    if -code in CRASH_SIGNALS:
        outcome, reason = "fail", f"{what} crashed with {CRASH_SIGNALS[-code]}"
    elif code < 0:
        outcome, reason = "inconclusive", f"{what} was ended by {describe_exit(128 - code)}"
    else:
        outcome = "inconclusive"
        reason = f"{what} ended with exit code {code}; its traceback is on stderr"
    yield position, {"problem": outcome, "reason": reason}
