"""One HTTP request with limits: a deadline for the whole of it, a size, no redirects, no proxies, http and https only.

The engine that boot starts and the report that a person names by its address are answers from outside: one that comes a byte a
second, has no end or points elsewhere is an error after a known time, never a hang.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

from attnkit.errors import AttnkitError, UsageError

MAX_BYTES = 8 * 2**20


class WebError(AttnkitError):
    """No complete answer; the message says why."""


@dataclass(frozen=True)
class Response:
    """An answer: status, and the whole body."""

    status: int
    body: bytes

    def excerpt(self) -> str:
        """The body's beginning as text, for a message."""
        return self.body[:300].decode("utf-8", "replace")


def check_url(url: str, what: str) -> SplitResult:
    """The parts of an http or https URL.

    Raises:
        UsageError: it is none; the message begins with `what` (an option's name) and repeats no password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{what}: not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{what}: {parts.scheme or 'no scheme'}: must be http://HOST[:PORT]/… or https://…")
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"{what}: a user name or password in the URL is not sent; leave it out")
    if port == 0 or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"{what}: not a URL: it has a port, space or character that no URL has")
    return parts


def request(
    url: str,
    *,
    seconds: float,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    limit: int = MAX_BYTES,
    verify: bool = True,
) -> Response:
    """GET `url`, or POST `body` to it. A redirect is an answer like any other.

    Args:
        seconds: for the whole answer, not for each piece of it.
        limit: most bytes of the answer, headers included.
        verify: check the certificate; False for an engine on this host, whose name is not in its certificate.

    Raises:
        UsageError: no http or https URL.
        WebError: no complete answer in time, or one that is too large or no HTTP.
    """
    parts = check_url(url, "URL")
    deadline = time.monotonic() + seconds
    connection = _connection(parts, seconds, verify)

    def bounded(sock: Any, *arguments: Any, **options: Any) -> http.client.HTTPResponse:
        return http.client.HTTPResponse(cast(Any, _Bounded(sock, deadline, limit)), *arguments, **options)

    connection.response_class = cast(Any, bounded)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET" if body is None else "POST", path, body=body, headers=dict(headers or {}))
        answer = connection.getresponse()
        return Response(answer.status, answer.read())
    except (TimeoutError, BlockingIOError):
        raise WebError(f"no complete answer within {seconds:g} s") from None
    except ssl.SSLError as error:
        raise WebError(f"TLS: {error.reason or error}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WebError(str(getattr(error, "strerror", None) or error) or type(error).__name__) from None
    finally:
        connection.close()


def _connection(parts: SplitResult, seconds: float, verify: bool) -> http.client.HTTPConnection:
    assert parts.hostname is not None
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=seconds)
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=seconds, context=context)


class _Bounded(io.RawIOBase):
    """A socket as a response reads it: every piece within what is left of the deadline and the limit."""

    def __init__(self, sock: socket.socket, deadline: float, limit: int) -> None:
        self._sock, self._deadline, self._left, self._limit = sock, deadline, limit, limit
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open where the connection lets it go

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What `http.client` asks of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Let the socket go."""
        self._raw.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """The next piece."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        count = self._raw.readinto(buffer) or 0
        self._left -= count
        if self._left < 0:
            raise http.client.HTTPException(f"more than {self._limit} bytes")
        return count
