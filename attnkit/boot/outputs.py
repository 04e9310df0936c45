"""Where boot writes its results: the report, the readiness file and the Prometheus text."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from attnkit.boot.metrics import render_metrics
from attnkit.boot.report import BootReport, BootVerdict, Readiness, State
from attnkit.errors import UsageError
from attnkit.jsonio import RUN_DIRECTORY, check_writable, now, write_atomically


def default_directory() -> Path:
    """/run/attnkit where it exists or can be made, else the user's state directory.

    A /run/attnkit that exists but cannot be written is *not* skipped: whoever made it looks there, so that is an error.
    """
    if RUN_DIRECTORY.is_dir() or os.access(RUN_DIRECTORY.parent, os.W_OK):
        return RUN_DIRECTORY
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "attnkit"


@dataclass
class Outputs:
    """The three files. Every write replaces the file in one step."""

    report: Path
    ready: Path
    metrics: Path
    begun: bool = False

    def begin(self) -> None:
        """Make sure that all three can be written, and that nothing from an earlier boot is mistaken for this one's.

        A container runtime that restarts a failed container would wipe out why it failed before anyone looked, so the earlier
        report (as far as it was written) is kept as `*.previous.json`.

        Raises:
            UsageError: one cannot be written; the message names it and the option that changes it.
        """
        for path, option in ((self.ready, "ready"), (self.report, "report"), (self.metrics, "metrics")):
            try:
                check_writable(path)
            except UsageError as error:
                raise UsageError(f"{error} (set --{option} or ATTNKIT_{option.upper()} to change it)") from None
        earlier = next((path for path in (self.report, self.partial) if path.exists()), None)
        if earlier is not None:
            earlier.replace(self.previous)
        for path in (self.report, self.partial, self.metrics):
            path.unlink(missing_ok=True)
        self.begun = True
        self.write_ready_file("starting")

    def write_ready_file(self, state: State, verdict: BootVerdict | None = None, backend: str | None = None) -> None:
        """Write the readiness file."""
        write_atomically(self.ready, Readiness(state=state, verdict=verdict, backend=backend, since=now()).text())

    def remove_ready_file(self) -> None:
        """Remove the readiness file: nothing serves, and nothing failed."""
        self.ready.unlink(missing_ok=True)

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
        write_atomically(self.partial, report.text())

    def save(self, report: BootReport, *, ready: bool = False) -> None:
        """Write the report and the metrics made from it."""
        write_atomically(self.report, report.text())
        self.partial.unlink(missing_ok=True)
        write_atomically(self.metrics, render_metrics(report, ready=ready))
