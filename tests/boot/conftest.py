"""Running the command line as a person does: a real process, its exit code, stdout and stderr."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from attnkit.engines import tiny_model

ENGINE = Path(__file__).with_name("openai_engine.py")


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that steers attnkit or vLLM."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ATTNKIT_", "VLLM_"))}
    return {**kept, "COLUMNS": "80", "NO_COLOR": "1", **more}


@pytest.fixture
def environment() -> Callable[..., dict[str, str]]:
    """environment(NAME="value") → an environment without anything that steers attnkit or vLLM, and with these."""
    return clean_environment


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """cli("select", "--json", env={…}) → the finished process."""

    def run(
        *arguments: str | Path, env: dict[str, str] | None = None, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "attnkit.cli.app", *map(str, arguments)],
            env=clean_environment(**(env or {})),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@dataclass
class Boot:
    """A boot in progress, with its files."""

    process: subprocess.Popen[str]
    report_path: Path
    ready_path: Path
    metrics_path: Path
    states: list[str] = field(default_factory=list)

    def wait(self, timeout: float = 120) -> int:
        """Exit code; the events and the engine's output are kept."""
        self.out, self.err = self.process.communicate(timeout=timeout)
        return self.process.returncode

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def event(self, name: str) -> dict[str, Any]:
        return next(e for e in self.events if e["event"] == name)

    def names(self) -> list[str]:
        return [e["event"] for e in self.events]

    @property
    def report(self) -> dict[str, Any]:
        return json.loads(self.report_path.read_text())

    def state(self) -> str | None:
        """The readiness file's state now, None where there is no file."""
        try:
            return json.loads(self.ready_path.read_text())["state"]
        except FileNotFoundError:
            return None

    def until(self, state: str, timeout: float = 120) -> None:
        """Wait for a readiness state, keeping every state seen on the way."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            now = self.state()
            if now and (not self.states or self.states[-1] != now):
                self.states.append(now)
            if now == state:
                return
            if self.process.poll() is not None:
                out, err = self.process.communicate()
                raise AssertionError(f"boot ended with {self.process.returncode} before {state}: {out}\n{err}")
            time.sleep(0.01)
        raise AssertionError(f"no state {state} within {timeout} s; seen: {self.states}")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Boot]]:
    """start("--backend", "TORCH_SDPA", "--", *engine) → a Boot; whatever still runs at the end is killed."""
    running: list[Boot] = []

    def begin(*arguments: str | Path, env: dict[str, str] | None = None) -> Boot:
        model = tmp_path / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text(json.dumps(tiny_model.config()))
        report, ready, metrics = tmp_path / "report.json", tmp_path / "ready.json", tmp_path / "attnkit.prom"
        variables = {
            "ATTNKIT_REPORT": str(report),
            "ATTNKIT_READY": str(ready),
            "ATTNKIT_METRICS": str(metrics),
            "ATTNKIT_LEVEL": "quick",
            "ATTNKIT_MODEL": str(model),
            **(env or {}),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "attnkit.cli.app", "boot", *map(str, arguments)],
            env=clean_environment(**variables),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(Boot(process, report, ready, metrics))
        return running[-1]

    yield begin
    for boot in running:
        if boot.process.poll() is None:
            boot.process.send_signal(signal.SIGTERM)
            boot.process.send_signal(signal.SIGTERM)
            try:
                boot.process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                boot.process.kill()
                boot.process.communicate()


@pytest.fixture
def engine() -> Callable[..., tuple[list[str], str]]:
    """engine("--no-api") → the command of a small real engine, and its health URL."""

    def command(*arguments: str) -> tuple[list[str], str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return [sys.executable, str(ENGINE), str(port), *arguments], f"http://127.0.0.1:{port}/health"

    return command


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """installed("0.33.0", registered_as="vllm"): a package that states its version where vLLM does comes first on the path."""
    from attnkit.backends.versions import _library_version  # its cache lives as long as the process

    def put(version: str, *, registered_as: str = "vllm") -> None:
        (tmp_path / "vllm").mkdir()
        (tmp_path / "vllm" / "__init__.py").write_text("raise RuntimeError('vllm was imported')\n")
        (tmp_path / "vllm" / "_version.py").write_text(f"__version__ = version = '{version}'\n")
        info = tmp_path / f"{registered_as.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {registered_as}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        _library_version.cache_clear()

    yield put
    _library_version.cache_clear()
