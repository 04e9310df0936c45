"""A change of a node's service that is not confirmed yet: a file on the node that says what to revert to, and when.

The modules of a rollout renew it and confirm it; the node's own watchdog (watchdog.py) acts on it if they do neither. All of
them hold a lock on the folder while they decide. Standard library only.

FOLDER/pending.json     the change; its time stamp is the last heartbeat of a rollout
FOLDER/went.json        how the watchdog ended it
FOLDER/program          the watchdog's code
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .boot_report import read_json
from .docker_api import Docker, DockerError

GOING_SECONDS = 180.0
"""How long a rollout waits for a watchdog that is reverting."""


def kept_name(container: str) -> str:
    """Name of the container that the node would revert to: a copy of the old one, never started."""
    return f"{container}-before"


def watchdog_name(container: str) -> str:
    """Name of the watchdog's container."""
    return f"{container}-watch"


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """No other process decides about this change meanwhile."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def path_of(folder: str) -> Path:
    """The file."""
    return Path(folder, "pending.json")


def read(folder: str) -> dict[str, Any] | None:
    """The change that waits to be confirmed; None if there is none."""
    return read_json(str(path_of(folder)))


def write(folder: str, name: str, document: dict[str, Any]) -> None:
    """Write a file of the folder whole or not at all. For root alone."""
    new = Path(folder, f"{name}.new")
    handle = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(new.with_suffix(""))


def last_heartbeat(folder: str) -> float:
    """When the last heartbeat came. If the clock was set back, it counts as now."""
    path = path_of(folder)
    since = path.stat().st_mtime
    if since > time.time():
        os.utime(path)
        since = time.time()
    return since


def renew(folder: str) -> bool:
    """Send a heartbeat. False if nothing is pending, or if the watchdog is reverting already."""
    if not Path(folder).is_dir():
        return False
    with locked(folder):
        change = read(folder)
        if change is None or change["state"] == "going back":
            return False
        os.utime(path_of(folder))
    return True


def outlast(folder: str) -> None:
    """Wait while the watchdog is reverting."""
    deadline = time.monotonic() + GOING_SECONDS
    while (read(folder) or {}).get("state") == "going back" and time.monotonic() < deadline:
        time.sleep(0.5)


def confirm(docker: Docker, folder: str, container: str) -> bool:
    """The running service is good, so there is nothing to revert any more. False if the watchdog has begun to revert."""
    if not Path(folder).is_dir():
        return True
    with locked(folder):
        if (read(folder) or {}).get("state") == "going back":
            return False
        path_of(folder).unlink(missing_ok=True)
    with contextlib.suppress(DockerError):  # the watchdog sees that nothing is pending, and cleans up itself
        docker.remove(watchdog_name(container))
        docker.remove(kept_name(container))
    shutil.rmtree(folder, ignore_errors=True)
    return True


def how_it_went(folder: str) -> str:
    """How the watchdog ended the last change, in words; empty if it ended none."""
    went = read_json(str(Path(folder, "went.json")))
    return f"{went['what']} at {went['at']}: {went['reason']}" if went else ""


def unconfirmed(folder: str) -> str:
    """What is unconfirmed here, without the reason, which may quote a service's log; empty if nothing is."""
    if read(folder) is not None:
        return "a rollout has changed the service and not confirmed it"
    went = read_json(str(Path(folder, "went.json")))
    return (
        f"no rollout confirmed its change, and the node decided at {went['at']}: {went['what']} (watch/went.json)"
        if went
        else ""
    )
