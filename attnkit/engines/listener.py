"""Who listens on a port, read from /proc: whether what answers there is the engine that was started, or somebody else's server.

vLLM binds its port with SO_REUSEPORT, so that a second server on the same port does not fail: it shares it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LISTENING = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]")


def answers(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=2.0):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def listeners(port: int, proc: Path = Path("/proc")) -> frozenset[int] | None:
    """Ids of the processes that listen on a TCP port of this network namespace; None where not every one can be told."""
    wanted = set(_inodes(port, proc))
    if not wanted:
        return frozenset()
    found: dict[int, set[int]] = {}
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        held = wanted & set(_sockets(folder / "fd"))
        if held:
            found[int(folder.name)] = held
    told = set().union(*found.values()) if found else set()
    return frozenset(found) if told == wanted else None


def _sockets(descriptors: Path) -> Iterator[int]:
    """Inodes of the sockets that a process holds; a descriptor may be closed while we look."""
    with suppress(OSError):
        for entry in descriptors.iterdir():
            with suppress(OSError):
                if match := _SOCKET.fullmatch(str(entry.readlink())):
                    yield int(match[1])


def _inodes(port: int, proc: Path) -> Iterator[int]:
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except (OSError, UnicodeDecodeError):
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                yield int(fields[9])


def is_local(host: str) -> bool:
    """Whether a health URL's host is this machine's own loopback, where /proc can tell who listens."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def descends_from(pid: int, ancestor: int, proc: Path = Path("/proc")) -> bool:
    """Whether `pid` is `ancestor`, was started below it, or is of its session (its parent may have died)."""
    current = pid
    for _ in range(64):
        if current == ancestor:
            return True
        try:
            fields = (proc / str(current) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return False
        if int(fields[3]) == ancestor:  # session: the child leads one of its own
            return True
        current = int(fields[1])
        if current <= 1:
            return False
    return False
