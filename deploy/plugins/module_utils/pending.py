"""A change of a node's service that nobody has confirmed yet: a file on the node, which says what to go back to and when.

The modules of a rollout renew it and confirm it; the node's own watcher (watcher.py) acts on it where they do neither. All of
them hold a lock on the folder while they decide. Standard library only.

FOLDER/pending.json     the change; its time stamp is the last sign of life of a rollout
FOLDER/went.json        how the watcher ended it
FOLDER/program          the watcher's code
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
from .engine import Engine, EngineError

GOING_SECONDS = 180.0
"""How long a rollout waits for a watcher that is at work."""


def kept_name(container: str) -> str:
    """Name of the container that the node would go back to: made like the old one, never started."""
    return f"{container}-before"


def watcher_name(container: str) -> str:
    """Name of the watcher's container."""
    return f"{container}-watch"


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Nobody else decides about this change meanwhile."""
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
    """The change that waits to be confirmed; None where there is none."""
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


def last_sign(folder: str) -> float:
    """When a rollout was last heard of. A clock that was set back makes it now."""
    path = path_of(folder)
    since = path.stat().st_mtime
    if since > time.time():
        os.utime(path)
        since = time.time()
    return since


def renew(folder: str) -> bool:
    """Give a sign of life. False where nothing is pending, or where the watcher is at work already."""
    if not Path(folder).is_dir():
        return False
    with locked(folder):
        change = read(folder)
        if change is None or change["state"] == "going back":
            return False
        os.utime(path_of(folder))
    return True


def outlast(folder: str) -> None:
    """Wait while the watcher is at work."""
    deadline = time.monotonic() + GOING_SECONDS
    while (read(folder) or {}).get("state") == "going back" and time.monotonic() < deadline:
        time.sleep(0.5)


def confirm(engine: Engine, folder: str, container: str) -> bool:
    """The service that runs is good: nothing to go back to any more. False where the watcher has begun to go back."""
    if not Path(folder).is_dir():
        return True
    with locked(folder):
        if (read(folder) or {}).get("state") == "going back":
            return False
        path_of(folder).unlink(missing_ok=True)
    with contextlib.suppress(EngineError):  # the watcher sees that nothing is pending, and cleans up itself
        engine.remove(watcher_name(container))
        engine.remove(kept_name(container))
    shutil.rmtree(folder, ignore_errors=True)
    return True


def how_it_went(folder: str) -> str:
    """How the watcher ended the last change, in words; empty where it ended none."""
    went = read_json(str(Path(folder, "went.json")))
    return f"{went['what']} at {went['at']}: {went['reason']}" if went else ""


def unconfirmed(folder: str) -> str:
    """What is open here, in words without the reason, which may quote a service's log; empty where nothing is."""
    if read(folder) is not None:
        return "a rollout has changed the service and not confirmed it"
    went = read_json(str(Path(folder, "went.json")))
    return (
        f"no rollout confirmed its change, and the node decided at {went['at']}: {went['what']} (watch/went.json)"
        if went
        else ""
    )
