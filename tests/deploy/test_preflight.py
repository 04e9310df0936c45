"""The preflight's checks, each against something real on this machine."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.attnkit.fleet.plugins.filter.fleet import finding_rows, fleet_table, objections
from ansible_collections.attnkit.fleet.plugins.module_utils.docker_api import Docker
from ansible_collections.attnkit.fleet.plugins.modules.attnkit_preflight import (
    check_clock,
    check_devices,
    check_disk,
    check_docker,
    check_port,
    check_registry,
)

IMAGE = "attnkit/cpu@sha256:" + "1" * 64


def test_engine(engine_socket: Any) -> None:
    path, answers = engine_socket
    answers["/info"] = (200, json.dumps({"ServerVersion": "26.1.5", "Driver": "overlay2", "DockerRootDir": "/data"}).encode())
    found, root = check_docker(Docker(path))
    assert found["ok"] and "26.1.5" in found["detail"] and root == "/data"
    found, root = check_docker(Docker(path + ".gone"))
    assert not found["ok"] and root is None and "no answer" in found["detail"]


def test_disk(engine_socket: Any, tmp_path: Path) -> None:
    path, answers = engine_socket
    free = shutil.disk_usage(tmp_path).free
    assert check_disk(Docker(path), str(tmp_path), IMAGE, free // 2)["ok"]
    short = check_disk(Docker(path), str(tmp_path), IMAGE, free * 2)
    assert not short["ok"] and "needed" in short["detail"]
    answers[f"/images/{IMAGE}/json"] = (200, b"{}")
    assert check_disk(Docker(path), str(tmp_path), IMAGE, free * 2)["ok"], "an image that is there needs no space"


def test_port(engine_socket: Any) -> None:
    path, answers = engine_socket
    docker = Docker(path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not check_port(docker, "attnkit", "127.0.0.1", port)["ok"]
        ours = {"State": {"Running": True}, "HostConfig": {"PortBindings": {"8000/tcp": [{"HostPort": str(port)}]}}}
        answers["/containers/attnkit/json"] = (200, json.dumps(ours).encode())
        assert check_port(docker, "attnkit", "127.0.0.1", port)["ok"], "held by the service itself"
        answers["/containers/attnkit/json"] = (200, json.dumps({**ours, "State": {"Running": False}}).encode())
        assert not check_port(docker, "attnkit", "127.0.0.1", port)["ok"]
    assert check_port(docker, "attnkit", "127.0.0.1", port)["ok"]


@pytest.mark.parametrize(("status", "ok"), [(200, True), (401, True), (503, False)])
def test_registry(engine_socket: Any, web: Any, status: int, ok: bool) -> None:
    path, answers = engine_socket
    web.answers["/v2/"] = (status, b"{}")
    host = web.url.removeprefix("http://")
    assert check_registry(Docker(path), f"{host}/{IMAGE}")["ok"] is ok
    answers[f"/images/{host}/{IMAGE}/json"] = (200, b"{}")
    assert check_registry(Docker(path), f"{host}/{IMAGE}")["ok"], "an image that is there needs no registry"


def test_no_registry_and_no_image(engine_socket: Any) -> None:
    path, _ = engine_socket
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    refused = check_registry(Docker(path), f"127.0.0.1:{port}/{IMAGE}")
    assert not refused["ok"] and "refused" in refused["detail"].lower()
    assert "attnkit_images" in check_registry(Docker(path), None)["detail"]


def test_clock_and_devices(tmp_path: Path) -> None:
    assert check_clock(time.time() - 2, 60)["ok"]
    assert not check_clock(time.time() - 120, 60)["ok"]
    assert not check_clock(time.time() + 120, 60)["ok"]
    there, absent = tmp_path / "kfd", tmp_path / "dri"
    there.touch()
    assert check_devices([str(there)])["ok"]
    found = check_devices([str(there), str(absent)])
    assert not found["ok"] and str(absent) in found["detail"] and str(there) not in found["detail"]


def test_one_table_for_all_nodes() -> None:
    """A node that gave no answer is a row, and it speaks against the rollout."""
    hostvars = {"node-1": {"attnkit_findings": [{"check": "disk", "ok": True, "detail": "1.0 GiB free"}]}, "node-2": {}}
    rows = finding_rows(hostvars, ["node-1", "node-2"])
    assert objections(rows) == ["node-2: reachable: no answer"]
    assert fleet_table(rows, ["node", "check", "ok", "detail"]) == [
        "node    check      ok  detail",
        "node-1  disk       ok  1.0 GiB free",
        "node-2  reachable  NO  no answer",
    ]


@pytest.mark.slow
def test_the_module(engine_socket: Any, module: Any) -> None:
    path, _ = engine_socket
    asked = {"container": "attnkit", "port": 1, "image": IMAGE, "docker_socket": path + ".gone", "devices": ["/dev/none-such"]}
    answer = module("attnkit_preflight", asked, check=True)
    assert not answer["changed"] and not answer.get("failed", False)
    found = {f["check"]: f["ok"] for f in answer["findings"]}
    assert found["docker"] is False and found["devices"] is False and found["clock"] is True
