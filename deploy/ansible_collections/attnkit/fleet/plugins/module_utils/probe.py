"""One probe of a service: is its boot decided, and how. For the gate and for a node's watchdog; standard library only."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

from .boot_report import moment, objection, of_this_start, read_json, written

FUTURE = datetime.timedelta(seconds=60)
"""By which a report may be ahead of the node's clock: one that was set back while the service booted."""


class Probe:
    """The result: is the boot decided, and how; which start of the service that was, and for how many seconds it was ready."""

    def __init__(
        self,
        *,
        done: bool,
        ok: bool,
        reason: str,
        report: dict[str, Any] | None,
        started: str | None = None,
        ready_for: float = 0.0,
    ) -> None:
        self.done = done
        self.ok = ok
        self.reason = reason
        self.report = report
        self.started = started
        self.ready_for = ready_for


def probe(
    inspected: dict[str, Any] | None, run_dir: str, *, image: str | None, node_type: str | None, accept_planted: bool = False
) -> Probe:
    """Judge one snapshot.

    Args:
        inspected: what `docker inspect` shows of the container.
        run_dir: folder with the report and the readiness file.
        image: the image that must run.
        node_type: the node type that the report must be of.
        accept_planted: let a boot without kernels pass, for rehearsals.
    """
    if inspected is None:
        return Probe(done=True, ok=False, reason="there is no such container on the node", report=None)
    state = inspected["State"]
    started, created = moment(state["StartedAt"]), moment(inspected["Created"])
    report_path, ready_path = (Path(run_dir, name) for name in ("report.json", "ready.json"))
    report, ready = read_json(str(report_path)), read_json(str(ready_path))
    if report is None and inspected.get("RestartCount", 0):
        # Docker has restarted the container: why it ended is in what the previous boot left.
        report = read_json(str(report_path.with_name("report.previous.json")))
    at = written(report)
    if at is None or at < created:
        report = None
    if at is not None and at > datetime.datetime.now(tz=datetime.timezone.utc) + FUTURE:
        # The node's own clock wrote it: a service that was killed with a report dated ahead would be proven by it for ever.
        reason = f"the boot report is dated in the future ({at:%Y-%m-%dT%H:%M:%SZ})"
        return Probe(done=not state["Running"], ok=False, reason=reason, report=None)
    if image is not None and inspected["Config"]["Image"] != image:
        return Probe(done=True, ok=False, reason=f"runs {inspected['Config']['Image']}, not {image}", report=report)
    objects = objection(report, node_type=node_type, planted_ok=accept_planted) if report else None
    running = bool(state["Running"]) and state["Status"] != "restarting"
    is_ready = bool(ready and ready.get("state") == "ready" and _mtime(ready_path) >= started)
    if not running or (inspected.get("RestartCount", 0) and not is_ready):
        detail = objects or (report or {}).get("error") or state.get("Error") or "see the log"
        return Probe(done=True, ok=False, reason=f"{_how_it_ended(inspected, report)}: {detail}", report=report)
    present = of_this_start(report, inspected)
    if objects and present:
        return Probe(done=True, ok=False, reason=objects, report=report)
    if not present:
        return Probe(done=False, ok=False, reason="no boot report yet", report=report)
    if not is_ready:
        now = ready.get("state") if ready and _mtime(ready_path) >= started else "nothing"
        return Probe(
            done=False,
            ok=False,
            reason=f"the self-test passed, but the engine is not ready (readiness says {now})",
            report=report,
        )
    health = (state.get("Health") or {}).get("Status", "none")
    if health not in ("none", "healthy"):
        return Probe(done=False, ok=False, reason=f"ready, but the health check says {health}", report=report)
    ready_for = max(0.0, time.time() - _ready_since(ready, ready_path))  # a clock may have been set back
    return Probe(done=True, ok=True, reason="", report=report, started=state["StartedAt"], ready_for=ready_for)


def _how_it_ended(inspected: dict[str, Any], report: dict[str, Any] | None) -> str:
    """In words. Once Docker has restarted a container, its state no longer holds the exit code; the report may."""
    state = inspected["State"]
    code = (report or {}).get("exit_code") if state["Running"] else state["ExitCode"]
    return f"the service ended with exit code {code}" if code or not state["Running"] else "the service ended and was restarted"


def _ready_since(ready: dict[str, Any] | None, path: Path) -> float:
    """When it became ready: the file's time, and where boot writes the file at every heartbeat, what it says."""
    try:
        if ready and ready.get("heartbeat"):
            return moment(ready["since"]).timestamp()
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    return path.stat().st_mtime


def _mtime(path: Path) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, tz=datetime.timezone.utc)
