"""Times of an engine's start, and what it compiled under load: python -m tools.engines.time_to_ready --json FILE -- COMMAND …

COMMAND is `vllm serve …`, or `attnkit boot -- vllm serve …` (then --ready FILE names its readiness file). Measured from the
command's start: until /health answers, until ready is said, until the first token of the first completion. Then a load of
completions whose prompts, lengths and numbers at once sweep; lines of the log in which vLLM says that it compiled are kept. At
the end the command is told to stop.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from attnkit.jsonio import now, to_json, write_atomically

COMPILED = re.compile(r"jit_monitor|JIT compil", re.IGNORECASE)
LOAD = tuple((length, new, at_once) for at_once in (1, 4, 24) for length in (3, 65, 700, 3000) for new in (1, 24))
"""Words of the prompt, new tokens, completions at once."""


@dataclass
class Times:
    """What was measured, in seconds from the start; None: it did not come to that. engine: as it says itself."""

    taken: str
    command: str
    kind: str = "start"
    engine: str | None = None
    healthy: float | None = None
    ready: float | None = None
    first_token: float | None = None
    answers: int = 0
    failures: list[str] = field(default_factory=list)
    compiled_before_load: list[str] = field(default_factory=list)
    compiled_under_load: list[str] = field(default_factory=list)
    exit_code: int | None = None


def complete(url: str, model: str, words: int, new: int, seed: int) -> str:
    """A completion's text.

    Raises:
        OSError: no answer, or an error.
    """
    prompt = " ".join(str((seed * 7919 + i * 104729) % 9973) for i in range(words))
    asked = {"model": model, "prompt": prompt[: 4 * words], "max_tokens": new, "ignore_eos": True, "temperature": 0.0}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = json.load(answer)["choices"][0]["text"]
    return text


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes], until: float) -> bool:
    """Whether `what` came true before `until` (as of time.monotonic()) and before the process ended."""
    while time.monotonic() < until and process.poll() is None:
        if what():
            return True
        time.sleep(0.05)
    return False


def healthy(url: str) -> bool:
    """Whether the engine says that it serves."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def measure(command: Sequence[str], url: str, model: str, ready: Path | None, log: Path, limit: float) -> Times:
    """Start, ask, load, stop."""
    times = Times(now(), shlex.join(command))
    begin = time.monotonic()

    def since() -> float:
        return round(time.monotonic() - begin, 2)

    def lines() -> list[str]:
        return [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if COMPILED.search(line)]

    def ask(words: int, new: int, seed: int) -> None:
        try:
            complete(url, model, words, new, seed)
            times.answers += 1
        except OSError as error:
            body = error.read()[:200] if isinstance(error, urllib.error.HTTPError) else b""
            times.failures.append(f"{words} words, {new} tokens: {error} {body.decode(errors='replace')}")

    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        until = begin + limit
        if wait_for(lambda: healthy(url), process, until):
            times.healthy = since()
        if ready is None:
            times.ready = times.healthy
        elif times.healthy and wait_for(ready.exists, process, until):
            times.ready = since()
        if times.ready is not None:
            ask(3, 1, 0)
            times.first_token = since()
            with urllib.request.urlopen(f"{url}/version", timeout=5) as answer:
                times.engine = f"vLLM {json.load(answer)['version']}"
            times.compiled_before_load = lines()
            for number, (words, new, at_once) in enumerate(LOAD):
                if time.monotonic() > until:
                    times.failures.append(f"{len(LOAD) - number} of {len(LOAD)} loads not begun in time")
                    break
                with ThreadPoolExecutor(at_once) as pool:
                    list(pool.map(lambda seed, w=words, n=new: ask(w, n, seed), range(1 + number, 1 + number + at_once)))
            times.compiled_under_load = lines()[len(times.compiled_before_load) :]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            times.exit_code = process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where the engine did not get ready or a completion failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m tools.engines.time_to_ready", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, help="the name that the engine serves it under")
    parser.add_argument("--ready", type=Path, help="attnkit boot's readiness file")
    parser.add_argument("--log", type=Path, required=True, help="the command's output goes to this file")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args(words[:split])
    if not words[split + 1 :]:
        parser.error("no command after --")
    if shutil.which(words[split + 1]) is None:
        parser.error(f"{words[split + 1]}: no such program")
    times = measure(words[split + 1 :], asked.url, asked.model, asked.ready, asked.log, asked.limit)
    write_atomically(asked.json, to_json(times))
    print(f"healthy {times.healthy} s, ready {times.ready} s, first token {times.first_token} s; {times.answers} answers, "
          f"{len(times.failures)} failures; compiled {len(times.compiled_before_load)} + {len(times.compiled_under_load)} "
          f"under load; exit code {times.exit_code}")  # fmt: skip
    return 0 if times.first_token is not None and not times.failures else 1


if __name__ == "__main__":
    sys.exit(main())
