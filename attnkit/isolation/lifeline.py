"""Processes that must not outlive the one that started them: a boot that is killed must not leave a device held by nobody."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None

_GUARD = """
import os, signal, sys
while os.read(0, 1): pass
try: os.killpg(int(sys.argv[1]), signal.SIGKILL)
except OSError: pass
"""


def end_with_parent() -> None:
    """Kill this process when the thread that started it ends (prctl PR_SET_PDEATHSIG, linux/prctl.h). Linux only.

    It runs between fork and exec too, so it takes no lock and imports nothing.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


class GroupGuard:
    """A small process that kills a process group once this process is gone, however it ended.

    The parent-death signal reaches the direct child alone; an engine's workers are its children, in the same group.

    Args:
        group: the process group's id.
    """

    def __init__(self, group: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, str(group)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal for our group is not for it
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def close(self) -> None:
        """The group is over: end the guard without its killing anything."""
        with suppress(OSError):
            self._process.kill()
        with suppress(OSError, ChildProcessError):
            os.waitpid(self._process.pid, 0)
        self._process.returncode = 0
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
