"""Asking an OpenAI-compatible engine: is it healthy, which model does it serve, does one completion come back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from attnkit.engines import web
from attnkit.errors import AttnkitError, UsageError
from attnkit.jsonio import parse_json, shorten

POLL_SECONDS = 0.25
PROMPT = "The attention backend of this node"
MAX_TOKENS = 32
MOST_TOKENS = 2**31
"""No count of tokens in an answer is larger."""


class NoSuchApiError(AttnkitError):
    """The server is there but does not speak the OpenAI API."""


@dataclass(frozen=True)
class Answer:
    """One completion.

    Args:
        seconds: wall time of the request.
        prompt_tokens, completion_tokens: as the engine counted them, None where it did not say.
    """

    model: str
    seconds: float
    prompt_tokens: int | None
    completion_tokens: int | None

    @property
    def tokens_per_s(self) -> float | None:
        """Completion tokens a second of the whole request, the first token's wait included."""
        return self.completion_tokens / self.seconds if self.completion_tokens and self.seconds > 0 else None


def wait_until_healthy(
    url: str, *, timeout: float, ended: threading.Event, progress: Callable[[], float | None] = lambda: None
) -> float:
    """Poll `url` until it answers with a 2xx; a redirect is none.

    Args:
        timeout: seconds to wait at most without progress.
        progress: when the engine was last seen to get on (`time.monotonic`), None: never.
        ended: set when the engine is gone; the wait ends then.

    Returns:
        Seconds it took.

    Raises:
        UsageError: no http or https URL.
        AttnkitError: it did not become healthy in time (with what the last try said), or the engine ended.
    """
    started = time.monotonic()
    said = "it never answered"
    while not ended.is_set():
        left = timeout - (time.monotonic() - max(started, progress() or started))
        try:
            answer = web.request(url, seconds=max(0.1, min(5.0, left)), verify=False)
            if 200 <= answer.status < 300:
                return time.monotonic() - started
            said = f"it answered HTTP {answer.status}"
        except web.WebError as error:
            said = f"it never answered ({error})"
        last = progress()
        if time.monotonic() - max(started, last or started) > timeout:
            since = "" if last is None else " after its output last showed progress"
            raise AttnkitError(
                f"the engine was not healthy within {timeout:.0f} s{since}: {url}: {said}",
                f"see what it was doing in its last lines; if it needs longer, set ATTNKIT_HEALTH_TIMEOUT above {timeout:.0f}",
            )
        ended.wait(POLL_SECONDS)
    raise AttnkitError("the engine ended before it was healthy")


def complete(health_url: str, *, api_key: str | None, timeout: float = 120.0) -> Answer:
    """Ask the engine behind `health_url` for one completion through /v1/models and /v1/completions.

    Raises:
        NoSuchApiError: the server does not have these endpoints.
        AttnkitError: no model, no answer, none with text, counts that are none; the message holds what came back.
    """
    parts = urlsplit(health_url)
    base = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
    models = _json(base + "/v1/models", None, api_key, timeout)
    try:
        model = models["data"][0]["id"]
    except (KeyError, IndexError, TypeError):
        model = None
    if not isinstance(model, str) or not 0 < len(model) <= 4096:
        raise AttnkitError(f"{base}/v1/models lists no model: {_excerpt(models)}")
    started = time.monotonic()
    body = {"model": model, "prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0.0}
    answer = _json(base + "/v1/completions", body, api_key, timeout)
    seconds = time.monotonic() - started
    try:
        text = answer["choices"][0]["text"]
    except (KeyError, IndexError, TypeError):
        raise AttnkitError(f"{base}/v1/completions gave no choice: {_excerpt(answer)}") from None
    if not isinstance(text, str):
        raise AttnkitError(f"{base}/v1/completions gave no text: {_excerpt(answer)}")
    usage = answer.get("usage")
    if not isinstance(usage, dict | None):
        raise AttnkitError(f"{base}/v1/completions gave no usage: {_excerpt(usage)}")
    prompt, completion = (_count(usage or {}, name, base) for name in ("prompt_tokens", "completion_tokens"))
    return Answer(model, seconds, prompt, completion)


def _count(usage: dict[str, Any], name: str, base: str) -> int | None:
    value = usage.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS):
        return value
    raise AttnkitError(f"{base}/v1/completions: usage.{name} is {_excerpt(value)}, not a number of tokens")


def _excerpt(value: Any) -> str:
    return shorten(json.dumps(value, ensure_ascii=False), 200)


def _json(url: str, body: dict[str, Any] | None, api_key: str | None, timeout: float) -> Any:
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        response = web.request(url, seconds=timeout, body=data, headers=headers, verify=False)
    except web.WebError as error:
        raise AttnkitError(f"{url} did not answer: {error}") from None
    if response.status in (404, 405, 501):
        raise NoSuchApiError(f"{url} answered HTTP {response.status}")
    if not 200 <= response.status < 300:
        raise AttnkitError(f"{url} answered HTTP {response.status}: {response.excerpt()}")
    try:
        return parse_json(response.body, url)
    except UsageError as error:  # of the engine, not of who started it
        raise AttnkitError(f"{url} did not answer in JSON: {error}") from None
