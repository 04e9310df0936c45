"""Asking a real HTTP server whether it is healthy and for one completion."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
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
