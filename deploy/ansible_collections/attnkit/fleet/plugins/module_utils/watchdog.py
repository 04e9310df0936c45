"""The watchdog of a node: waits for a rollout to confirm its change, and decides itself if the heartbeats stop.

Runs on the node in a container of the old release's image, so that Docker restarts it after a reboot:
`python3 -m attnkit_watch.watchdog FOLDER`. Once no rollout has sent a heartbeat for as long as the change says, it probes the
new service as the gate does: if that works, it stays; else the kept container replaces it. Standard library only.
"""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
import time
from typing import Any

from . import pending
from .docker_api import Docker, DockerError
from .probe import probe

STALLED_SECONDS = 10.0
"""A pause in this process's own time after which it waits again: the machine was frozen, and so was what it probes."""
STOP_SECONDS = 60
LEFT_ALONE_SECONDS = 30.0
"""Whoever confirms removes this process, too. It cleans up itself if that run ended in between."""
ENDED = ("untouched", "kept", "went back", "failed")


class Watchdog:
    """The watch over one change.

    Args:
        folder: where the change is written.
        docker: the node's Docker.
        poll: seconds between two probes.
    """

    def __init__(self, folder: str, docker: Docker, poll: float = 1.0) -> None:
        self.folder = folder
        self.docker = docker
        self.poll = poll
        self.awake_since = time.time()
        self._tick = time.monotonic()

    def watch(self) -> str:
        """Until the change is confirmed or decided; how it ended ("confirmed" or one of `ENDED`)."""
        while True:
            try:
                ended = self.step()
            except DockerError as error:  # it may be starting, or busy: nothing is decided
                print(error, file=sys.stderr, flush=True)
                ended = None
            if ended is not None:
                return ended
            time.sleep(self.poll)
            now = time.monotonic()
            if now - self._tick > self.poll + STALLED_SECONDS:
                self.awake_since = time.time()
            self._tick = now

    def step(self) -> str | None:
        """One step; None while there is nothing to decide."""
        change = pending.read(self.folder)
        if change is None:
            return "confirmed"
        if change["state"] == "going back":  # begun before this process was
            return self.go_back(change)
        with pending.locked(self.folder):
            change = pending.read(self.folder)
            if change is None:
                return "confirmed"
            if time.time() - max(pending.last_heartbeat(self.folder), self.awake_since) < change["timeout"]:
                return None
            verdict, reason = self.judge(change)
            if verdict is None:
                return None
            if verdict != "go back":
                self.end(verdict, reason)
                return verdict
            change |= {"state": "going back", "reason": reason}
            pending.write(self.folder, "pending.json", change)
        print(f"going back: {reason}", flush=True)
        return self.go_back(change)

    def judge(self, change: dict[str, Any]) -> tuple[str | None, str]:
        """What to do with the service that runs now, and why; None if that is not decided yet."""
        inspected = self.docker.container(change["container"])
        if inspected is not None and inspected["Id"] == change["before"] and inspected["State"]["Running"]:
            return "untouched", "the service was never changed"
        seen = probe(
            inspected,
            change["run_dir"],
            image=change["image"],
            node_type=change["node_type"],
            accept_planted=change["accept_planted"],
        )
        if not seen.ok:
            return "go back", seen.reason
        if seen.ready_for < change["settle"]:
            return None, ""
        return "kept", "no heartbeat of the rollout, and the new service works"

    def go_back(self, change: dict[str, Any]) -> str:
        """Replace the service by the kept container. Every step may be done already, by an earlier process."""
        name, kept = change["container"], self.docker.container(change["kept"])
        if kept is None:
            self.end("failed", f"the kept container is gone; {change['reason']}")
            return "failed"
        there = self.docker.container(name)
        if there is not None and there["Id"] != kept["Id"]:
            self.docker.send(
                "POST", f"/containers/{there['Id']}/stop?t={STOP_SECONDS}", may_lack=True, timeout=STOP_SECONDS + 30
            )
            self.docker.remove(there["Id"])
        if kept["Name"].lstrip("/") != name:
            self.docker.send("POST", f"/containers/{kept['Id']}/rename?name={name}")
        self.docker.send("POST", f"/containers/{kept['Id']}/update", {"RestartPolicy": change["restart_policy"]})
        self.docker.send("POST", f"/containers/{kept['Id']}/start")
        self.end("went back", change["reason"])
        return "went back"

    def end(self, what: str, reason: str) -> None:
        """Write down how it ended; nothing is pending any more."""
        now = datetime.datetime.now(tz=datetime.timezone.utc).isoformat(timespec="seconds")
        pending.write(self.folder, "went.json", {"what": what, "reason": reason, "at": now})
        pending.path_of(self.folder).unlink()
        print(f"{what}: {reason}", flush=True)


def main() -> None:
    """Watch, then remove what is not needed any more, this process's container last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--container", required=True, help="name of the service's container")
    parser.add_argument("--socket", default="/var/run/docker.sock")
    parser.add_argument("--poll", type=float, default=1.0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    docker = Docker(options.socket)
    if Watchdog(options.folder, docker, options.poll).watch() == "confirmed":
        time.sleep(LEFT_ALONE_SECONDS)
    docker.remove(pending.kept_name(options.container))
    docker.remove(pending.watchdog_name(options.container))


if __name__ == "__main__":
    main()
