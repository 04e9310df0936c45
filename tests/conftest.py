"""What several rooms of the suite share: which machine-dependent tests may run, and the command line as real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import attnkit

ROOT = Path(__file__).resolve().parent.parent
TREES = ROOT / "tests" / "data" / "trees"
ENGINE = ROOT / "tests" / "engines" / "openai_engine.py"
SMALLEST_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_hidden_layers": 1,
    "torch_dtype": "bfloat16",
}
"""What a boot in these tests has to attend for: its self-test is as real as any, and takes a tenth of a second."""

# Workers and their child processes share the cores. OpenMP's threads would wait for one another by spinning, which costs more
# than the tests; those about several threads ask for them by number, and their threads wait without spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# At the end, so that the installed attnkit comes first: the packages tools and images are in the checkout alone.
sys.path.append(str(ROOT))


@cache
def _docker_runs() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30).returncode == 0


@cache
def _cuda_device() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason; ATTNKIT_REQUIRE_DOCKER=1 turns a missing engine into a failure.

    With several workers a file's tests share one, as they share its fixtures; those marked slow go to whichever is free.
    """
    require_docker = os.environ.get("ATTNKIT_REQUIRE_DOCKER") == "1"
    for item in items:
        if item.get_closest_marker("docker") and not require_docker and not _docker_runs():
            item.add_marker(pytest.mark.skip(reason="no container engine runs here (make engine starts one)"))
        if item.get_closest_marker("gpu") and not _cuda_device():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here; the last report is in docs/reports"))
        if config.pluginmanager.hasplugin("xdist") and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


def pytest_report_header() -> str:
    """Say which attnkit is under test: the wheel in site-packages, or this checkout."""
    return f"attnkit {attnkit.__version__} from {Path(attnkit.__file__).parent}"


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def trees() -> Path:
    """Made hardware trees, one directory a node type."""
    return TREES


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that steers attnkit or vLLM."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ATTNKIT_", "VLLM_"))}
    return {**kept, "COLUMNS": "80", "NO_COLOR": "1", **more}


@pytest.fixture
def environment() -> Callable[..., dict[str, str]]:
    """environment(NAME="value") → an environment without anything that steers attnkit or vLLM, and with these."""
    return clean_environment


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
        (model / "config.json").write_text(json.dumps(SMALLEST_MODEL))
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
            [sys.executable, "-m", "attnkit.cli", "boot", *map(str, arguments)],
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
