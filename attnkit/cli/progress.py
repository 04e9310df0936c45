"""One live line on a terminal while a self-test runs: which backend of how many, cases so far, time left. Quiet elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


class Progress:
    """Called with every case; writes to stderr where that is a terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._started = time.monotonic()
        self._cases = 0

    def __call__(self, backend: str, position: int, total: int) -> None:
        """A case of `backend` is done, the `position`-th (from 0) of `total`."""
        self._cases += 1
        self._write(self.line(backend, position, total, time.monotonic() - self._started))

    def line(self, backend: str, position: int, total: int, seconds: float) -> str:
        """The text: what is left is known once a backend is done."""
        left = f", about {seconds / position * total - seconds:.0f} s left" if position else ""
        return f"{backend} ({position + 1} of {total}): {self._cases} cases in {seconds:.0f} s{left}"

    def around(self, show: Callable[[], None]) -> None:
        """Print something else: the line goes first, and a new one comes with the next case."""
        self._write("")
        show()

    def _write(self, text: str) -> None:
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{text[:79]}")
            sys.stderr.flush()
