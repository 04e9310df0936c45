"""Where boot writes its results: the report, the readiness file and the Prometheus text."""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from attnkit.boot.metrics import render_metrics
from attnkit.boot.redact import Redactor
from attnkit.boot.report import BootReport, BootVerdict, Readiness, State
from attnkit.errors import UsageError
from attnkit.jsonio import RUN_DIRECTORY, check_writable, now, write_atomically

BEAT_SECONDS = 5.0
"""How often a boot says that it lives. Readers count one without a beat for `publish.STALE` as gone."""


def default_directory() -> Path:
    """/run/attnkit where it exists or can be made, else the user's state directory.

    A /run/attnkit that exists but cannot be written is *not* skipped: whoever made it looks there, so that is an error.
    """
    if RUN_DIRECTORY.is_dir() or os.access(RUN_DIRECTORY.parent, os.W_OK):
        return RUN_DIRECTORY
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "attnkit"


@dataclass
class Outputs:
    """The three files. Every write replaces the file in one step; methods may be called from several threads.

    Args:
        report, ready, metrics: where they are.
        redactor: masks secrets in what is written.
        begun: True once they are this boot's.
    """

    report: Path
    ready: Path
    metrics: Path
    redactor: Redactor = field(default_factory=Redactor)
    begun: bool = False
    _readiness: Readiness | None = None
    _stopping: bool = False
    _over: bool = False
    _guard: threading.RLock = field(default_factory=threading.RLock)
    _wake: threading.Event = field(default_factory=threading.Event)
    _locks: list[int] = field(default_factory=list)
    _spare: list[int] = field(default_factory=list)

    def begin(self) -> None:
        """Take the files from any earlier boot: its readiness first, then make sure that all three can be written.

        A container runtime that restarts a failed container would wipe out why it failed before anyone looked, so the earlier
        report (as far as it was written) is kept as `*.previous.json`.

        Raises:
            UsageError: one cannot be written, or another boot uses them; the message names the option that changes it.
        """
        self._lock()
        problem = self._take_away_earlier()
        for path, option in ((self.ready, "ready"), (self.report, "report"), (self.metrics, "metrics")):
            try:
                check_writable(path)
            except UsageError as error:
                raise UsageError(f"{error} (set --{option} or ATTNKIT_{option.upper()} to change it)") from None
        if problem:
            raise UsageError(problem)
        self.begun = True
        # with no descriptor left, the end of the boot could not be written
        self._spare = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(3)]
        self.write_ready_file("starting")
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _lock(self) -> None:
        """One boot at a time: the last writer must not win over one that serves."""
        for path in dict.fromkeys((self.ready, self.report)):
            lock = path.with_name(f".{path.name}.lock")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except (OSError, ValueError):
                continue  # what cannot be written is said by `begin`, once the earlier boot's files no longer count
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise UsageError(
                    f"another attnkit boot is using {path}: stop it, or give this one files of its own (--report, --ready, "
                    "--metrics)"
                ) from None
            except OSError:  # a file system without locks
                os.close(descriptor)
                continue
            self._locks.append(descriptor)

    def _take_away_earlier(self) -> str:
        """Nothing of an earlier boot is mistaken for this one's; removing works on a full disk too. What could not be done."""
        problem = ""
        for path in (self.ready, self.metrics):
            problem = _unlink(path) or problem
        earlier = next((path for path in (self.report, self.partial) if _exists(path)), None)
        if earlier is not None:
            try:
                earlier.replace(self.previous)
            except (OSError, ValueError):
                problem = _unlink(earlier) or problem
        return _unlink(self.partial) or problem

    def write_ready_file(
        self, state: State, verdict: BootVerdict | None = None, backend: str | None = None, headline: str = ""
    ) -> None:
        """Write the readiness file; once a stop was asked for, an engine does not become ready any more.

        Raises:
            UsageError: it cannot be written now; it is tried again at every beat.
        """
        with self._guard:
            if self._stopping and state not in ("failed", "stopping"):
                return
            line = self.redactor.text(headline)
            self._readiness = Readiness(
                state=state,
                verdict=verdict,
                backend=backend,
                since=now(),
                pid=os.getpid(),
                headline=line,
            )
            self._write_readiness()

    def stopping(self) -> None:
        """From a signal's handler, which must not wait: the heartbeat writes it at once."""
        self._stopping = True
        self._wake.set()

    def remove_ready_file(self) -> None:
        """Remove the readiness file: nothing serves, and nothing failed (yet)."""
        with self._guard:
            self._readiness = None
            _unlink(self.ready)

    def withdraw(self) -> None:
        """Take readiness away, in the file and in the metrics, by means that work on a full disk."""
        self.remove_ready_file()
        _unlink(self.metrics)

    def finish(self) -> None:
        """The boot is over: no more beats; the descriptors kept for its end are free."""
        self._over = True
        self._wake.set()
        while self._spare:
            os.close(self._spare.pop())

    def release(self) -> None:
        """Let the next boot have the files."""
        self.finish()
        while self._locks:
            os.close(self._locks.pop())

    def _beat(self) -> None:
        while True:
            self._wake.wait(BEAT_SECONDS)
            self._wake.clear()
            with self._guard:
                if self._over:
                    return
                if self._readiness is None:
                    continue
                if self._stopping and self._readiness.state not in ("failed", "stopping"):
                    self._readiness = self._readiness.model_copy(update={"state": "stopping", "since": now()})
                    _unlink(self.ready)
                with suppress(UsageError):
                    self._write_readiness()

    def _write_readiness(self) -> None:
        assert self._readiness is not None
        self._readiness.heartbeat = now()
        try:
            write_atomically(self.ready, self._readiness.text())
        except UsageError:
            if _says(self.ready, self._readiness.state):
                with suppress(OSError):
                    os.utime(self.ready)  # works on a full disk; readers take the newer of the two times
            raise

    @property
    def partial(self) -> Path:
        """The report before its verdict is known; the report itself is never seen without one."""
        return self.report.with_suffix(".partial.json")

    @property
    def previous(self) -> Path:
        """The report of the boot before this one, as far as it was written."""
        return self.report.with_suffix(".previous.json")

    def save_partial(self, report: BootReport) -> None:
        """Keep what is known so far, for the case that this process is killed."""
        write_atomically(self.partial, report.text(self.redactor))

    def save(self, report: BootReport, *, ready: bool = False) -> None:
        """Write the report and the metrics made from it."""
        write_atomically(self.report, report.text(self.redactor))
        _unlink(self.partial)
        write_atomically(self.metrics, render_metrics(report, ready=ready))


def _unlink(path: Path) -> str:
    """Remove a file; '' where it is gone, else why not."""
    try:
        path.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        return f"cannot remove {path}: {getattr(error, 'strerror', None) or error}"
    return ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _says(path: Path, state: State) -> bool:
    try:
        return f'"state": "{state}"' in path.read_text(encoding="utf-8")[:4096]
    except (OSError, ValueError):
        return False
