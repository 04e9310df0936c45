"""The playbooks and roles as text: they parse, arguments are described once, the known traps of Ansible are not in them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.attnkit.fleet.plugins.filter.fleet import canaries

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PLAYBOOKS = sorted((DEPLOY / "playbooks").glob("*.yml"))
MODULES = sorted((DEPLOY / "plugins" / "modules").glob("*.py"))
ROLES = sorted(p for p in (DEPLOY / "roles").iterdir() if p.is_dir())


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_there_is_something_to_test() -> None:
    assert {p.stem for p in PLAYBOOKS} >= {"rollout", "verify", "status", "rollback"}
    assert ROLES and MODULES


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda p: p.stem)
def test_syntax(playbook: Path, ansible: Any) -> None:
    done = ansible("ansible-playbook", "--syntax-check", "-i", "inventories/example", str(playbook))
    assert done.returncode == 0, done.stdout + done.stderr
    # The groups that the rollout makes on its way are not there yet.
    warnings = [w for w in done.stderr.splitlines() if "WARNING" in w and "ignoring: attnkit_" not in w]
    assert not warnings


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda p: p.stem)
def test_what_limits_a_batch_is_literal(playbook: Path) -> None:
    """A templated any_errors_fatal is true even where it renders false; max_fail_percentage overlooks unreachable hosts."""
    for play in _yaml(playbook):
        assert "max_fail_percentage" not in play
        for key in ("serial", "any_errors_fatal"):
            assert "{{" not in str(play.get(key, "")), f"{play['name']}: {key}"


def test_a_way_back_starts_with_one_node() -> None:
    serials = [play["serial"] for play in _yaml(DEPLOY / "playbooks" / "rollback.yml") if "serial" in play]
    assert serials == [[1, "25%"]]


def test_a_rollout_starts_with_one_node() -> None:
    serials = [play["serial"] for play in _yaml(DEPLOY / "playbooks" / "rollout.yml") if "serial" in play]
    assert serials == [1, ["10%", "50%", "100%"]]


@pytest.mark.parametrize("role", ROLES, ids=lambda p: p.name)
def test_every_variable_is_described(role: Path) -> None:
    defaults = _yaml(role / "defaults" / "main.yml")
    for entry, spec in _yaml(role / "meta" / "argument_specs.yml")["argument_specs"].items():
        assert set(spec["options"]) == set(defaults), entry
        assert (role / "tasks" / f"{entry}.yml").is_file()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_documentation_is_the_argument_spec(path: Path) -> None:
    """Names, types, defaults, choices and what is required: the documentation says what the code takes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = next(
        yaml.safe_load(ast.literal_eval(node.value))["options"]
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "DOCUMENTATION"
    )
    spec = next(
        ast.literal_eval(keyword.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "AnsibleModule"
        for keyword in node.keywords
        if keyword.arg == "argument_spec"
    )
    compared = ("type", "default", "choices", "required", "elements")
    assert {n: {k: o[k] for k in compared if k in o} for n, o in documented.items()} == {
        n: {k: o[k] for k in compared if k in o} for n, o in spec.items()
    }


def test_every_platform_has_its_devices() -> None:
    """The role knows what each image family needs of a node, and no other."""
    platforms = _yaml(DEPLOY.parent / "images" / "platforms.yaml")
    assert set(_yaml(DEPLOY / "roles" / "attnkit" / "vars" / "main.yml")["attnkit_access"]) == set(platforms)


def test_the_service_is_locked_down() -> None:
    folder = DEPLOY / "roles" / "attnkit" / "tasks"
    tasks = _yaml(folder / "apply.yml") + _yaml(folder / "metrics.yml")
    containers = [t["community.docker.docker_container"] for t in tasks if "community.docker.docker_container" in t]
    assert len(containers) == 4, "the init command, a look, the service, its metrics"
    assert containers[1] is containers[2], "what is looked at is what is started"
    for container in containers:
        assert container["read_only"] is True
        assert container["cap_drop"] == ["ALL"]
        assert container["security_opts"] == ["no-new-privileges"]
        assert "privileged" not in container


def test_no_service_is_changed_before_its_node_could_go_back_by_itself() -> None:
    tasks = _yaml(DEPLOY / "roles" / "attnkit" / "tasks" / "apply.yml")
    names = [task["name"] for task in tasks]
    watched, run = (names.index(name) for name in ("Let the node go back by itself where this run ends", "Run the service"))
    assert run == watched + 1
    gate = tasks[run + 1]["attnkit.fleet.attnkit_gate"]
    assert gate["watch_dir"] == tasks[watched]["attnkit.fleet.attnkit_watch"]["state_dir"] + "/watch"
    for other in ("verify", "drift", "look"):
        assert "watch_dir" not in (DEPLOY / "roles" / "attnkit" / "tasks" / f"{other}.yml").read_text(encoding="utf-8")


def test_the_collection_is_found_by_its_full_name() -> None:
    links = DEPLOY / "collections" / "ansible_collections" / "attnkit" / "fleet"
    assert {p.name for p in links.iterdir()} >= {"galaxy.yml", "meta", "playbooks", "plugins", "roles", "README.md"}
    for link in links.iterdir():
        assert link.resolve(strict=True) == DEPLOY / link.name


def test_the_example_pulls_by_digest_for_known_platforms() -> None:
    platforms = _yaml(DEPLOY.parent / "images" / "platforms.yaml")
    images = _yaml(DEPLOY / "inventories" / "example" / "group_vars" / "attnkit.yml")["attnkit_images"]
    assert set(images) <= set(platforms)
    assert all("@sha256:" in image for image in images.values())


def test_the_canaries_are_the_first_of_their_types_in_the_order_of_the_inventory() -> None:
    types = {"b": "h100", "a": "a100", "c": "a100", "d": "h100", "e": "cpu"}
    hostvars = {name: {"ansible_facts": {"attnkit": {"node_type": kind}}} for name, kind in reversed(types.items())}
    assert canaries(hostvars, list(types)) == ["b", "a", "e"]
