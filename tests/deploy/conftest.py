"""What the fleet's tests share: the collection's Python code as modules, Ansible on this machine, an engine's socket."""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import attnkit

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COLLECTION = DEPLOY / "ansible_collections" / "attnkit" / "fleet"
TOOLS = ROOT / ".venv"
"""Ansible is a tool of the controller and not of the tests' environment, so it is taken from where `make venv` puts it."""

# At the end: whatever the tests' environment has of its own, the attnkit under test above all, comes first.
sys.path += [str(DEPLOY), *map(str, TOOLS.glob("lib/python*/site-packages"))]


@pytest.fixture(scope="session")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run one of Ansible's commands in deploy/, with the attnkit that is under test on the controller's side."""
    home = tmp_path_factory.mktemp("ansible")
    package = home / "under-test"
    package.mkdir()
    (package / "attnkit").symlink_to(Path(attnkit.__file__).parent)

    def run(command: str, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "ANSIBLE_HOME": str(home),
            "ANSIBLE_LOCAL_TEMP": str(home / "tmp"),
            "ANSIBLE_REMOTE_TEMP": str(home / "remote"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "PYTHONPATH": str(package),
            **(env or {}),
        }
        return subprocess.run(
            [str(TOOLS / "bin" / command), *args], cwd=DEPLOY, env=environment, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="session")
def module(ansible: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., dict[str, Any]]:
    """Run a module of the collection on this machine, through Ansible; its result, failed or not."""

    def run(name: str, args: Mapping[str, Any], *, check: bool = False) -> dict[str, Any]:
        interpreter = json.dumps({"ansible_python_interpreter": sys.executable})
        command = ["-i", "localhost,", "-c", "local", "-e", interpreter, "localhost", "-m", f"attnkit.fleet.{name}", "-o"]
        done = ansible("ansible", *command, "-a", json.dumps(dict(args)), *(["--check"] if check else []))
        head, arrow, result = done.stdout.partition("=> ")
        assert arrow, done.stdout + done.stderr
        return {"failed": "FAILED" in head, **json.loads(result)}

    return run


OLD, NEW = (f"registry:5000/attnkit/cuda-ampere@sha256:{digit * 64}" for digit in "ab")
_SUMMARY = {"node_type": "h100", "backend": "FLASH_ATTN", "verdict": "pass", "boot_seconds": 41.5, "tokens_per_s": 3900.0}
PASSED = {"ok": True, "reason": "", "summary": _SUMMARY, "completion": {}, "log_tail": []}
FAILED = {"ok": False, "reason": "the self-test failed: wrong numbers", "summary": {}, "log_tail": ["bad"]}
_ANSWERS: dict[str, Any] = {
    "file": {},
    "docker_image_pull": {"changed": True},
    "docker_container": {"changed": True},
    "docker_container_info": {"exists": True},
    "attnkit_devices": {"groups": []},
    "attnkit_watch": {},
    "attnkit_gate": PASSED,
}
"""What a node without Docker answers, a node that takes every release."""


@pytest.fixture
def answering(tmp_path: Path, ansible: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., tuple[int, str]]:
    """Run a playbook over nodes that answer as they are told and have the release OLD; (exit code, output)."""

    def run(playbook: str, nodes: Mapping[str, Mapping[str, Any]], *options: str, **variables: Any) -> tuple[int, str]:
        release = {"platform": "cuda-ampere", "node_type": "h100", "command": ["vllm"], "port": 8000, "env": {}}
        record = {"release": {**release, "image": OLD}, "previous": {**release, "image": NEW}}
        preflight = {"findings": [{"check": "disk", "ok": True, "detail": "71.2 GiB free"}], "service": None}
        preflight |= {"recorded": record["release"], "recorded_type": "h100"}
        hosts = {}
        for name, answers in nodes.items():
            folder = tmp_path / name
            (folder / "state").mkdir(parents=True, exist_ok=True)
            python = folder / "python"
            text = Path(__file__).with_name("answering_node.py").read_text(encoding="utf-8")
            python.write_text(text.replace("#!/usr/bin/env python3", f"#!{sys.executable}", 1), encoding="utf-8")
            python.chmod(0o755)
            (folder / "state" / "release.json").write_text(json.dumps(record), encoding="utf-8")
            told = {"attnkit_preflight": {**preflight, "machine": name}, **_ANSWERS, **answers}
            (folder / "answers.json").write_text(json.dumps(told), encoding="utf-8")
            hosts[name] = {"ansible_python_interpreter": str(python), "attnkit_state_dir": str(folder / "state")}
        shared = {
            "ansible_connection": "local",
            "attnkit_node_type": "h100",
            "attnkit_images": {"cuda-ampere": NEW},
            "attnkit_command": ["vllm"],
            "attnkit_plan_dir": str(tmp_path / "out"),
            **variables,
        }
        inventory = tmp_path / "hosts.json"
        inventory.write_text(json.dumps({"attnkit": {"hosts": hosts, "vars": shared}}), encoding="utf-8")
        command = ("ansible-playbook", "-i", str(inventory), f"playbooks/{playbook}.yml", *options)
        done = ansible(*command, env={"ANSIBLE_PIPELINING": "true"})  # one process a task less
        return done.returncode, done.stdout

    return run


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers from the server's `answers`: path -> (status, body)."""

    def do_GET(self) -> None:
        status, body = self.server.answers.get(self.path, (404, b'{"message": "no such thing"}'))  # type: ignore[attr-defined]
        key = getattr(self.server, "api_key", None)
        if key and self.headers["Authorization"] != f"Bearer {key}":
            status, body = 401, b'{"error": "Unauthorized"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append(json.loads(asked))  # type: ignore[attr-defined]
        self.do_GET()

    def address_string(self) -> str:
        return "client"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on stderr."""


class UnixServer(socketserver.ThreadingUnixStreamServer):
    """A server on a Unix socket, with recorded answers."""

    answers: dict[str, tuple[int, bytes]]


class HttpServer(http.server.ThreadingHTTPServer):
    """A web server with recorded answers; keeps what was posted. Where it has an `api_key`, it wants to see it."""

    api_key: str | None = None
    answers: dict[str, tuple[int, bytes]]
    posted: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def engine_socket(tmp_path: Path) -> Iterator[tuple[str, dict[str, tuple[int, bytes]]]]:
    """A Unix socket that answers as a container engine does: (path, answers to fill)."""
    path = str(tmp_path / "engine.sock")
    with UnixServer(path, _Answers) as server:
        server.answers = {}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield path, server.answers
        server.shutdown()


@pytest.fixture
def web() -> Iterator[HttpServer]:
    """A web server on this machine."""
    with HttpServer(("127.0.0.1", 0), _Answers) as server:
        server.answers, server.posted = {}, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="session")
def demo_fleet() -> Iterator[Path]:
    """The demo fleet, its inventory; removed at the end where it was not there before."""
    there = subprocess.run(["docker", "inspect", "attnkit-demo-node-1"], capture_output=True, check=False).returncode == 0
    # The demo runs on the Python that the tests run on, as `make test` does.
    done = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"make demo:\n{(done.stdout + done.stderr)[-6000:]}"
    print(done.stdout[-2500:], file=sys.stderr)
    yield ROOT / ".cache" / "demo" / "inventory.json"
    if not there:
        subprocess.run(["make", "demo-down"], cwd=ROOT, capture_output=True, text=True, check=True)


@pytest.fixture(scope="session")
def play(demo_fleet: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a playbook against the demo fleet."""

    def run(playbook: str, *options: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "ANSIBLE_HOME": str(demo_fleet.parent / "ansible"), "ANSIBLE_NOCOLOR": "1"}
        command = [str(TOOLS / "bin" / "ansible-playbook"), "-i", str(demo_fleet), f"playbooks/{playbook}.yml", *options]
        return subprocess.run(command, cwd=DEPLOY, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def on_node(demo_fleet: Path) -> Callable[..., str]:
    """Run a command on a node of the demo fleet; what it printed."""

    def run(node: str, *command: str, check: bool = True) -> str:
        done = subprocess.run(["docker", "exec", f"attnkit-demo-{node}", *command], capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{node}: {command}: {done.stderr}"
        return done.stdout.strip()

    return run
