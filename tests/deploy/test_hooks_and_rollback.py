"""Hooks, secrets and rollback, on one node of the demo fleet: a small service beside the node's own, removed at the end.

Its device is simulated, as none of this is about numerics; test_demo.py has boots that validate a backend.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from ansible_collections.attnkit.fleet.plugins.filter.fleet import redact, rollback_rows
from prometheus_client.parser import text_string_to_metric_families

pytestmark = [pytest.mark.slow]

NODE = "node-3"
STATE = "/var/lib/attnkit-trial"
METRICS_PORT = 9401
TEXTFILES = "/tmp/attnkit-textfiles"
SECRET = "hf_planted_secret_4711"
ENVIRONMENT = {"ATTNKIT_PLANTED_ANSWER": "right"}


def test_redact() -> None:
    secrets = {"A": "hf_long", "B": "hf", "C": "", "D": 42}
    assert redact("token hf_long, hf, 42", secrets) == "token ********, ********, ********"
    assert redact(["hf_long", "nothing"], secrets) == ["********", "nothing"]
    assert redact("as it is", {}) == "as it is"


def test_what_would_be_rolled_back() -> None:
    new, old = {"node_type": "h100", "image": "new"}, {"node_type": "h100", "image": "old"}
    hostvars = {
        "a": {"attnkit_recorded": {"release": new, "previous": old}},
        "b": {"attnkit_recorded": {"release": new, "previous": None}},
        "c": {},
    }
    rows = rollback_rows(hostvars, ["a", "b", "c"])
    seen = {"node": "a", "type": "h100", "runs": "new", "before": "old"}
    assert rows[0] == {**seen, "why": "", "moves": True, "objects": False}
    assert [row["why"] for row in rows[1:]] == ["no previous release is recorded", "no answer"]
    assert all(row["objects"] and not row["moves"] for row in rows[1:])


def test_a_rollback_again_takes_no_node_forward() -> None:
    """The first one stopped half way: what it did stays, the rest follows."""
    new, old = {"node_type": "h100", "image": "r/x@sha256:11"}, {"node_type": "h100", "image": "r/x@sha256:00"}
    hostvars = {
        "back": {"attnkit_recorded": {"release": old, "previous": new, "left": new["image"]}},
        "waits": {"attnkit_recorded": {"release": new, "previous": old}},
        "first": {"attnkit_recorded": {"release": old, "previous": None}},
    }
    again = rollback_rows(hostvars, ["back", "waits"])
    assert [(row["moves"], row["objects"]) for row in again] == [(False, False), (True, False)]
    named = rollback_rows(hostvars, ["back", "waits", "first"], "sha256:00")
    assert [(row["moves"], row["objects"]) for row in named] == [(False, False), (True, False), (False, False)]
    wrong = rollback_rows(hostvars, ["back", "waits"], "sha256:77")
    assert all(row["objects"] for row in wrong)
    forward = rollback_rows(hostvars, ["back"], "sha256:11")
    assert forward[0]["moves"], "only where it is asked for by name"


class Trial:
    """Playbooks for the small service, the hooks' log, and what is recorded."""

    def __init__(
        self, play: Callable[..., CompletedProcess[str]], on_node: Callable[..., str], folder: Path, variables: dict[str, Any]
    ) -> None:
        self._play = play
        self._on_node = on_node
        self.on = lambda *command: on_node(NODE, *command)
        self.log = folder / "hooks"
        self.variables = variables

    def play(self, playbook: str, *options: str, **changed: Any) -> CompletedProcess[str]:
        return self._play(playbook, "-l", NODE, "-e", json.dumps({**self.variables, **changed}), *options)

    def hooks(self) -> list[str]:
        """What the hooks wrote since this was last asked."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.on("cat", f"{STATE}/release.json"))
        return found

    def scrape(self) -> str:
        """/metrics of the node, asked until it answers."""
        ask = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{METRICS_PORT}/metrics').read().decode())"
        for _ in range(100):
            text: str = self._on_node(NODE, "python3", "-c", ask, check=False)
            if text:
                return text + "\n"
            time.sleep(0.2)
        raise AssertionError(self.on("docker", "logs", "trial-metrics"))

    def started(self) -> str:
        return self.on("docker", "inspect", "--format", "{{.Id}} {{.State.StartedAt}}", "trial")


@pytest.fixture
def trial(play: Callable[..., CompletedProcess[str]], on_node: Callable[..., str], tmp_path: Path) -> Iterator[Trial]:
    (tmp_path / "again.yml").write_text(
        "- name: Say so\n  ansible.builtin.shell: echo {{ inventory_hostname }} again >> %s\n  delegate_to: localhost\n"
        % (tmp_path / "hooks"),
        encoding="utf-8",
    )
    variables = {
        "attnkit_container": "trial",
        "attnkit_state_dir": STATE,
        "attnkit_port": 8001,
        "attnkit_command": ["python3", "-m", "http.server", "8001"],
        "attnkit_init_command": [],
        "attnkit_ask_completion": False,
        "attnkit_env": ENVIRONMENT,
        "attnkit_accept_planted": True,
        "attnkit_secret_env": {"HF_TOKEN": SECRET},
        "attnkit_metrics_port": METRICS_PORT,
        "attnkit_textfile_dir": TEXTFILES,
        "attnkit_drain_command": ["sh", "-c", f"echo drain {{{{ inventory_hostname }}}} >> {tmp_path / 'hooks'}"],
        "attnkit_serve_tasks": str(tmp_path / "again.yml"),
    }
    on_node(NODE, "mkdir", "-p", TEXTFILES)
    try:
        yield Trial(play, on_node, tmp_path, variables)
    finally:
        on_node(NODE, "docker", "rm", "-f", "trial", "trial-metrics", check=False)
        on_node(NODE, "rm", "-rf", STATE, TEXTFILES)


@pytest.mark.docker
def test_hooks_secrets_and_rollback(trial: Trial) -> None:
    first = trial.play("rollout", "-vvv")
    assert first.returncode == 0, first.stdout[-4000:]
    assert trial.hooks() == [f"drain {NODE}", f"{NODE} again"]
    assert trial.on("docker", "exec", "trial", "printenv", "HF_TOKEN") == SECRET, "the service has it"
    assert trial.record()["release"]["secret_env"] == ["HF_TOKEN"]

    # What a scrape and node_exporter get.
    for text in (trial.scrape(), trial.on("cat", f"{TEXTFILES}/trial.prom") + "\n"):
        samples = {s.name: s for family in text_string_to_metric_families(text) for s in family.samples if s.value}
        assert samples["attnkit_planted_answer"].value == 1
        # What the profile of this CPU names first: a Xeon's names IPEX.
        assert samples["attnkit_backend_info"].labels["backend"] in ("TORCH_SDPA", "IPEX")

    # The same again: nothing is started, so nobody is told.
    before = trial.started()
    assert trial.play("rollout").returncode == 0
    assert (trial.started(), trial.hooks()) == (before, [])

    # A drain that fails: the node is untouched and serves, the rollout stops.
    stuck = trial.play("rollout", attnkit_env={"A": "1"}, attnkit_drain_command=["sh", "-c", "echo no way out >&2; exit 7"])
    assert stuck.returncode != 0 and "no way out" in stuck.stdout, stuck.stdout[-4000:]
    assert (trial.started(), trial.record()["release"]["env"]) == (before, ENVIRONMENT)
    assert trial.hooks() == [f"{NODE} again"], "what was half taken out comes back"

    # A service that prints its secret and dies: the log is shown without it, the node is reverted and serves again.
    telling = ["sh", "-c", "echo the token is $HF_TOKEN; exit 3"]
    failed = trial.play("rollout", "-vvv", attnkit_command=telling)
    assert failed.returncode != 0 and "the token is ***" in failed.stdout, failed.stdout[-4000:]  # by the boot, or by the role
    assert "reverted: yes, and it serves again" in " ".join(failed.stdout.split())
    assert trial.hooks() == [f"drain {NODE}", f"{NODE} again"]

    # Forward and back, by type.
    assert trial.play("rollout", attnkit_env={**ENVIRONMENT, "A": "1"}).returncode == 0
    node_type = trial.record()["release"]["node_type"]  # of the machine that this runs on
    other = trial.play("rollback", "-e", "attnkit_only_type=h100")
    assert other.returncode != 0 and f"no node is recorded as h100; known: {node_type}" in " ".join(other.stdout.split())
    shown = trial.play("rollback", "--check")
    assert shown.returncode == 0 and trial.record()["release"]["env"].get("A") == "1", "a check shows and changes nothing"
    back = trial.play("rollback", "-vvv", "-e", f"attnkit_only_type={node_type}")
    assert back.returncode == 0, back.stdout[-4000:]
    record = trial.record()
    assert (record["release"]["env"], record["previous"]["env"].get("A")) == (ENVIRONMENT, "1")
    again = trial.play("rollback", "-e", f"attnkit_only_type={node_type}")
    assert again.returncode == 0 and trial.record() == record, again.stdout[-4000:]
    assert trial.on("docker", "exec", "trial", "printenv", "HF_TOKEN") == SECRET

    for done in (first, failed, back):
        assert "EXEC" in done.stdout, "it was as verbose as it should be"
        assert SECRET not in done.stdout + done.stderr
    assert SECRET not in json.dumps(record)
    assert trial.on("ls", STATE).split() == ["models", "release.json", "run"], "no lock and no mark stays"
