"""Drift: each difference between what runs and what should is found, named, and changes nothing."""

from __future__ import annotations

import copy
import json
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from ansible_collections.attnkit.fleet.plugins.filter.fleet import drift_rows, drifted
from ansible_collections.attnkit.fleet.plugins.module_utils import drift

DIGEST = "registry:5000/attnkit/cuda-ampere@sha256:" + "a" * 64
OTHER = "registry:5000/attnkit/cuda-ampere@sha256:" + "b" * 64
NOW = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
GPU = {
    "vendor": "nvidia", "kind": "gpu", "name": "NVIDIA H100 80GB HBM3", "arch": "sm_90", "index": 0, "driver": "580.65.06",
    "pci_address": "0000:1b:00.0", "pci_id": "10de:2330",
}  # fmt: skip
CPU = {"vendor": "cpu", "kind": "cpu", "name": "Xeon", "arch": "x86_64", "index": 0, "driver": None, "pci_address": None}
RECORDED: dict[str, Any] = {
    "image": DIGEST, "platform": "cuda-ampere", "node_type": "h100", "port": 8000,
    "command": ["vllm", "serve", "/models/llama"], "env": {"VLLM_LOGGING_LEVEL": "INFO"}, "secret_env": ["HF_TOKEN"],
}  # fmt: skip
SECRETS = {"HF_TOKEN": "hf_0123456789"}
IMAGE: dict[str, Any] = {
    "RepoDigests": [DIGEST],
    "Config": {"Cmd": None, "Entrypoint": ["attnkit", "boot"], "Env": ["PATH=/bin", "HOME=/tmp"]},
}
CONTAINER: dict[str, Any] = {
    "Image": "sha256:1",
    "RestartCount": 0,
    "State": {"Status": "running", "Running": True, "ExitCode": 0, "StartedAt": "2026-05-31T12:00:00.123456789Z"},
    "Config": {
        "Image": DIGEST,
        "Cmd": ["--", "vllm", "serve", "/models/llama"],
        "Entrypoint": ["attnkit", "boot"],
        "Env": ["ATTNKIT_NODE=h100", "VLLM_LOGGING_LEVEL=INFO", "HF_TOKEN=hf_0123456789", "PATH=/bin", "HOME=/tmp"],
    },
    "HostConfig": {
        "PortBindings": {"8000/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8000"}]},
        "ReadonlyRootfs": True,
        "Privileged": False,
        "CapAdd": None,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "RestartPolicy": {"Name": "unless-stopped"},
    },
}
DETECTION: dict[str, Any] = {"host": {"kernel": "6.1.0-38-amd64"}, "devices": [GPU, CPU]}
REPORT: dict[str, Any] = {
    "schema_version": 1, "created": "2026-05-31T12:00:01Z", "verdict": "pass", "node_type": "h100", "planted_fault": None,
    "host": {"kernel": "6.1.0-38-amd64"}, "detection": DETECTION,
}  # fmt: skip


def _with(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    *way, last = path.split(".")
    place: Any = changed
    for key in way:
        place = place[int(key)] if key.isdigit() else place[key]
    place[last] = value
    return changed


def test_a_node_as_it_should_be() -> None:
    findings = [
        drift.check_service(CONTAINER),
        drift.check_managed({"release": RECORDED}, ["attnkit", "attnkit-metrics"], "attnkit"),
        drift.check_release(RECORDED, RECORDED),
        drift.check_image(CONTAINER, IMAGE, RECORDED),
        drift.check_configuration(CONTAINER, IMAGE, RECORDED, SECRETS),
        drift.check_report(REPORT, CONTAINER, RECORDED, NOW, 86400 * 2),
        drift.check_kernel(REPORT, DETECTION),
        drift.check_driver(REPORT, DETECTION),
        drift.check_hardware(REPORT, DETECTION),
    ]
    assert tuple(f["check"] for f in findings) == drift.CHECKS
    assert [f for f in findings if not f["ok"]] == []


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("Config.Cmd", ["--", "vllm", "serve", "/models/other"], "another command"),
        ("Config.Entrypoint", ["/bin/sh"], "another entrypoint"),
        (
            "Config.Env",
            ["ATTNKIT_NODE=h100", "HF_TOKEN=hf_0123456789", "PATH=/bin", "HOME=/tmp"],
            "env VLLM_LOGGING_LEVEL is missing",
        ),
        ("Config.Env", [*CONTAINER["Config"]["Env"], "VLLM_USE_V1=0"], "env VLLM_USE_V1 is new"),
        ("Config.Env", [*CONTAINER["Config"]["Env"], "ATTNKIT_NODE=a100"], "env ATTNKIT_NODE has another value"),
        ("Config.Env", [*CONTAINER["Config"]["Env"], "HF_TOKEN=hf_other"], "env HF_TOKEN has another value"),
        ("HostConfig.PortBindings", {"8000/tcp": [{"HostPort": "9000"}]}, "port 9000, not 8000"),
        ("HostConfig.PortBindings", None, "port none, not 8000"),
        ("HostConfig.ReadonlyRootfs", False, "the root file system is writable"),
        ("HostConfig.Privileged", True, "it has capabilities"),
        ("HostConfig.CapAdd", ["SYS_ADMIN"], "it has capabilities"),
        ("HostConfig.CapDrop", None, "it has capabilities"),
        ("HostConfig.SecurityOpt", None, "it may gain privileges"),
        ("HostConfig.RestartPolicy", {"Name": ""}, "restart policy no"),
    ],
)
def test_configuration(path: str, value: Any, found: str) -> None:
    seen = drift.check_configuration(_with(CONTAINER, path, value), IMAGE, RECORDED, SECRETS)
    assert (seen["ok"], seen["found"]) == (False, found)


def test_values_of_the_environment_are_not_shown() -> None:
    changed = _with(CONTAINER, "Config.Env", ["HF_TOKEN=hf_stolen", "VLLM_LOGGING_LEVEL=DEBUG"])
    seen = drift.check_configuration(changed, IMAGE, RECORDED, SECRETS)
    assert not seen["ok"]
    assert not any(value in str(seen) for value in ("hf_stolen", "hf_0123456789", "DEBUG", "INFO"))


def test_a_secret_that_the_inventory_does_not_hold_must_still_be_there() -> None:
    assert drift.check_configuration(CONTAINER, IMAGE, RECORDED, {})["ok"]
    gone = _with(CONTAINER, "Config.Env", CONTAINER["Config"]["Env"][:2] + CONTAINER["Config"]["Env"][3:])
    assert drift.check_configuration(gone, IMAGE, RECORDED, {})["found"] == "env HF_TOKEN is missing"


def test_service() -> None:
    assert drift.check_service(None)["found"] == "no such container"
    ended = drift.check_service(_with(_with(CONTAINER, "State.Status", "exited"), "State.ExitCode", 1))
    assert (ended["ok"], ended["found"]) == (False, "exited with 1")
    looping = drift.check_service(_with(_with(CONTAINER, "State.Status", "restarting"), "RestartCount", 7))
    assert (looping["ok"], looping["found"]) == (False, "restarting, 7 restarts")


def test_managed() -> None:
    stranger = drift.check_managed({"release": RECORDED}, ["attnkit", "bob"], "attnkit")
    assert (stranger["ok"], stranger["found"]) == (False, "bob runs beside it and is not managed")
    assert drift.check_managed(None, ["attnkit"], "attnkit")["found"] == "no release is recorded"
    left = drift.check_managed({"release": RECORDED}, ["attnkit"], "attnkit", "the node decided")
    assert (left["ok"], left["found"]) == (False, "the node decided")


def test_release() -> None:
    wanted = _with(_with(RECORDED, "image", OTHER), "env", {"VLLM_LOGGING_LEVEL": "DEBUG"})
    seen = drift.check_release(RECORDED, wanted)
    assert not seen["ok"]
    assert (
        seen["found"]
        == "env VLLM_LOGGING_LEVEL has another value; image cuda-ampere@aaaaaaaaaaaa, not cuda-ampere@bbbbbbbbbbbb"
    )
    assert not drift.check_release(RECORDED, None)["ok"]
    assert not drift.check_release(None, RECORDED)["ok"]


def test_image() -> None:
    other = drift.check_image(_with(CONTAINER, "Config.Image", OTHER), IMAGE, RECORDED)
    assert (other["ok"], other["should"], other["found"]) == (False, "cuda-ampere@aaaaaaaaaaaa", "cuda-ampere@bbbbbbbbbbbb")
    assert not drift.check_image(CONTAINER, {**IMAGE, "RepoDigests": [OTHER]}, RECORDED)["ok"]
    assert not drift.check_image(CONTAINER, {**IMAGE, "RepoDigests": None}, RECORDED)["ok"]
    assert not drift.check_image(None, None, RECORDED)["ok"]


def test_report() -> None:
    def check(report: dict[str, Any] | None, max_age: int = 0, container: dict[str, Any] = CONTAINER) -> dict[str, Any]:
        return drift.check_report(report, container, RECORDED, NOW, max_age)

    assert check(REPORT)["found"] == "pass, 24 h old"
    assert not check(None)["ok"]
    assert check(REPORT, 86400)["ok"], "as old as it may be"
    assert not check(REPORT, 86398)["ok"]
    assert "the self-test failed" in check({**REPORT, "verdict": "fail"})["found"]
    assert not check({**REPORT, "node_type": "a100"})["ok"]
    assert not check({**REPORT, "planted_fault": "scale"})["ok"]
    later = _with(CONTAINER, "State.StartedAt", "2026-05-31T13:00:00Z")
    assert check(REPORT, container=later)["found"].endswith("of an earlier start of the service")


def test_driver_kernel_hardware() -> None:
    kernel = drift.check_kernel(REPORT, _with(DETECTION, "host", {"kernel": "6.1.0-40-amd64"}))
    assert (kernel["ok"], kernel["should"], kernel["found"]) == (False, "6.1.0-38-amd64", "6.1.0-40-amd64")
    newer = drift.check_driver(REPORT, {**DETECTION, "devices": [{**GPU, "driver": "590.10"}, CPU]})
    assert (newer["ok"], newer["should"], newer["found"]) == (False, "580.65.06", "590.10")
    assert drift.check_driver(REPORT, {**DETECTION, "devices": [{**GPU, "driver": None}, CPU]})["found"] == "none loaded"
    gone = drift.check_hardware(REPORT, {**DETECTION, "devices": [CPU]})
    assert (gone["ok"], gone["found"]) == (False, "NVIDIA H100 80GB HBM3 (sm_90, 0000:1b:00.0) is missing")
    second = {**GPU, "pci_address": "0000:43:00.0", "index": 1}
    assert "is new" in drift.check_hardware(REPORT, {**DETECTION, "devices": [GPU, second, CPU]})["found"]
    swapped = {**GPU, "name": "NVIDIA A100", "arch": "sm_80", "pci_id": "10de:20b5"}
    assert "NVIDIA A100" in drift.check_hardware(REPORT, {**DETECTION, "devices": [swapped, CPU]})["found"]
    # What the self-test's container could not see is no reason to call the node different.
    blind = {**REPORT, "detection": {**DETECTION, "devices": [{**GPU, "driver": None}, CPU]}}
    assert drift.check_driver(blind, DETECTION)["ok"]
    assert not any(check(None, DETECTION)["ok"] for check in (drift.check_kernel, drift.check_driver, drift.check_hardware))


def test_rows_have_every_host() -> None:
    hostvars = {"one": {"attnkit_drift": {"type": "h100", "findings": [drift.drift("kernel", False, "6.1", "6.2")]}}, "two": {}}
    assert drift_rows(hostvars, ["one", "two"])[0] == {"node": "one", "type": "h100", "kernel": "DRIFT"}
    assert [(row["node"], row["check"]) for row in drifted(hostvars, ["one", "two", "three"])] == [
        ("one", "kernel"), ("two", "reachable"), ("three", "reachable"),
    ]  # fmt: skip


def test_the_module(
    module: Callable[..., dict[str, Any]], engine_socket: tuple[str, dict[str, tuple[int, bytes]]], tmp_path: Path
) -> None:
    """Through Ansible, against an engine's answers; the secret is in no output."""
    path, answers = engine_socket
    query = urllib.parse.quote(json.dumps({"label": ["attnkit.platform"]}))
    answers["/containers/attnkit/json"] = (200, json.dumps(CONTAINER).encode())
    answers["/images/sha256:1/json"] = (200, json.dumps(IMAGE).encode())
    answers[f"/containers/json?filters={query}"] = (200, b'[{"Names": ["/attnkit"]}, {"Names": ["/bob"]}]')
    (tmp_path / "run").mkdir()
    (tmp_path / "release.json").write_text(json.dumps({"release": RECORDED, "previous": None}), encoding="utf-8")
    report = {**REPORT, "created": (datetime.now(timezone.utc) - timedelta(minutes=5)).isoformat()}
    (tmp_path / "run" / "report.json").write_text(json.dumps(report), encoding="utf-8")
    arguments = {
        "container": "attnkit", "state_dir": str(tmp_path), "wanted": RECORDED, "secrets": SECRETS, "detection": DETECTION,
        "max_report_age": 3600, "docker_socket": path,
    }  # fmt: skip
    for check in (False, True):
        seen = module("attnkit_drift", arguments, check=check)
        assert not seen["failed"] and not seen["changed"] and seen["drift"]
        assert [f["check"] for f in seen["findings"] if not f["ok"]] == ["managed"]
        assert SECRETS["HF_TOKEN"] not in json.dumps(seen)


def test_an_engine_that_does_not_answer_is_drift(module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    arguments = {
        "container": "attnkit", "state_dir": str(tmp_path), "detection": DETECTION, "docker_socket": str(tmp_path / "no.sock"),
    }  # fmt: skip
    seen = module("attnkit_drift", arguments)
    assert seen["drift"] and "no answer from Docker" in seen["findings"][0]["found"]


@contextmanager
def _planted(on_node: Callable[..., str], node: str, path: str, old: str, new: str) -> Iterator[None]:
    """A file on a node says something else for a while."""
    on_node(node, "cp", "-p", path, f"{path}.kept")
    try:
        on_node(node, "sed", "-i", f"s|{old}|{new}|", path)
        assert on_node(node, "cat", path) != on_node(node, "cat", f"{path}.kept")
        yield
    finally:
        on_node(node, "mv", f"{path}.kept", path)


@pytest.mark.docker
@pytest.mark.slow
def test_drift_of_a_fleet(play: Callable[..., CompletedProcess[str]], on_node: Callable[..., str]) -> None:
    """A kernel that the self-test did not run on and a stranger, on one of three nodes: found there, and only there."""
    kernel = json.loads(on_node("node-2", "cat", "/var/lib/attnkit/run/report.json"))["host"]["kernel"]
    image = on_node("node-2", "docker", "inspect", "--format", "{{.Image}}", "attnkit")
    before = on_node("node-2", "docker", "inspect", "--format", "{{.Id}} {{.State.StartedAt}}", "attnkit")
    try:
        on_node("node-2", "docker", "run", "-d", "--name", "stranger", "--entrypoint", "sleep", image, "300")
        with _planted(
            on_node, "node-2", "/var/lib/attnkit/run/report.json", f'"kernel": "{kernel}"', '"kernel": "5.10.0-planted"'
        ):
            found, shown = play("drift"), play("drift", "--check", "-l", "node-2", "-e", "attnkit_drift_fails=false")
    finally:
        on_node("node-2", "docker", "rm", "-f", "stranger")
    assert found.returncode != 0
    assert shown.returncode == 0, shown.stdout[-4000:]
    for done in (found, shown):
        differing = [line.split() for line in done.stdout.splitlines() if "stranger runs" in line or "5.10.0-planted" in line]
        assert [words[1:3] for words in differing] == [["node-2", "managed"], ["node-2", "kernel"]], done.stdout[-4000:]
        assert all(f"changed={n}" not in done.stdout for n in range(1, 10))
    assert "managed, kernel of this node is not what it should be" in " ".join(found.stdout.split())
    assert on_node("node-2", "docker", "inspect", "--format", "{{.Id}} {{.State.StartedAt}}", "attnkit") == before
    done = play("drift", "--check", "-l", "node-2")
    assert done.returncode == 0 and "no drift" in done.stdout, done.stdout[-4000:]
