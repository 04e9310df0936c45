"""Asking a real HTTP server whether it is healthy and for one completion."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from attnkit.engines.openai import MAX_TOKENS, NoSuchApiError, complete, wait_until_healthy
from attnkit.errors import AttnkitError


@pytest.fixture
def serve(engine: Callable[..., tuple[list[str], str]]) -> Iterator[Callable[..., str]]:
    running: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str) -> str:
        command, url = engine(*arguments)
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        return url

    yield begin
    for process in running:
        process.kill()
        process.wait()


def test_healthy_then_a_completion(serve: Callable[..., str]) -> None:
    url = serve("--healthy-after", "0.5")
    assert wait_until_healthy(url, timeout=20, ended=threading.Event()) > 0
    answer = complete(url, api_key=None)
    assert (answer.model, answer.prompt_tokens, answer.completion_tokens) == ("tiny", 7, MAX_TOKENS)
    assert answer.tokens_per_s == pytest.approx(MAX_TOKENS / answer.seconds)


def test_never_healthy_says_what_it_answered(serve: Callable[..., str]) -> None:
    url = serve("--healthy-after", "1000")
    with pytest.raises(AttnkitError, match=r"not healthy within 2 s: http://127\.0\.0\.1:\d+/health: it answered HTTP 503"):
        wait_until_healthy(url, timeout=2, ended=threading.Event())


def test_the_wait_ends_with_the_engine() -> None:
    ended = threading.Event()
    ended.set()
    with pytest.raises(AttnkitError, match="ended before it was healthy"):
        wait_until_healthy("http://127.0.0.1:9/health", timeout=60, ended=ended)


def test_a_refused_completion_is_quoted(serve: Callable[..., str]) -> None:
    url = serve("--refuse-completions")
    wait_until_healthy(url, timeout=20, ended=threading.Event())
    with pytest.raises(AttnkitError, match=r"HTTP 500.*the kernel exploded"):
        complete(url, api_key=None)


def test_a_server_without_the_api(serve: Callable[..., str]) -> None:
    url = serve("--no-api")
    wait_until_healthy(url, timeout=20, ended=threading.Event())
    with pytest.raises(NoSuchApiError, match="HTTP 404"):
        complete(url, api_key=None)
