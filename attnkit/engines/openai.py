"""Asking an OpenAI-compatible engine: is it healthy, which model does it serve, does one completion come back."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from attnkit.errors import AttnkitError

POLL_SECONDS = 0.25
PROMPT = "The attention backend of this node"
MAX_TOKENS = 32


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


def wait_until_healthy(url: str, *, timeout: float, ended: threading.Event) -> float:
    """Poll `url` until it answers with a 2xx.

    Args:
        timeout: seconds to wait at most.
        ended: set when the engine is gone; the wait ends then.

    Returns:
        Seconds it took.

    Raises:
        AttnkitError: it did not become healthy in time (with what the last try said), or the engine ended.
    """
    started = time.monotonic()
    said = "it never answered"
    while not ended.is_set():
        try:
            with _open(urllib.request.Request(url), timeout=5.0):
                return time.monotonic() - started
        except urllib.error.HTTPError as error:
            said = f"it answered HTTP {error.code}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            said = f"it never answered ({getattr(error, 'reason', error)})"
        if time.monotonic() - started > timeout:
            raise AttnkitError(f"the engine was not healthy within {timeout:.0f} s: {url}: {said}")
        ended.wait(POLL_SECONDS)
    raise AttnkitError("the engine ended before it was healthy")


def complete(health_url: str, *, api_key: str | None, timeout: float = 120.0) -> Answer:
    """Ask the engine behind `health_url` for one completion through /v1/models and /v1/completions.

    Raises:
        NoSuchApiError: the server does not have these endpoints.
        AttnkitError: no model, no answer, or an answer without text; the message holds what came back.
    """
    parts = urlsplit(health_url)
    base = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
    models = _json(base + "/v1/models", None, api_key, timeout)
    try:
        model = str(models["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise AttnkitError(f"{base}/v1/models lists no model: {str(models)[:200]}") from None
    started = time.monotonic()
    body = {"model": model, "prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0.0}
    answer = _json(base + "/v1/completions", body, api_key, timeout)
    seconds = time.monotonic() - started
    try:
        text = answer["choices"][0]["text"]
    except (KeyError, IndexError, TypeError):
        raise AttnkitError(f"{base}/v1/completions gave no choice: {str(answer)[:200]}") from None
    if not isinstance(text, str):
        raise AttnkitError(f"{base}/v1/completions gave no text: {str(answer)[:200]}")
    usage = answer.get("usage") or {}
    return Answer(model, seconds, usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _json(url: str, body: dict[str, Any] | None, api_key: str | None, timeout: float) -> Any:
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with _open(urllib.request.Request(url, data=data, headers=headers), timeout=timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        if error.code in (404, 405, 501):
            raise NoSuchApiError(f"{url} answered HTTP {error.code}") from None
        raise AttnkitError(f"{url} answered HTTP {error.code}: {error.read(300).decode('utf-8', 'replace')}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise AttnkitError(f"{url} did not answer: {getattr(error, 'reason', error)}") from None


def _open(request: urllib.request.Request, timeout: float) -> Any:
    """Without proxies (the engine is on this host), and without certificate checks: its name is not in its certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    return opener.open(request, timeout=timeout)
