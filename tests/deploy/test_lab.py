"""The lab's own parts: what it reads of a node, when it acts in a playbook, what it measures, and what it estimates."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from attnkit import profiles
from deploy.lab import controller, estimate, machines, routine, scenario, suite, tables
from deploy.lab.probe import State

from .conftest import COLLECTION

ROOT = Path(__file__).resolve().parents[2]

IMAGE = "registry:5000/attnkit-lab/cpu@sha256:" + "1" * 64


def _state(**changes: Any) -> State:
    raw: dict[str, Any] = {
        "recorded": IMAGE,
        "ready": True,
        "report": {"verdict": "planted"},
        "container": {"running": True, "image": IMAGE, "digests": [IMAGE], "labels": {"attnkit.release": "1"}, "id": "a"},
    }
    answers = changes.pop("answers", True)
    return State(up=True, raw={**raw, **changes}, answers=answers)


def test_a_node_that_serves() -> None:
    assert _state().serves("1") and not _state().serves("2")


@pytest.mark.parametrize(
    "changes",
    [
        {"answers": False},
        {"ready": False},
        {"report": {"verdict": "fail"}},
        {"report": None},
        {"container": None},
        {"recorded": None},
        {"recorded": IMAGE.replace("1" * 64, "2" * 64)},
    ],
)
def test_a_node_that_does_not(changes: dict[str, Any]) -> None:
    assert not _state(**changes).serves("1")


def test_a_digest_that_the_engine_does_not_know() -> None:
    container = {**_state().container, "digests": []}
    assert _state(container=container).works and not _state(container=container).serves("1")


def test_nothing_is_lost_but_a_machine_that_is_down() -> None:
    states = {"node-01": _state(), "node-02": _state(answers=False), "node-03": State(up=False)}
    for down, held in (([], False), (["node-03"], False), (["node-02", "node-03"], True)):
        found = scenario.Case("x")
        found.nothing_lost(states, down=down)
        assert found.passed is held


def test_a_case_without_a_check_does_not_pass() -> None:
    assert not scenario.Case("x").passed


def test_the_same_start_is_untouched_and_another_is_not() -> None:
    again = _state(container={**_state().container, "id": "b"})
    for after, held in ((_state(), True), (again, False), (_state(recorded="other"), False)):
        found = scenario.Case("x")
        found.untouched({"node-01": _state()}, {"node-01": after}, ["node-01"])
        assert found.passed is held


def test_span() -> None:
    assert scenario.span(["node-02", "node-01", "node-03", "node-20"]) == "node 01–03, 20"
    assert scenario.span([]) == "no node"


def test_names_of_scenarios_are_unique() -> None:
    names = [each.name for each in suite.ALL]
    assert len(names) == len(set(names)) > 15


def test_what_node_types_are_given_is_what_their_profiles_say() -> None:
    assert set(routine.GIVEN) == set(machines.KINDS)
    for kind, given in routine.GIVEN.items():
        assert profiles.load_node(kind).platform == given.platform


def _playbook(folder: Path, *tasks: dict[str, Any]) -> Path:
    play = [{"hosts": "box", "connection": "local", "gather_facts": False, "tasks": list(tasks)}]
    file = folder / "play.yml"
    file.write_text(yaml.safe_dump(play, sort_keys=False), encoding="utf-8")
    variables = {"ansible_python_interpreter": str(ROOT / ".venv" / "bin" / "python")}
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": {"box": variables}}}), encoding="utf-8")
    return file


def _wait(name: str, seconds: float) -> dict[str, Any]:
    return {"name": name, "ansible.builtin.command": {"argv": ["sleep", str(seconds)]}}


@pytest.fixture
def controller_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ansible is in the tools' environment, not in the tests'."""
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv" / "bin" / "python"))


@pytest.mark.slow
@pytest.mark.usefixtures("controller_python")
def test_a_moment_comes_once_its_task_is_done(tmp_path: Path) -> None:
    playbook = _playbook(tmp_path, _wait("First", 0), _wait("Second", 3))
    seen: list[int] = []
    moments = [
        controller.Moment("First", "box", lambda process: seen.append(process.pid)),
        controller.Moment("First", "another", lambda process: seen.append(0)),
    ]
    run = controller.play(playbook, tmp_path / "hosts.json", tmp_path / "out.log", moments=moments)
    assert run.code == 0, run.text
    assert seen == [seen[0]] != [0] and [moment.came for moment in moments] == [True, False]
    assert run.changed == {"box": 2}
    assert 0 < run.cpu_seconds < run.seconds * (os.cpu_count() or 1)
    assert 20e6 < run.peak_bytes < 2e9, "Ansible and its worker, by what the kernel says"


@pytest.mark.slow
@pytest.mark.usefixtures("controller_python")
def test_a_killed_controller_leaves_no_process(tmp_path: Path) -> None:
    playbook = _playbook(tmp_path, _wait("First", 0), _wait("Second", 120))
    pids: list[int] = []

    def kill(process: Any) -> None:
        pids.append(process.pid)
        controller.kill(process)

    began = time.monotonic()
    run = controller.play(
        playbook, tmp_path / "hosts.json", tmp_path / "out.log", moments=[controller.Moment("First", "box", kill)]
    )
    assert run.code == -signal.SIGKILL and time.monotonic() - began < 60
    assert controller.memory_of(pids[0]) == 0


def test_makespan() -> None:
    assert estimate.makespan([], 3) == 0
    assert estimate.makespan([1, 1, 1, 1], 2) == 2
    assert estimate.makespan([3, 1, 1, 1], 2) == 3


def test_the_plan_has_the_batches_of_the_playbook() -> None:
    plays = yaml.safe_load((COLLECTION / "playbooks" / "rollout.yml").read_text(encoding="utf-8"))
    serial = next(play["serial"] for play in plays if play.get("hosts") == "attnkit_rest")
    assert [f"{share:.0%}" for share in estimate.SHARES] == serial
    for nodes in (8, 20, 1000, 5000):
        assert sum(estimate.batches(nodes, 7)) == nodes
    assert estimate.batches(20, 7) == [1] * 7 + [1, 6, 6]


def test_more_of_anything_makes_the_plan_no_slower() -> None:
    sites: list[dict[str, int]] = [{}, {"forks": 100}, {"forks": 100, "sources": 20}, {"forks": 400, "sources": 20}]
    hours = [estimate.rollout(1000, estimate.Assumed(**site), 3.0)["hours"] for site in sites]
    assert hours == sorted(hours, reverse=True)


def test_tables_keep_what_is_written_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TABLES", {"one": lambda: ["| a |"], "two": lambda: ["| \\1 b |"]})
    text = "hand\n<!-- one -->\nstale\n<!-- end -->\nby\n<!-- two -->\n<!-- end -->\nend\n"
    made = tables.page(text)
    assert made == "hand\n<!-- one -->\n| a |\n<!-- end -->\nby\n<!-- two -->\n| \\1 b |\n<!-- end -->\nend\n"
    assert tables.page(made) == made
    with pytest.raises(SystemExit, match="no place for the table 'one'"):
        tables.page("nothing")
