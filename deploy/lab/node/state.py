"""What this node serves, said by the node itself: one JSON document on stdout. Standard library only.

state.py [--container NAME] [--state-dir DIR]
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import re
import socket
from pathlib import Path
from typing import Any


class Engine(http.client.HTTPConnection):
    """The container engine's interface on its Unix socket."""

    def connect(self) -> None:
        """A Unix socket in place of TCP."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect("/var/run/docker.sock")


def inspect(kind: str, name: str) -> dict[str, Any] | None:
    """A container or an image as the engine describes it; None where there is none."""
    connection = Engine("localhost", timeout=20)
    connection.request("GET", f"/{kind}/{name}/json")
    answer = connection.getresponse()
    document = json.loads(answer.read())
    return document if answer.status == 200 else None


def document(path: Path) -> dict[str, Any]:
    """A JSON file; empty where it is absent or half written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def moment(text: str) -> datetime.datetime:
    """A time of the engine's, which writes nine digits of a second, or of a report's."""
    text = re.sub(r"\.(\d{1,6})\d*", lambda digits: "." + digits[1].ljust(6, "0"), text)
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


def state(container: str, folder: Path) -> dict[str, Any]:
    """All of it."""
    shown = inspect("containers", container)
    record = document(folder / "release.json").get("release") or {}
    found: dict[str, Any] = {
        "recorded": record.get("image"),
        "locked_by": document(folder / "lock.json").get("owner"),
        "container": None,
    }
    if shown is None:
        return found
    image = inspect("images", shown["Image"]) or {"Config": {}}
    report = document(folder / "run" / "report.json")
    ready = folder / "run" / "ready.json"
    began = moment(shown["State"]["StartedAt"])
    fresh = bool(report) and moment(report["created"]) >= began
    is_ready = ready.is_file() and ready.stat().st_mtime >= began.timestamp() and document(ready).get("state") == "ready"
    host = shown["HostConfig"]
    found["container"] = {
        "id": shown["Id"],
        "running": shown["State"]["Running"] and not shown["State"]["Restarting"],
        "started": shown["State"]["StartedAt"],
        "restarts": shown["RestartCount"],
        "image": shown["Config"]["Image"],
        "image_id": shown["Image"],
        "digests": image.get("RepoDigests") or [],
        "labels": image["Config"].get("Labels") or {},
        "command": shown["Config"]["Cmd"] or [],
        "devices": sorted(device["PathOnHost"] for device in host.get("Devices") or []),
        "requests": host.get("DeviceRequests") or [],
        "groups": sorted(host.get("GroupAdd") or []),
        "privileged": host["Privileged"],
        "read_only": host["ReadonlyRootfs"],
        "dropped": host.get("CapDrop") or [],
    }
    found["ready"] = is_ready
    if fresh:
        found["report"] = {
            name: report.get(name)
            for name in ("created", "verdict", "backend", "provider", "node_type", "planted_answer", "error", "exit_code")
        }
        found["report"]["arch"] = ((report.get("decision") or {}).get("device") or {}).get("arch")
    return found


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--container", default="attnkit")
    parser.add_argument("--state-dir", type=Path, default=Path("/var/lib/attnkit"))
    options = parser.parse_args()
    print(json.dumps(state(options.container, options.state_dir)))


if __name__ == "__main__":
    main()
