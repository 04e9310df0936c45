"""Asking a real HTTP server whether it is healthy and for one completion."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from attnkit.engines.openai import MAX_TOKENS, NoSuchApiError, complete, wait_until_healthy
from attnkit.errors import AttnkitError


@pytest.fixture
def serve(engine: Callable[..., tuple[list[str], str]], tmp_path: Path) -> Iterator[Callable[..., str]]:
    running: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str) -> str:
        command, url = engine(*arguments)
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path))
        assert running[-1].stdout is not None
        assert running[-1].stdout.readline() == b"engine: listening\n"
        return url

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def test_not_healthy_says_what_it_answered_and_healthy_gives_a_completion(serve: Callable[..., str], tmp_path: Path) -> None:
    url = serve("--healthy-when", str(tmp_path / "loaded"))
    with pytest.raises(AttnkitError, match=r"not healthy within 1 s: http://127\.0\.0\.1:\d+/health: it answered HTTP 503"):
        wait_until_healthy(url, timeout=1, ended=threading.Event())
    (tmp_path / "loaded").touch()
    assert wait_until_healthy(url, timeout=120, ended=threading.Event()) > 0
    answer = complete(url, api_key=None)
    assert (answer.model, answer.prompt_tokens, answer.completion_tokens) == ("tiny", 7, MAX_TOKENS)
    assert answer.tokens_per_s == pytest.approx(MAX_TOKENS / answer.seconds)


def test_the_wait_ends_with_the_engine() -> None:
    ended = threading.Event()
    ended.set()
    with pytest.raises(AttnkitError, match="ended before it was healthy"):
        wait_until_healthy("http://127.0.0.1:9/health", timeout=60, ended=ended)


def test_a_refused_completion_is_quoted(serve: Callable[..., str]) -> None:
    url = serve("--refuse-completions")
    wait_until_healthy(url, timeout=120, ended=threading.Event())
    with pytest.raises(AttnkitError, match=r"HTTP 500.*the kernel exploded"):
        complete(url, api_key=None)


def test_a_server_without_the_api(serve: Callable[..., str]) -> None:
    url = serve("--no-api")
    wait_until_healthy(url, timeout=120, ended=threading.Event())
    with pytest.raises(NoSuchApiError, match="HTTP 404"):
        complete(url, api_key=None)


MODELS, CHOICE = b'{"data": [{"id": "tiny"}]}', '{"choices": [{"text": "a"}], "usage": %s}'


@pytest.fixture
def answers() -> Iterator[Callable[[bytes, bytes], str]]:
    """answers(models, completion) → URL of a server that says just that."""
    servers: list[ThreadingHTTPServer] = []

    def begin(models: bytes, completion: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.say(models)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.say(completion)

            def say(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/health"

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("models", "completion", "says"),
    [
        (MODELS, (CHOICE % '"many"').encode(), "gave no usage"),
        (MODELS, (CHOICE % "[1, 2]").encode(), "gave no usage"),
        (MODELS, (CHOICE % '{"completion_tokens": "5"}').encode(), r"usage.completion_tokens is \"5\", not a number of tokens"),
        (MODELS, (CHOICE % '{"completion_tokens": -1}').encode(), "not a number of tokens"),
        (MODELS, (CHOICE % '{"prompt_tokens": true}').encode(), "not a number of tokens"),
        (MODELS, (CHOICE % ('{"completion_tokens": 1' + "0" * 400 + "}")).encode(), "more than 64 bits"),
        (MODELS, (CHOICE % '{"completion_tokens": 1e400}').encode(), "too large"),
        (MODELS, b"[" * 200_000, "nested deeper"),
        (MODELS, b'{"choices": {"0": 1}}', "gave no choice"),
        (MODELS, b'{"choices": [{"text": 3}]}', "gave no text"),
        (MODELS, b'"choices"', "gave no choice"),
        (MODELS, b"\xff\xfe", "did not answer in JSON"),
        (b'{"data": [{"id": ["a"]}]}', b"", "lists no model"),
        (b'{"data": {}}', b"", "lists no model"),
        (b"3", b"", "lists no model"),
        (b'{"data": [{"id": ""}]}', b"", "lists no model"),
    ],
)
def test_an_odd_answer_is_an_error_with_what_came_back(
    answers: Callable[[bytes, bytes], str], models: bytes, completion: bytes, says: str
) -> None:
    with pytest.raises(AttnkitError, match=says) as caught:
        complete(answers(models, completion), api_key=None)
    assert len(str(caught.value)) < 500


def test_counts_that_are_absent_are_unknown(answers: Callable[[bytes, bytes], str]) -> None:
    answer = complete(answers(MODELS, b'{"choices": [{"text": ""}]}'), api_key=None)
    assert (answer.prompt_tokens, answer.tokens_per_s) == (None, None)
