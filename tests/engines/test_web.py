"""The one HTTP client against servers that misbehave: a known end after a known time, in plain words."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from attnkit.engines import web
from attnkit.errors import UsageError

Serve = Callable[[Callable[[socket.socket], None]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(answer) → URL of a server that reads a request and lets `answer` write what it likes."""
    listeners: list[socket.socket] = []

    def begin(answer: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def loop() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.recv(65536)
                        answer(connection)

        threading.Thread(target=loop, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/health"

    yield begin
    for listener in listeners:
        listener.close()


def drip(connection: socket.socket) -> None:
    """A byte every 20 ms, for ever."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"a")
        time.sleep(0.02)


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000000\r\n\r\n")
    while True:
        connection.sendall(b"a" * 65536)


def endless_chunk(connection: socket.socket) -> None:
    """A negative chunk size is read to the end by http.client."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n")
    while True:
        connection.sendall(b"a" * 65536)


def continues(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (drip, "no complete answer within 0.3 s"),
        (endless, "more than 100000 bytes"),
        (endless_chunk, "more than 100000 bytes"),
        (continues, "more than 100000 bytes"),
        (lambda connection: connection.sendall(b"hello"), "hello"),
        (lambda connection: None, "closed|disconnect|without response|end"),
        (lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), "IncompleteRead"),
    ],
    ids=["drip", "endless", "endless-chunk", "continues", "no-http", "nothing", "short"],
)
def test_an_odd_answer_is_an_error_in_plain_words(serve: Serve, answer: Callable[[socket.socket], None], says: str) -> None:
    with pytest.raises(web.WebError, match=says):
        web.request(serve(answer), seconds=0.3 if answer is drip else 20, limit=100_000)


def test_a_redirect_is_an_answer_and_is_not_followed(serve: Serve) -> None:
    asked: list[bool] = []
    other = serve(lambda connection: asked.append(True))
    moved = f"HTTP/1.1 302 Found\r\nLocation: {other}\r\nContent-Length: 0\r\n\r\n".encode()
    assert web.request(serve(lambda connection: connection.sendall(moved)), seconds=20).status == 302
    assert not asked


def test_a_body_and_headers_go_out_and_the_answer_comes_back(serve: Serve) -> None:
    url = serve(lambda connection: connection.sendall(b"HTTP/1.1 201 Made\r\nContent-Length: 2\r\n\r\nok"))
    assert web.request(url, seconds=20, body=b"{}", headers={"A": "b"}) == web.Response(201, b"ok")


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(web.WebError, match="Connection refused"):
        web.request(f"http://127.0.0.1:{port}/", seconds=20)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "data:,ok", "ftp://h/x", "//h", "h:80", "http://", "http://h:0/", "http://h:99999/", "http://h:x/",
     "http://u:hunter2@h/", "http://h/a b", "http://h/\r\nX: y", "http://[::1/", "http://h/é", ""],
)  # fmt: skip
def test_only_http_and_https(url: str) -> None:
    with pytest.raises(UsageError, match="--health-url: ") as caught:
        web.check_url(url, "--health-url")
    assert "hunter2" not in str(caught.value)
