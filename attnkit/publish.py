"""Publishes what the boot wrote: Prometheus metrics over HTTP, and labels for Kubernetes Node Feature Discovery.

`python -m attnkit.publish --directory /run/attnkit --port 9400 --features FILE` runs beside the service, from the same image
and with the same folder. It only reads that folder; it validates and decides nothing.

Sources: the exposition format is prometheus.io/docs/instrumenting/exposition_formats, the feature file is the "local" source of
kubernetes-sigs/node-feature-discovery (docs/usage/customization-guide.md).
"""

from __future__ import annotations

import argparse
import http.server
import os
import re
import signal
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from attnkit.errors import UsageError
from attnkit.jsonio import RUN_DIRECTORY, read_json, read_text, write_atomically

EXPIRES = timedelta(minutes=5)
"""Labels that are not renewed expire after this."""


STALE = timedelta(seconds=60)
"""A boot that has said nothing for so long is gone (killed, or its machine stood still), whatever its last state says."""
FUTURE = timedelta(minutes=5)
"""A report from further ahead than clocks differ is none of now."""


def read_document(path: Path) -> dict[str, Any]:
    """The document; empty where it is absent, half written or no object."""
    try:
        document = read_json(path)
    except UsageError:
        return {}
    return document if isinstance(document, dict) else {}


def read_report(directory: Path, now: datetime) -> dict[str, Any]:
    """The boot report; empty where it is not readable, or from the future."""
    report = read_document(directory / "report.json")
    made = _moment(report.get("created"))
    return {} if made is not None and made - now > FUTURE else report


def state_of(directory: Path, now: datetime) -> str:
    """What the readiness file says, "none" where there is none, "lost" where its boot no longer says that it lives."""
    path = directory / "ready.json"
    ready = read_document(path)
    state = str(ready.get("state") or "none")
    beat = _moment(ready.get("heartbeat"))
    if beat is None or state in ("none", "failed"):
        return state
    try:  # where the disk is full, the file's time is all that moves on
        beat = max(beat, datetime.fromtimestamp(path.stat().st_mtime, timezone.utc))
    except OSError:
        return "none"
    return "lost" if not -FUTURE < now - beat < STALE else state


def _moment(text: object) -> datetime | None:
    try:
        made = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return made if made.tzinfo is not None else made.replace(tzinfo=timezone.utc)


def metrics_text(directory: Path, now: datetime) -> str:
    """The boot's metrics as they are in `report.prom`, and how things are now.

    Args:
        directory: where the boot writes.
        now: the present, for the report's age.
    """
    try:
        text = read_text(directory / "report.prom")
    except UsageError:
        text = ""
    registry = CollectorRegistry()
    readiness = Gauge(
        "attnkit_readiness", "Present state in the readiness file: 1 for the state that holds.", ("state",), registry=registry
    )
    readiness.labels(state_of(directory, now)).set(1)
    created = _moment(read_report(directory, now).get("created"))
    if created is not None:
        Gauge("attnkit_report_age_seconds", "Age of the boot report of this service.", registry=registry).set(
            round((now - created).total_seconds())
        )
    return text + generate_latest(registry).decode()


def node_labels(directory: Path, now: datetime | None = None) -> dict[str, str]:
    """attnkit.io/backend, /verdict and /ready, as the values of Kubernetes labels; what is unknown is "none"."""
    now = now or datetime.now(timezone.utc)
    report = read_report(directory, now)
    values = {
        "backend": report.get("backend") or "none",
        "verdict": report.get("verdict") or "none",
        "ready": "true" if state_of(directory, now) == "ready" else "false",
    }
    return {f"attnkit.io/{name}": label_value(str(value)) for name, value in values.items()}


def label_value(text: str) -> str:
    """A valid value of a label: at most 63 of A-Z a-z 0-9 - _ . with a letter or a digit at both ends."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:63].strip("._-")


def features_text(directory: Path, now: datetime) -> str:
    """The feature file: an expiry first, so that a service that has ended leaves no label behind."""
    until = (now + EXPIRES).astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return "\n".join([f"# +expiry-time={until}", *(f"{k}={v}" for k, v in node_labels(directory, now).items())]) + "\n"


class _Handler(http.server.BaseHTTPRequestHandler):
    directory: Path

    def do_GET(self) -> None:
        """/metrics, and /ready for a load balancer: 200 where the service serves, 503 where it does not."""
        status, body = 404, "see /metrics and /ready\n"
        if self.path == "/metrics":
            status, body = 200, metrics_text(self.directory, datetime.now(timezone.utc))
        elif self.path == "/ready":
            state = state_of(self.directory, datetime.now(timezone.utc))
            status, body = (200 if state == "ready" else 503), f"{state}\n"
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST if self.path == "/metrics" else "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for each scrape is no news."""


def publish(directory: Path, *, port: int | None, features: Path | None, every: float, stop: threading.Event) -> None:
    """Serve and write until `stop` is set; the feature file is removed then.

    Args:
        directory: where the boot writes.
        port: TCP port for /metrics and /ready on every address, None for no server.
        features: the feature file to keep up to date, None for none.
        every: seconds between two writes of it.
        stop: ends it.

    Raises:
        UsageError: the port is taken, or the file cannot be written.
    """
    server = None
    if port is not None:
        try:
            server = http.server.ThreadingHTTPServer(("", port), type("Handler", (_Handler,), {"directory": directory}))
        except OSError as error:
            raise UsageError(f"--port {port}: {error.strerror or error}") from None
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        while True:
            if features is not None:
                write_atomically(features, features_text(directory, datetime.now(timezone.utc)))
            if stop.wait(every):
                break
    finally:
        if features is not None:
            features.unlink(missing_ok=True)
        if server is not None:
            server.shutdown()
            server.server_close()


def main(arguments: list[str] | None = None) -> int:
    """The command line; ends with 0 on SIGTERM and SIGINT, with 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m attnkit.publish", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--directory", type=Path, default=RUN_DIRECTORY, help="directory the boot writes to (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, help="serve /metrics and /ready on this port")
    parser.add_argument("--features", type=Path, help="keep this Node Feature Discovery file up to date")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between updates of that file (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.port is None and options.features is None:
        parser.error("nothing to do: give --port, --features or both")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        publish(options.directory, port=options.port, features=options.features, every=options.every, stop=stop)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
