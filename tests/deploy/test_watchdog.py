"""A node's watchdog as a process of its own, on real files, and what the modules of a rollout tell it.

The engine here is a small one in memory behind a real socket; `test_on_a_real_engine` and the lab's scenarios have a real one.
"""

from __future__ import annotations

import http.server
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.attnkit.fleet.plugins.module_utils import pending
from ansible_collections.attnkit.fleet.plugins.module_utils.docker_api import Docker, DockerError
from ansible_collections.attnkit.fleet.plugins.module_utils.watchdog import Watchdog
from ansible_collections.attnkit.fleet.plugins.modules.attnkit_watch import like, watch, write_program

from images.builder import base, platforms

from .conftest import UnixServer

OLD, NEW = "registry:5000/attnkit/cpu@sha256:" + "0" * 64, "registry:5000/attnkit/cpu@sha256:" + "1" * 64
POLICY = {"Name": "unless-stopped", "MaximumRetryCount": 0}
REAL = "attnkit-trial-watch"
"""The service of the test on a real engine."""
SECONDS = 1.0
"""The time-out of the changes here."""


class Containers:
    """The containers of an engine: made, started, renamed, removed over HTTP as with Docker; and what was asked of it."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.refuses: set[str] = set()
        self._numbers = itertools.count(1)

    def find(self, key: str) -> dict[str, Any] | None:
        return next((c for c in self.all if key in (c["Id"], c["Name"].lstrip("/"))), None)

    def make(self, name: str, body: dict[str, Any], *, running: bool = False) -> dict[str, Any]:
        now = datetime.now(timezone.utc).isoformat()
        host = body.get("HostConfig") or {}
        config = {key: value for key, value in body.items() if key != "HostConfig"}
        made: dict[str, Any] = {"Id": f"{next(self._numbers):064x}", "Name": f"/{name}", "Created": now, "RestartCount": 0}
        made |= {"Image": "sha256:image", "Config": {**config, "Hostname": made["Id"][:12]}, "HostConfig": host}
        made["State"] = {"Status": "created", "Running": False, "StartedAt": "0001-01-01T00:00:00Z", "ExitCode": 0, "Error": ""}
        self.all.append(made)
        if running:
            self.start(made)
        return made

    def start(self, container: dict[str, Any]) -> None:
        now = datetime.now(timezone.utc).isoformat()
        container["State"] |= {"Status": "running", "Running": True, "StartedAt": now}

    def answer(self, method: str, target: str, body: Any) -> tuple[int, Any]:
        path, _, query = target.partition("?")
        name = dict(urllib.parse.parse_qsl(query)).get("name", "")
        _, _, key, *rest = path.split("/")
        action = rest[0] if rest else method
        self.asked.append(f"{action} {key}")
        if action in self.refuses:
            return 500, {"message": f"{action} was refused"}
        if key == "create":
            return (201, {"Id": self.make(name, body)["Id"]}) if not self.find(name) else (409, {"message": "in use"})
        container = self.find(key)
        if container is None:
            return 404, {"message": "no such container"}
        if action == "json":
            return 200, container
        if action == "DELETE":
            self.all.remove(container)
        elif action == "rename":
            if self.find(name):
                return 409, {"message": "in use"}
            container["Name"] = f"/{name}"
        elif action == "update":
            container["HostConfig"] |= body
        elif action == "start":
            self.start(container)
        elif action == "stop":
            container["State"] |= {"Status": "exited", "Running": False}
        return (200 if action in ("update", "logs") else 204), None


class _Handler(http.server.BaseHTTPRequestHandler):
    def _reply(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"] or 0))
        status, answer = self.server.containers.answer(  # type: ignore[attr-defined]
            self.command, self.path, json.loads(text) if text else None
        )
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _reply

    def address_string(self) -> str:
        return "client"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on stderr."""


class Node:
    """A node whose old service runs."""

    def __init__(self, folder: Path, containers: Containers) -> None:
        self.state = folder / "state"
        self.folder = self.state / "watch"
        self.run = self.state / "run"
        self.run.mkdir(parents=True)
        self.socket = str(folder / "engine.sock")
        self.containers = containers
        self.old = containers.make("svc", service(OLD), running=True)
        self.parameters: dict[str, Any] = {
            "container": "svc",
            "state_dir": str(self.state),
            "image": NEW,
            "node_type": "cpu",
            "accept_planted": False,
            "settle": 0.0,
            "timeout": SECONDS,
            "docker_socket": self.socket,
        }

    def arm(self, **changed: Any) -> dict[str, Any]:
        """As the rollout does before it changes the service; the change that is pending then."""
        assert watch(Docker(self.socket), {**self.parameters, **changed})
        found = pending.read(str(self.folder))
        assert found is not None
        return found

    def switch(self) -> dict[str, Any]:
        """The new service in the place of the old one."""
        self.containers.all.remove(self.old)
        return self.containers.make("svc", service(NEW), running=True)

    def boots(self, verdict: str) -> None:
        """The service that runs has a boot report with this verdict; ready where it passed."""
        now = datetime.now(timezone.utc).isoformat()
        report = {"schema_version": 1, "created": now, "node_type": "cpu", "verdict": verdict, "error": "off by 0.3"}
        (self.run / "report.json").write_text(json.dumps(report), encoding="utf-8")
        ready = "ready" if verdict == "pass" else "failed"
        (self.run / "ready.json").write_text(json.dumps({"state": ready}), encoding="utf-8")

    def process(self) -> subprocess.Popen[str]:
        """The watchdog as its container runs it."""
        command = [sys.executable, "-m", "attnkit_watch.watchdog", str(self.folder), "--container", "svc"]
        command += ["--socket", self.socket, "--poll", "0.1"]
        return subprocess.Popen(command, env={"PYTHONPATH": str(self.folder / "program")}, stderr=subprocess.DEVNULL, text=True)

    def went(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "went.json").read_text(encoding="utf-8"))
        return found

    def names(self) -> list[str]:
        return sorted(c["Name"].lstrip("/") for c in self.containers.all)


def service(image: str) -> dict[str, Any]:
    """What a service's container was made from."""
    return {"Image": image, "Env": ["TOKEN=secret"], "HostConfig": {"RestartPolicy": POLICY, "ReadonlyRootfs": True}}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    containers = Containers()
    with UnixServer(str(tmp_path / "engine.sock"), _Handler) as server:
        server.containers = containers  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Node(tmp_path, containers)
        server.shutdown()


def _until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def test_setting_the_watchdog_touches_nothing_that_serves(node: Node) -> None:
    before = json.dumps(node.old)
    change = node.arm()
    assert json.dumps(node.old) == before
    assert node.names() == ["svc", "svc-before", "svc-watch"]
    kept, watchdog = node.containers.find("svc-before"), node.containers.find("svc-watch")
    assert kept and watchdog and (change["kept"], change["before"]) == (kept["Id"], node.old["Id"])
    assert kept["State"]["Status"] == "created" and kept["HostConfig"]["RestartPolicy"]["Name"] == "no", "no reboot starts it"
    assert kept["Config"]["Env"] == ["TOKEN=secret"] and kept["Config"]["Image"] == OLD
    assert watchdog["State"]["Running"] and watchdog["Config"]["Image"] == "sha256:image", "of what serves now"
    assert (node.folder / "pending.json").stat().st_mode & 0o777 == 0o600
    assert "secret" not in (node.folder / "pending.json").read_text(encoding="utf-8")


def test_what_is_kept_is_what_served_before_the_first_run(node: Node) -> None:
    """A second run finds the change of a killed one: it renews it, and keeps what that one kept."""
    first = node.arm()
    node.switch()
    os.utime(node.folder / "pending.json", (1, 1))
    watchdog = node.containers.find("svc-watch")
    again = node.arm(image="another", timeout=7.0)
    assert again == {**first, "image": "another", "timeout": 7.0}
    assert time.time() - pending.last_heartbeat(str(node.folder)) < 5
    assert node.containers.find("svc-watch") is watchdog, "it was not started anew"


def test_nothing_is_watched_where_nothing_serves(node: Node) -> None:
    node.containers.all.clear()
    assert not watch(Docker(node.socket), node.parameters)
    assert not node.folder.exists() and node.names() == []


def test_a_bad_release_that_nobody_judges_goes_back(node: Node) -> None:
    assert pending.unconfirmed(str(node.folder)) == ""
    change = node.arm()
    assert "not confirmed" in pending.unconfirmed(str(node.folder))
    node.switch()
    node.boots("fail")
    with node.process() as process:
        assert process.wait(20) == 0
    told = pending.unconfirmed(str(node.folder))
    assert "went back (watch/went.json)" in told and "0.3" not in told, "drift shows no log"
    back = node.containers.find("svc")
    assert back is not None and back["Id"] == change["kept"] and back["State"]["Running"]
    assert back["HostConfig"]["RestartPolicy"] == POLICY
    assert node.names() == ["svc"], "neither the new service nor the watchdog is left"
    assert node.went()["what"] == "went back" and "off by 0.3" in node.went()["reason"]
    assert pending.read(str(node.folder)) is None


@pytest.mark.parametrize(
    ("seen", "what"),
    [("pass", "kept"), ("booting", "went back"), ("restarted", "went back"), ("gone", "went back"), ("unchanged", "untouched")],
)
def test_what_the_node_decides(node: Node, seen: str, what: str) -> None:
    node.arm()
    if seen == "gone":
        node.containers.all.remove(node.old)
    elif seen != "unchanged":
        new = node.switch()
        new["RestartCount"] = int(seen == "restarted")
    if seen == "pass":
        node.boots("pass")
    began = time.monotonic()
    assert Watchdog(str(node.folder), Docker(node.socket), poll=0.05).watch() == what
    assert time.monotonic() - began >= SECONDS, "not before its time"
    runs = node.containers.find("svc")
    assert runs is not None and runs["State"]["Running"]
    assert runs["Config"]["Image"] == (NEW if what == "kept" else OLD)


def test_a_service_that_was_ready_for_a_moment_only_is_not_kept(node: Node) -> None:
    node.arm(settle=2.0)
    new = node.switch()
    time.sleep(SECONDS)
    node.boots("pass")
    watchdog = Watchdog(str(node.folder), Docker(node.socket), poll=0.05)
    watchdog.awake_since = 0.0
    assert watchdog.step() is None, "ready, but not for long enough"
    new["RestartCount"] = 1
    (node.run / "ready.json").write_text('{"state": "engine-starting"}', encoding="utf-8")
    assert watchdog.step() == "went back"


def test_a_slow_rollout_that_lives_is_waited_for(node: Node) -> None:
    node.arm()
    node.switch()
    node.boots("fail")
    with node.process() as process:
        for _ in range(int(3 * SECONDS / 0.2)):
            assert pending.renew(str(node.folder))
            time.sleep(0.2)
            assert process.poll() is None and (pending.read(str(node.folder)) or {})["state"] == "waiting"
        assert process.wait(20) == 0, "and once it is silent, the node decides"
    assert node.went()["what"] == "went back"


def test_a_time_of_its_own_after_a_reboot(node: Node) -> None:
    """The machine was off for an hour: the service boots, and has as long for it as it would have had."""
    node.arm()
    node.switch()
    os.utime(node.folder / "pending.json", (time.time() - 3600,) * 2)
    watchdog = Watchdog(str(node.folder), Docker(node.socket))
    assert watchdog.step() is None
    watchdog.awake_since -= SECONDS
    assert watchdog.step() == "went back"


def test_a_clock_that_was_set_back_does_not_make_it_wait_for_ever(node: Node) -> None:
    node.arm()
    os.utime(node.folder / "pending.json", (time.time() + 3600,) * 2)
    assert time.time() - pending.last_heartbeat(str(node.folder)) < 5
    assert (node.folder / "pending.json").stat().st_mtime <= time.time()


@pytest.mark.parametrize("step", ["DELETE", "rename", "update", "start"])
def test_a_watchdog_killed_on_its_way_back_goes_on(node: Node, step: str) -> None:
    change = node.arm()
    node.switch()
    node.boots("fail")
    node.containers.refuses.add(step)
    node.containers.asked.clear()
    with node.process() as process:
        _until(lambda: any(asked.startswith(step) for asked in node.containers.asked))
        assert not pending.renew(str(node.folder)), "a rollout that comes now is too late"
        process.kill()
    assert (pending.read(str(node.folder)) or {})["state"] == "going back"
    node.containers.refuses.clear()
    with node.process() as process:
        assert process.wait(20) == 0
    runs = node.containers.find("svc")
    assert runs is not None and (runs["Id"], runs["State"]["Running"]) == (change["kept"], True)
    assert node.names() == ["svc"]


def test_confirmed_is_confirmed(node: Node) -> None:
    node.arm()
    node.switch()
    node.boots("fail")
    watchdog = Watchdog(str(node.folder), Docker(node.socket))
    watchdog.awake_since = 0.0
    assert pending.confirm(Docker(node.socket), str(node.folder), "svc")
    assert watchdog.step() == "confirmed"
    assert node.names() == ["svc"] and not node.folder.exists()
    assert pending.confirm(Docker(node.socket), str(node.folder), "svc"), "nothing pending, nothing to do"
    assert not pending.renew(str(node.folder))


def test_who_comes_to_confirm_too_late_is_told(node: Node) -> None:
    change = node.arm()
    pending.write(str(node.folder), "pending.json", {**change, "state": "going back", "reason": "silence"})
    assert not pending.confirm(Docker(node.socket), str(node.folder), "svc")
    assert "svc-before" in node.names()


def test_what_the_node_goes_back_to_is_never_removed_under_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A way back that takes longer than a run waits for: the run changes nothing, and the kept container stays."""
    change = node.arm()
    node.switch()
    pending.write(str(node.folder), "pending.json", {**change, "state": "going back", "reason": "silence"})
    monkeypatch.setattr(pending, "GOING_SECONDS", 0.1)
    before = node.names()
    with pytest.raises(DockerError, match="reverting by itself"):
        watch(Docker(node.socket), node.parameters)
    assert node.names() == before and "svc-before" in before
    assert (pending.read(str(node.folder)) or {})["kept"] == change["kept"]


def test_the_kept_container_is_like_the_old_one_but_for_its_own_name() -> None:
    inspected = {
        "Config": {"Image": OLD, "Hostname": "0123456789ab", "Domainname": "", "Env": ["A=1"], "Labels": {"a": "b"}},
        "HostConfig": {"RestartPolicy": POLICY, "Binds": ["/a:/b:ro"], "AutoRemove": False},
    }
    assert like(inspected) == {
        "Image": OLD,
        "Env": ["A=1"],
        "Labels": {"a": "b"},
        "HostConfig": {"RestartPolicy": {"Name": "no"}, "Binds": ["/a:/b:ro"], "AutoRemove": False},
    }


@pytest.mark.slow
def test_the_modules_through_ansible(node: Node, module: Callable[..., dict[str, Any]]) -> None:
    """The program is written from Ansible's archive, check mode does nothing, and the gate renews and confirms."""
    assert not module("attnkit_watch", node.parameters, check=True)["watched"] and not node.folder.exists()
    armed = module("attnkit_watch", node.parameters)
    assert armed["watched"] and not armed["changed"], armed
    node.switch()
    node.boots("fail")
    gate = {"container": "svc", "run_dir": str(node.run), "image": NEW, "docker_socket": node.socket, "timeout": 5}
    os.utime(node.folder / "pending.json", (1, 1))
    closed = module("attnkit_gate", {**gate, "watch_dir": str(node.folder)})
    assert not closed["ok"] and pending.last_heartbeat(str(node.folder)) > 1, "a heartbeat, and no confirmation"
    with node.process() as process:
        assert process.wait(30) == 0
    assert node.went()["what"] == "went back"
    told = module("attnkit_gate", {**gate, "watch_dir": str(node.folder)})
    assert not told["ok"] and "the node decided by itself: went back at" in told["reason"], told["reason"]

    assert module("attnkit_watch", node.parameters)["watched"]
    node.boots("pass")
    good = {**gate, "image": OLD}
    assert module("attnkit_gate", good)["ok"] and "svc-before" in node.names(), "who only looks confirms nothing"
    assert module("attnkit_gate", {**good, "watch_dir": str(node.folder)}, check=True)["ok"] and node.folder.exists()
    opened = module("attnkit_gate", {**good, "watch_dir": str(node.folder)})
    assert opened["ok"] and not opened["changed"], opened
    assert node.names() == ["svc"] and not node.folder.exists()


def test_no_watchdog_no_change(node: Node) -> None:
    """Where the watchdog does not start, the rollout hears it before it changes anything, and nothing is pending."""
    node.containers.refuses.add("start")
    with pytest.raises(DockerError, match="start was refused"):
        watch(Docker(node.socket), node.parameters)
    assert node.names() == ["svc"] and not node.folder.exists()


def test_the_program_needs_nothing_but_itself(tmp_path: Path) -> None:
    program = write_program(str(tmp_path))
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {program!r}); import attnkit_watch.watchdog"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def real_engine(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """The engine of this machine, with what a service is made from here; its containers go at the end."""

    def docker(*arguments: str, check: bool = True) -> str:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    yield docker
    for name in (REAL, pending.watchdog_name(REAL), pending.kept_name(REAL)):
        docker("rm", "-f", name, check=False)


@pytest.mark.docker
@pytest.mark.slow
def test_on_a_real_engine(tmp_path: Path, real_engine: Callable[..., str], module: Callable[..., dict[str, Any]]) -> None:
    """The watchdog in its own container, under its own confinement, puts a real container back as it was."""
    image = base.base_image(platforms.load()["cpu"].base)
    options = ["--name", REAL, "--read-only", "--cap-drop", "ALL", "--restart", "unless-stopped", "--entrypoint", "python3"]
    shown = "{{json .Config.Env}} {{json .Config.Cmd}} {{json .HostConfig.CapDrop}} {{.HostConfig.RestartPolicy.Name}}"
    wait = ["-c", "import time; time.sleep(600)"]
    real_engine("run", "-d", *options, "-e", "TOKEN=secret", image, *wait)
    old = real_engine("inspect", "--format", shown, REAL)
    (tmp_path / "state" / "run").mkdir(parents=True)
    parameters = {"container": REAL, "state_dir": str(tmp_path / "state"), "image": image, "timeout": 4}
    armed = module("attnkit_watch", parameters)
    assert armed["watched"], armed
    assert real_engine("inspect", "--format", "{{.State.Status}}", f"{REAL}-before") == "created"
    real_engine("rm", "-f", REAL)
    real_engine("run", "-d", *options, image, *wait)  # boots for ever: no report
    _until(lambda: "TOKEN" in real_engine("inspect", "--format", shown, REAL, check=False), 90)
    _until(lambda: not real_engine("ps", "-aq", "--filter", f"name=^{REAL}-"), 60)
    assert real_engine("inspect", "--format", shown, REAL) == old
    assert real_engine("inspect", "--format", "{{.State.Running}}", REAL) == "true"
    went = json.loads((tmp_path / "state" / "watch" / "went.json").read_text(encoding="utf-8"))
    assert (went["what"], went["reason"]) == ("went back", "no boot report yet")
