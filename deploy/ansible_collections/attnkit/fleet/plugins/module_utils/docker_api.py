"""Docker's HTTP interface over its Unix socket, with the standard library alone.

The modules that only read (preflight, gate) use it, so that they work on a node before anything is installed there; and so does
a node's watchdog, which has nothing but the standard library.
"""

from __future__ import annotations

import http.client
import json
import socket
import struct
from typing import Any


class DockerError(Exception):
    """Docker did not answer, or answered with an error."""


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Docker:
    """A client for what the modules here need.

    Args:
        path: the Unix socket.
        timeout: seconds for each answer.
    """

    def __init__(self, path: str = "/var/run/docker.sock", timeout: float = 10.0) -> None:
        self._path = path
        self._timeout = timeout

    def _ask(self, method: str, target: str, body: Any = None, timeout: float | None = None) -> tuple[int, bytes]:
        connection = _SocketConnection(self._path, timeout or self._timeout)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise DockerError(f"no answer from Docker at {self._path}: {error}") from error
        finally:
            connection.close()

    def get(self, target: str) -> Any:
        """The JSON answer, None if Docker has no such object.

        Raises:
            DockerError: no answer, or an error status.
        """
        status, body = self._ask("GET", target)
        if status == 404:
            return None
        if status != 200:
            raise DockerError(f"Docker answered {status} to {target}: {body.decode(errors='replace')[:300]}")
        return json.loads(body)

    def send(self, method: str, target: str, body: Any = None, *, may_lack: bool = False, timeout: float = 60.0) -> Any:
        """Send a request that changes something; the JSON answer, None if it is empty.

        Args:
            method: POST or DELETE.
            target: path and query.
            body: a JSON document.
            may_lack: whether it counts as done if the object does not exist.
            timeout: seconds for the answer.

        Raises:
            DockerError: no answer, or an error status. That it is so already (304) is none.
        """
        status, answer = self._ask(method, target, body, timeout)
        if status == 304 or (status == 404 and may_lack):
            return None
        if not 200 <= status < 300:
            raise DockerError(f"Docker answered {status} to {target}: {answer.decode(errors='replace')[:300]}")
        return json.loads(answer) if answer.strip() else None

    def remove(self, name: str) -> None:
        """Remove a container at once, running or not; nothing if there is none."""
        self.send("DELETE", f"/containers/{name}?force=1&v=1", may_lack=True)

    def container(self, name: str) -> dict[str, Any] | None:
        """What `docker inspect` shows, None if there is no such container."""
        answer: dict[str, Any] | None = self.get(f"/containers/{name}/json")
        return answer

    def logs(self, name: str, *, stdout: bool, stderr: bool, tail: int) -> list[str]:
        """The last lines of a container's log, oldest first."""
        target = f"/containers/{name}/logs?stdout={int(stdout)}&stderr={int(stderr)}&tail={tail}"
        status, body = self._ask("GET", target)
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
