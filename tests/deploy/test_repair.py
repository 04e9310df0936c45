"""repair.yml: what does not serve is restarted, reverted or left drained, by the policy; what serves is not touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.attnkit.fleet.plugins.action import attnkit_plan
from ansible_collections.attnkit.fleet.plugins.plugin_utils import plan

from .conftest import FAILED, NEW, OLD, PASSED

Play = Callable[..., tuple[int, str]]


def _fleet(**nodes: Any) -> dict[str, Any]:
    release = {"image": OLD, "node_type": "h100"}
    recorded = {"release": release, "previous": {**release, "image": NEW}}
    return {
        name: {"attnkit_outcome": outcome, "attnkit_recorded": recorded, "attnkit_drain_command": ["drain"]}
        for name, outcome in nodes.items()
    }


@pytest.mark.parametrize(
    ("policy", "does"), [("restart", "restart: hangs"), ("revert", "restart, else bbbbbbb: hangs"), ("drain", "drain: hangs")]
)
def test_the_plan_says_what_the_policy_does(policy: str, does: str) -> None:
    made = attnkit_plan.repair(_fleet(a={"ok": True}, b={"ok": False, "reason": "hangs"}), ["a", "b"], policy)
    assert [(node["step"], node["changes"]) for node in made["nodes"]] == [("", []), ("batch 1", [does])]
    assert made["objections"] == []
    assert plan.headline({"kind": "repair", **made}) == "repair: 1 of 2 nodes change; a batch of 1"


def test_what_cannot_be_repaired_is_said_before() -> None:
    fleet = _fleet(a={"ok": False, "reason": "x"}, b={"ok": False, "reason": "x"})
    fleet["a"]["attnkit_recorded"] = {"release": None, "previous": None}
    del fleet["b"]["attnkit_drain_command"]
    restart, drain = (attnkit_plan.repair(fleet, ["a", "b"], policy)["objections"] for policy in ("restart", "drain"))
    assert [(cause["check"], cause["nodes"]) for cause in restart] == [("release", ["a"])]
    assert [(cause["check"], cause["nodes"]) for cause in drain] == [("drain", ["b"])]


def _image(tmp_path: Path, node: str) -> Any:
    return json.loads((tmp_path / node / "state" / "release.json").read_text(encoding="utf-8"))["release"]["image"]


@pytest.mark.slow
def test_what_serves_is_left_alone_and_what_does_not_is_restarted(answering: Play, tmp_path: Path) -> None:
    code, said = answering("repair", {"gpu-1": {}, "gpu-2": {"attnkit_gate": [FAILED, PASSED]}})
    assert code == 0, said
    assert "repair: 1 of 2 nodes change" in said
    assert "gpu-2  service started, self-test under way" in said and "gpu-2  self-test passed, serving  (1 of 1" in said
    assert "gpu-1  s" not in said and "NODES THAT NEED A HAND" not in said
    assert _image(tmp_path, "gpu-2") == OLD
    assert not list(tmp_path.glob("*/state/lock.json"))


@pytest.mark.slow
def test_what_a_restart_does_not_help_is_reverted(answering: Play, tmp_path: Path) -> None:
    code, said = answering("repair", {"gpu-2": {"attnkit_gate": [FAILED, FAILED, PASSED]}}, attnkit_repair="revert")
    assert code == 0, said
    assert "restart, else bbbbbbb" in " ".join(said.split())
    assert _image(tmp_path, "gpu-2") == NEW


@pytest.mark.slow
def test_what_is_to_be_left_drained_is_drained_once(answering: Play, tmp_path: Path) -> None:
    log = tmp_path / "hooks"
    hook = {"attnkit_drain_command": ["sh", "-c", f"echo {{{{ inventory_hostname }}}} >> {log}"], "attnkit_repair": "drain"}
    broken = {"attnkit_gate": FAILED, "docker_container": {"failed": True, "msg": "must not be touched"}}
    for _ in range(2):
        code, said = answering("repair", {"gpu-1": broken, "gpu-2": broken}, **hook)
        assert code == 0, said
        assert "gpu-2: the self-test failed" in said
    assert log.read_text(encoding="utf-8").split() == ["gpu-1", "gpu-2"]
