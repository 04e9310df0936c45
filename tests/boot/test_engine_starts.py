"""Engine starts that are not what they seem: found before the self-test, or never ready.

A stand-in called `vllm` is enough to see each; it serves the small engine of tests/engines on the port that it is given.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attnkit.boot.supervisor import Supervisor
from attnkit.engines import listener
from attnkit.engines.openai import wait_until_healthy
from attnkit.errors import AttnkitError

Start = Callable[..., "Boot"]  # noqa: F821 - the class lives in conftest.py
ENGINE = Path(__file__).parents[1] / "engines/openai_engine.py"
SIMULATED = ("--backend", "TORCH_SDPA", "--simulated-device", "right")
STAND_IN = f"""#!{sys.executable}
import os, sys, time
port = sys.argv[sys.argv.index("--port") + 1] if "--port" in sys.argv else "8000"
if "--headless" in sys.argv:
    print("INFO core.py: init engine (profile, create kv cache, warmup model) took 1.00 s", flush=True)
if "--headless" in sys.argv or "--sleep" in sys.argv:
    time.sleep(600)
os.execv(sys.executable, [sys.executable, {str(ENGINE)!r}, port])
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def path(tmp_path: Path) -> dict[str, str]:
    """An environment in which `vllm` is the stand-in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "vllm").write_text(STAND_IN)
    (folder / "vllm").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_port_that_somebody_serves_on_is_refused_before_the_self_test(start: Start, path: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        boot = start(*SIMULATED, "--", "vllm", "serve", "tiny", "--port", str(port), env=path)
        assert boot.wait() == 2
    assert f"something already listens on 127.0.0.1:{port}" in boot.err
    assert "selftest.verdict" not in boot.names()
    assert boot.state() == "failed"


def test_a_server_that_is_not_the_engine_never_makes_it_ready(start: Start, path: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    boot = start(*SIMULATED, "--", "vllm", "serve", "tiny", "--sleep", "--port", str(port), env=path)
    boot.until("engine-starting")
    with subprocess.Popen([sys.executable, str(ENGINE), str(port)], cwd=tmp_path) as other:
        assert boot.wait() == 1
        other.kill()
    assert f"process {other.pid} listens on the engine's port {port} and is not the engine" in boot.report["error"]
    assert "ready" not in boot.states


def test_a_model_of_another_name_is_not_the_one_asked_for(start: Start, path: dict[str, str]) -> None:
    port = str(free_port())
    boot = start(*SIMULATED, "--", "vllm", "serve", "org/model", "--port", port, env=path)
    assert boot.wait() == 1
    assert "serves 'tiny', not 'org/model'" in boot.report["error"]


def test_through_a_wrapper_the_engine_is_known_and_becomes_ready(start: Start, path: dict[str, str]) -> None:
    port = str(free_port())
    command = ("env", "X=1", "nice", "sh", "-c", f"vllm serve org/model --served-model-name tiny --port {port}")
    boot = start(*SIMULATED, "--", *command, env=path)
    boot.until("ready")
    boot.process.terminate()
    boot.wait()
    assert boot.report["engine"]["name"] == "vllm"
    assert not any("engine" in text for text in boot.report["decision"]["warnings"])


def test_what_cannot_be_seen_through_is_a_warning_everywhere(start: Start, path: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "run-vllm.sh").write_text("sleep 600\n")
    boot = start(*SIMULATED, "--", "sh", "run-vllm.sh", env=path)
    boot.until("ready")
    boot.process.terminate()
    boot.wait()
    for warnings in (boot.report["decision"]["warnings"], boot.event("report")["warnings"], boot.event("select")["warnings"]):
        assert any("cannot be seen through" in text for text in warnings)


def test_a_model_that_is_not_there_is_a_warning(start: Start, path: dict[str, str], tmp_path: Path) -> None:
    port = str(free_port())
    env = {**path, "ATTNKIT_MODEL": "", "HF_HOME": str(tmp_path)}
    boot = start(*SIMULATED, "--", "vllm", "serve", "org/model", "--served-model-name", "tiny", "--port", port, env=env)
    boot.until("ready")
    boot.process.terminate()
    boot.wait()
    warnings = boot.event("report")["warnings"]
    assert any("org/model is not on this machine: the shapes of a usual decoder are validated" in text for text in warnings)


def test_a_headless_node_is_ready_once_its_engine_is_initialised(start: Start, path: dict[str, str]) -> None:
    boot = start(*SIMULATED, "--", "vllm", "serve", "tiny", "--headless", env=path)
    boot.until("ready")
    boot.process.terminate()
    boot.wait()
    assert boot.event("ready")["why"].startswith("headless: its log says that its engine is initialised")


@pytest.mark.parametrize("command", [("vlm", "serve", "m"), ("numactl-of-another-name", "vllm", "serve", "m")])
def test_a_program_that_is_not_there_is_found_before_the_self_test(start: Start, path: dict[str, str], command) -> None:
    boot = start(*SIMULATED, "--", *command, env=path)
    assert boot.wait() == 2
    assert f"cannot start '{command[0]}': no such program" in boot.err
    assert ("Did you mean vllm?" in boot.err) == (command[0] == "vlm")
    assert "selftest.verdict" not in boot.names()


def test_an_attention_free_model_is_nothing_to_validate(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mamba.json").write_text('{"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2}')
    boot = start(*SIMULATED, "--model", tmp_path / "mamba.json")
    assert boot.wait() == 4
    assert "holds no softmax attention" in boot.err


def test_who_listens_and_whose_child_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mine:
        port = mine.getsockname()[1]
        assert listener.listeners(port) == {os.getpid()}
        assert listener.answers("127.0.0.1", port)
    assert listener.listeners(port) == frozenset()
    assert not listener.answers("127.0.0.1", port)
    assert listener.descends_from(os.getpid(), os.getpid())
    assert listener.descends_from(os.getpid(), os.getppid())
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
        assert listener.descends_from(child.pid, os.getpid())
        assert not listener.descends_from(os.getpid(), child.pid)
        child.kill()


def test_progress_in_the_output_is_no_hang() -> None:
    """The time limit counts from the last progress; the same count again is none."""
    steps = 'for i in 1 2 3 3 3 3; do echo "Loading shards: $i/9"; sleep 0.2; done; sleep 60'
    supervisor = Supervisor(["sh", "-c", steps], dict(os.environ))
    supervisor.start()
    started = time.monotonic()
    with pytest.raises(AttnkitError, match="after its output last showed progress"):
        wait_until_healthy(
            f"http://127.0.0.1:{free_port()}/health",
            timeout=0.35,
            ended=threading.Event(),
            progress=lambda: supervisor.last_progress,
        )
    assert supervisor.last_progress is not None and supervisor.last_progress > started
    assert time.monotonic() - started > 0.35 + (supervisor.last_progress - started) - 0.01
    supervisor.kill()
    supervisor.wait()
