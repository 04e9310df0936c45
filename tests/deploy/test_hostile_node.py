"""A node that was taken over answers every module as it likes: nothing of it reaches the controller but data."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import DEPLOY

IMAGE = f"registry:5000/attnkit/cpu@sha256:{'0' * 64}"
TASKS = {"ATTNKIT_FLEET_SHOW_TASKS": "true"}
HERE = Path(__file__).parent


@pytest.fixture
def hostile(tmp_path: Path) -> dict[str, Any]:
    """An inventory with one node, its Python in the hands of another, and a record that holds templates."""
    python = tmp_path / "node" / "python"
    python.parent.mkdir()
    shutil.copy(HERE / "hostile_node.py", python)
    text = python.read_text(encoding="utf-8").replace("#!/usr/bin/env python3", f"#!{sys.executable}", 1)
    python.write_text(text, encoding="utf-8")
    python.chmod(0o755)
    state = tmp_path / "state"
    state.mkdir()
    pwn = "{{ lookup('ansible.builtin.pipe', 'touch " + str(python.parent / "target") + "') }}{{ 7 * 191 }}"
    release = {"image": pwn, "platform": "cpu", "node_type": pwn, "env": {"A": pwn}, "port": 8000, "command": [pwn]}
    (state / "release.json").write_text(
        json.dumps({"release": release, "previous": {**release, "port": 8001}}), encoding="utf-8"
    )
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": str(python),
        "attnkit_state_dir": str(state),
        "attnkit_images": {"cpu": IMAGE},
        "attnkit_command": ["vllm", "serve", "/models/m"],
        "attnkit_page": str(tmp_path / "out" / "status.html"),
        "attnkit_plan_dir": str(tmp_path / "out"),
    }
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps({"attnkit": {"hosts": {"a": None}, "vars": variables}}), encoding="utf-8")
    return {"hosts": hosts, "target": python.parent / "target", "page": tmp_path / "out" / "status.html", "tmp": tmp_path}


@pytest.mark.slow
@pytest.mark.parametrize("playbook", ["rollout", "rollback", "status", "drift"])
def test_what_a_node_says_stays_data(playbook: str, hostile: dict[str, Any], ansible: Any) -> None:
    """No command and no template of the node's runs here, no file is written where it says, no escape sequence is sent."""
    done = ansible("ansible-playbook", "-i", str(hostile["hosts"]), f"playbooks/{playbook}.yml", env=TASKS)
    said = done.stdout + done.stderr
    assert "PLAY RECAP" in done.stdout, said
    if playbook == "rollout":
        assert "Run the service" in done.stdout, said  # as far as the hooks
    assert not hostile["target"].exists(), said
    assert "1337" not in said, said
    assert not (hostile["tmp"] / "node" / "elsewhere").exists()
    assert "\x1b" not in said and "\x07" not in said and "\x00" not in said, repr(said)
    if playbook in ("rollout", "rollback"):
        files = [(hostile["tmp"] / "out" / name).read_text(encoding="utf-8") for name in ("plan.json", "plan.html")]
        assert playbook in files[0] and f"{playbook}: 1 of 1 nodes change" in said
        assert not any("1337" in text or "\x1b" in text or "<script" in text for text in files)
    if playbook == "status":
        page = hostile["page"].read_text(encoding="utf-8")
        assert "<script>alert" not in page and "1337" not in page and "\x1b" not in page


@pytest.mark.slow
@pytest.mark.parametrize("playbook", ["rollout", "status"])
def test_a_controller_that_takes_variables_of_nodes_is_told_so(playbook: str, hostile: dict[str, Any], ansible: Any) -> None:
    done = ansible(
        "ansible-playbook", "-i", str(hostile["hosts"]), f"playbooks/{playbook}.yml", env={"ANSIBLE_INJECT_FACT_VARS": "true"}
    )
    assert done.returncode != 0
    assert "inject_facts_as_vars is on" in done.stdout + done.stderr
    assert not hostile["target"].exists()


@pytest.mark.parametrize("role", ["detect", "lock_fleet"])
def test_a_role_of_somebody_elses_playbook_says_so_too(role: str, hostile: dict[str, Any], ansible: Any) -> None:
    play = [
        {
            "hosts": "attnkit",
            "gather_facts": False,
            "vars": {"attnkit_run_id": "x", "attnkit_guard": "a"},
            "tasks": [{"ansible.builtin.include_role": {"name": "attnkit.fleet.common", "tasks_from": role}}],
        }
    ]
    (hostile["tmp"] / "play.json").write_text(json.dumps(play), encoding="utf-8")
    done = ansible(
        "ansible-playbook",
        "-i",
        str(hostile["hosts"]),
        str(hostile["tmp"] / "play.json"),
        env={"ANSIBLE_INJECT_FACT_VARS": "true"},
    )
    assert "inject_facts_as_vars is on" in done.stdout + done.stderr


def test_the_repository_s_own_settings_keep_facts_apart() -> None:
    assert "\ninject_facts_as_vars = false\n" in (DEPLOY / "ansible.cfg").read_text(encoding="utf-8")
