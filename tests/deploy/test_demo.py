"""The chain for real: `make demo`, again, every playbook in check mode, rollouts that must stop, `make demo-fault`.

Each test says in what state the fleet must be afterwards; the next one starts from there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / ".cache" / "demo" / "inventory.json"
NODES = ("node-1", "node-2", "node-3")

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.usefixtures("demo_fleet")]


def _make(target: str, *variables: str) -> subprocess.CompletedProcess[str]:
    # The demo runs on the Python that the tests run on, as `make test` does.
    done = subprocess.run(["make", target, *variables], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"make {target}:\n{(done.stdout + done.stderr)[-6000:]}"
    return done


def _on(node: str, *command: str) -> str:
    done = subprocess.run(["docker", "exec", f"attnkit-demo-{node}", *command], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _state(nodes: Sequence[str] = NODES) -> dict[str, tuple[str, str, str]]:
    """What every node runs: start of the service, what is recorded, containers."""
    started = "docker inspect --format '{{.Id}} {{.State.StartedAt}}' attnkit"
    script = f"{started}; echo ---; cat /var/lib/attnkit/release.json; echo ---; docker ps -a --format '{{{{.Names}}}}'"
    with ThreadPoolExecutor(len(nodes)) as pool:
        shown = dict(zip(nodes, pool.map(lambda node: _on(node, "sh", "-c", script).split("---"), nodes), strict=True))
    return {node: (service, record, containers) for node, (service, record, containers) in shown.items()}


def _play(playbook: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ANSIBLE_HOME": str(ROOT / ".cache" / "demo" / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
        "ATTNKIT_FLEET_SHOW_TASKS": "true",
    }
    command = [str(ROOT / ".venv" / "bin" / "ansible-playbook"), "-i", str(INVENTORY), f"playbooks/{playbook}.yml", *options]
    return subprocess.run(command, cwd=ROOT / "deploy", env=environment, capture_output=True, text=True, check=False)


def _changed(output: str) -> dict[str, int]:
    return {m[1]: int(m[2]) for m in re.finditer(r"^(?!localhost )(\S+)\s*:\s*ok=\d+\s+changed=(\d+)", output, re.MULTILINE)}


def test_every_node_validated_its_backend_and_serves() -> None:
    for node in NODES:
        report = json.loads((ROOT / "out" / "demo" / node / "report.json").read_text(encoding="utf-8"))
        assert report["verdict"] == "pass"
        assert report["node_type_source"] in ("detected", "given")
        cases = [case for verdict in report["selftest"] for case in verdict["cases"]]
        assert len([c for c in cases if c["outcome"] == "pass"]) >= 10
        assert {verdict["backend"] for verdict in report["selftest"]} == {"vllm:CPU_ATTN"}, (
            "vLLM's own implementation is validated"
        )
        assert (report["backend"], report["engine"]["running_backend"]) == ("CPU_ATTN", "CPU_ATTN")
        assert report["kernels"] == {"baked": 0, "jit_compiles": 0}
        assert report["engine"]["name"] == "vllm"
        assert report["engine"]["completion"]["completion_tokens"] > 0
        events = (ROOT / "out" / "demo" / node / "events.jsonl").read_text(encoding="utf-8").splitlines()
        names = [json.loads(line)["event"] for line in events]
        assert {
            "boot",
            "detect",
            "select",
            "selftest.verdict",
            "report",
            "engine.completion",
            "engine.backend",
            "ready",
        } <= set(names)
        metrics = _on(node, "cat", "/var/lib/attnkit/run/report.prom") + "\n"
        samples = {s.name: s.labels for family in text_string_to_metric_families(metrics) for s in family.samples if s.value}
        assert samples["attnkit_verdict"] == {"outcome": "pass"}
        assert samples["attnkit_backend_info"]["backend"] == "CPU_ATTN"


def test_the_service_runs_locked_down() -> None:
    shown = json.loads(_on("node-1", "docker", "inspect", "attnkit"))[0]
    assert shown["HostConfig"]["ReadonlyRootfs"] is True
    assert shown["HostConfig"]["CapDrop"] == ["ALL"]
    assert shown["HostConfig"]["Privileged"] is False
    assert "no-new-privileges" in shown["HostConfig"]["SecurityOpt"]
    assert shown["Config"]["User"].split(":")[0] == "10001"
    assert re.fullmatch(r"registry:5000/attnkit/cpu@sha256:[0-9a-f]{64}", shown["Config"]["Image"])


def test_a_second_run_changes_nothing() -> None:
    before = _state()
    shown = _make("demo").stdout
    assert "changed tasks: 0;" in shown, shown[-3000:]
    assert _state() == before


@pytest.mark.parametrize("playbook", ["rollout", "verify", "status"])
def test_check_mode_finds_nothing_to_change(playbook: str) -> None:
    before = _state()
    done = _play(playbook, "--check")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert _changed(done.stdout) == dict.fromkeys(NODES, 0)
    assert _state() == before


def test_check_mode_shows_a_change_and_makes_none() -> None:
    before = _state()
    done = _play("rollout", "--check", "-e", json.dumps({"attnkit_env": {"ATTNKIT_LEVEL": "standard"}}))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert set(_changed(done.stdout).values()) == {2}, "the container and the record"
    assert _state() == before


def _must_stop(reason: str, *options: str) -> str:
    """A rollout that must fail with this reason in view, and must leave every service as it is."""
    before = _state()
    done = _play("rollout", *options)
    assert done.returncode != 0, done.stdout[-4000:]
    assert reason in " ".join((done.stdout + done.stderr).split()), done.stdout[-4000:]
    assert _state() == before
    return done.stdout


def test_an_unreachable_node_stops_it_before_anything_changes() -> None:
    others = [node for node in NODES if node != "node-3"]
    before = _state(others)
    subprocess.run(["docker", "pause", "attnkit-demo-node-3"], check=True, capture_output=True)
    try:
        done = _play("rollout", "-e", json.dumps({"attnkit_env": {}}))
    finally:
        subprocess.run(["docker", "unpause", "attnkit-demo-node-3"], check=True, capture_output=True)
    assert done.returncode != 0
    assert "node-3: reachable: no answer" in " ".join(done.stdout.split()), done.stdout[-4000:]
    assert "Lock the node for this run" not in done.stdout
    assert _state(others) == before


def test_a_node_that_another_run_holds_stops_it() -> None:
    lock = "/var/lib/attnkit/lock.json"
    _on("node-1", "sh", "-c", f'echo \'{{"owner": "bob"}}\' > {lock}')
    try:
        _must_stop("bob has held the lock of this node", "-e", json.dumps({"attnkit_env": {}}))
        assert json.loads(_on("node-1", "cat", lock)) == {"owner": "bob"}
    finally:
        _on("node-1", "rm", lock)


def test_an_image_that_is_not_there_leaves_what_runs() -> None:
    missing = "registry:5000/attnkit/cpu@sha256:" + "0" * 64
    output = _must_stop("0000", "-e", json.dumps({"attnkit_images": {"cpu": missing, "ipex": missing}}))
    assert "reverted: yes, and it serves again" in " ".join(output.split())


def test_a_first_installation_that_fails_leaves_nothing_half_running() -> None:
    trial = {
        "attnkit_container": "trial",
        "attnkit_state_dir": "/var/lib/attnkit-trial",
        "attnkit_port": 8001,
        "attnkit_command": [],
        "attnkit_init_command": [],
        "attnkit_env": {"ATTNKIT_FAULT": "scale", "ATTNKIT_LEVEL": "quick"},
    }
    try:
        output = _must_stop("the service was removed", "-l", "node-2", "-e", json.dumps(trial))
        assert "fault 'scale' was injected on purpose" in " ".join(output.split()).replace("''", "'")
        assert _on("node-2", "ls", "/var/lib/attnkit-trial/release.json") == ""
    finally:
        _on("node-2", "rm", "-rf", "/var/lib/attnkit-trial")


def test_a_failing_canary_is_reverted_and_stops_the_rollout() -> None:
    before = _state()
    shown = " ".join(_make("demo-fault").stdout.split())
    assert shown.count(" yes ") >= 6 and " NO " not in shown
    after = _state()
    assert {n: after[n] for n in NODES[1:]} == {n: before[n] for n in NODES[1:]}, "the others are untouched"
    assert after["node-1"][1] == before["node-1"][1], "the record is of the good release"
    environment = _on("node-1", "docker", "inspect", "--format", "{{json .Config.Env}}", "attnkit")
    assert "ATTNKIT_FAULT" not in environment
    report = json.loads(_on("node-1", "cat", "/var/lib/attnkit/run/report.json"))
    assert (report["verdict"], report["planted_fault"]) == ("pass", None)
    failed = " ".join((ROOT / "out" / "demo" / "fault.log").read_text(encoding="utf-8").split())
    assert "the self-test failed (fault 'scale' was injected on purpose)" in failed


def test_verify_after_all_that() -> None:
    done = _play("verify")
    assert done.returncode == 0, done.stdout[-4000:]
