"""The container engine's HTTP interface over its Unix socket, with the standard library alone.

The modules that only look (preflight, gate) use this, so that they work on a node before anything is installed there.
"""

from __future__ import annotations

import http.client
import json
import socket
import struct
from typing import Any


class EngineError(Exception):
    """The engine did not answer, or answered with an error."""


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """A read-only client.

    Args:
        path: the Unix socket.
        timeout: seconds for each answer.
    """

    def __init__(self, path: str = "/var/run/docker.sock", timeout: float = 10.0) -> None:
        self._path = path
        self._timeout = timeout

    def _get(self, target: str) -> tuple[int, bytes]:
        connection = _SocketConnection(self._path, self._timeout)
        try:
            connection.request("GET", target)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"no answer from the container engine at {self._path}: {error}") from error
        finally:
            connection.close()

    def get(self, target: str) -> Any:
        """The JSON answer, None where the engine says that there is no such thing.

        Raises:
            EngineError: no answer, or an error status.
        """
        status, body = self._get(target)
        if status == 404:
            return None
        if status != 200:
            raise EngineError(f"the container engine answered {status} to {target}: {body.decode(errors='replace')[:300]}")
        return json.loads(body)

    def container(self, name: str) -> dict[str, Any] | None:
        """What `docker inspect` shows, None where there is no such container."""
        answer: dict[str, Any] | None = self.get(f"/containers/{name}/json")
        return answer

    def logs(self, name: str, *, stdout: bool, stderr: bool, tail: int) -> list[str]:
        """The last lines of a container's log, oldest first."""
        target = f"/containers/{name}/logs?stdout={int(stdout)}&stderr={int(stderr)}&tail={tail}"
        status, body = self._get(target)
        return demultiplex(body).splitlines() if status == 200 else []


def demultiplex(raw: bytes) -> str:
    """The text of a log stream: frames of 1 byte stream, 3 zero bytes, 4 bytes length (big endian), then the payload."""
    text = bytearray()
    position = 0
    while position + 8 <= len(raw):
        stream, length = struct.unpack(">BxxxL", raw[position : position + 8])
        if stream > 2:
            return raw.decode(errors="replace")
        text += raw[position + 8 : position + 8 + length]
        position += 8 + length
    return text.decode(errors="replace")
