"""The collection: playbooks parse, everything is documented once, known traps of Ansible are avoided, and it builds."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.attnkit.fleet.plugins.filter.fleet import FilterModule, canaries

from deploy import roles

from .conftest import COLLECTION, DEPLOY

PLAYBOOKS = sorted((COLLECTION / "playbooks").glob("*.yml"))
MODULES = sorted(path.stem for path in (COLLECTION / "plugins" / "modules").glob("*.py"))
COMMON = COLLECTION / "roles" / "common"


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_there_is_something_to_test() -> None:
    assert {p.stem for p in PLAYBOOKS} >= {"rollout", "verify", "status", "rollback"}
    assert len(MODULES) == 9


def test_playbooks_have_a_path_in_deploy() -> None:
    assert {p.name for p in (DEPLOY / "playbooks").iterdir()} == {p.name for p in PLAYBOOKS}


@pytest.mark.parametrize("playbook", ["playbooks/{}.yml", "attnkit.fleet.{}"])
@pytest.mark.parametrize("name", [p.stem for p in PLAYBOOKS])
def test_syntax(name: str, playbook: str, ansible: Any) -> None:
    """By the path that scripts use, and by the collection's name."""
    done = ansible("ansible-playbook", "--syntax-check", "-i", "inventories/example", playbook.format(name))
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


def test_a_rollback_starts_with_one_node() -> None:
    serials = [play["serial"] for play in _yaml(COLLECTION / "playbooks" / "rollback.yml") if "serial" in play]
    assert serials == [[1, "25%"]]


def test_a_rollout_starts_with_one_node() -> None:
    serials = [play["serial"] for play in _yaml(COLLECTION / "playbooks" / "rollout.yml") if "serial" in play]
    assert serials == [1, ["10%", "50%", "100%"]]


def test_options_of_the_roles_are_described_once() -> None:
    """Defaults and argument specs are what deploy/roles.py writes from the one description."""
    assert [path.name for path, text in roles.files().items() if path.read_text(encoding="utf-8") != text] == []


@pytest.mark.parametrize("role", [*roles.ROLES, "common"])
def test_no_role_takes_an_undescribed_option(role: str) -> None:
    """A variable that a role's tasks read is an option, or is set by a task or a playbook."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(COLLECTION.glob("roles/*/tasks/*.yml")))
    text += "".join(path.read_text(encoding="utf-8") for path in [*PLAYBOOKS, COMMON / "vars" / "main.yml"])
    made = set(re.findall(r"^ *(?:register: )?(attnkit_\w+)(?::|$)", text, re.MULTILINE))
    own = "".join(path.read_text(encoding="utf-8") for path in (COLLECTION / "roles" / role).glob("tasks/*.yml"))
    used = set(re.findall(r"(?<![\w./'])attnkit_\w+(?![\w:.]*\.yml)", own)) - set(MODULES)
    assert used - made - set(roles.options()) == set()


def test_ansible_doc_shows_every_option_of_a_role_with_its_default(ansible: Any) -> None:
    names = [f"attnkit.fleet.{role}" for role in roles.ROLES]
    done = ansible("ansible-doc", "-j", "-t", "role", *names)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    defaults = _yaml(COMMON / "defaults" / "main.yml")
    assert set(defaults) == {name for role in names for name in shown[role]["entry_points"]["main"]["options"]}
    for role in names:
        options = shown[role]["entry_points"]["main"]["options"]
        assert {name: option["default"] for name, option in options.items()} == {name: defaults[name] for name in options}


@pytest.fixture(scope="module")
def documented(ansible: Any) -> dict[str, Any]:
    """What ansible-doc shows of every module and filter, by its full name."""
    shown: dict[str, Any] = {}
    for kind, names in (("module", MODULES), ("filter", [*FilterModule().filters(), "status_page"])):
        done = ansible("ansible-doc", "-j", "-t", kind, *(f"attnkit.fleet.{name}" for name in names))
        assert done.returncode == 0, done.stderr
        shown |= json.loads(done.stdout)
    return shown


def test_ansible_doc_knows_everything(documented: dict[str, Any]) -> None:
    assert len(documented) == len(MODULES) + 13
    for name, parts in documented.items():
        assert parts["doc"]["description"] and parts["examples"] and parts["return"], name


@pytest.mark.parametrize("name", MODULES)
def test_documentation_is_the_argument_spec(name: str, documented: dict[str, Any]) -> None:
    """Names, types, defaults, choices and what is required: the documentation says what the code takes."""
    arguments = importlib.import_module(f"ansible_collections.attnkit.fleet.plugins.modules.{name}").ARGUMENTS
    compared = ("type", "default", "choices", "elements")

    def shape(options: dict[str, Any]) -> dict[str, Any]:
        return {n: {k: o[k] for k in compared if k in o} | {"required": o.get("required", False)} for n, o in options.items()}

    assert shape(documented[f"attnkit.fleet.{name}"]["doc"]["options"]) == shape(arguments)


def test_every_platform_has_its_devices() -> None:
    """The role knows what each image family needs of a node, and no other."""
    platforms = _yaml(DEPLOY.parent / "images" / "platforms.yaml")
    assert set(_yaml(COMMON / "vars" / "main.yml")["attnkit_access"]) == set(platforms)


def test_the_service_is_locked_down() -> None:
    tasks = _yaml(COMMON / "tasks" / "apply.yml") + _yaml(COMMON / "tasks" / "metrics.yml")
    containers = [t["community.docker.docker_container"] for t in tasks if "community.docker.docker_container" in t]
    assert len(containers) == 4, "the init command, a check, the service, its metrics"
    assert containers[1] is containers[2], "what is checked is what is started"
    for container in containers:
        assert container["read_only"] is True
        assert container["cap_drop"] == ["ALL"]
        assert container["security_opts"] == ["no-new-privileges"]
        assert "privileged" not in container


def test_no_service_is_changed_before_its_node_has_a_watchdog() -> None:
    tasks = _yaml(COMMON / "tasks" / "apply.yml")
    names = [task["name"] for task in tasks]
    watched, run = (names.index(name) for name in ("Start the watchdog of the node", "Run the service"))
    assert run == watched + 1
    gate = tasks[run + 1]["attnkit.fleet.attnkit_gate"]
    assert gate["watch_dir"] == tasks[watched]["attnkit.fleet.attnkit_watch"]["state_dir"] + "/watch"
    for other in ("verify/tasks/main.yml", "drift/tasks/main.yml", "common/tasks/preflight.yml"):
        assert "watch_dir" not in (COLLECTION / "roles" / other).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_old_name_of_the_role_works_and_says_so_once(tmp_path: Path, ansible: Any) -> None:
    """Playbooks that include attnkit.fleet.attnkit with tasks_from get the new roles, their defaults and facts."""
    tasks = [
        {"ansible.builtin.include_role": {"name": "attnkit.fleet.attnkit", "tasks_from": name, "public": True}}
        for name in ("recorded", "verify")
    ]
    shown = {"ansible.builtin.debug": {"msg": "{{ attnkit_port }} {{ attnkit_recorded.release }} {{ attnkit_outcome.reason }}"}}
    play = [{"hosts": "all", "gather_facts": False, "tasks": [*tasks, shown]}]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play), encoding="utf-8")
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "attnkit_state_dir": str(tmp_path),
    }
    inventory = {"all": {"hosts": {"a": None, "b": None}, "vars": {**variables, "attnkit_container": "attnkit-none"}}}
    (tmp_path / "hosts.json").write_text(json.dumps(inventory), encoding="utf-8")
    done = ansible("ansible-playbook", "-i", str(tmp_path / "hosts.json"), str(tmp_path / "play.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("The role attnkit.fleet.attnkit is deprecated: include attnkit.fleet.") == 1
    # No release is recorded, no container runs; whether a Docker daemon is there to say so is not this test's matter.
    reasons = re.findall(r'"msg": "8000  (there is no such container|no answer from Docker)', done.stdout)
    assert len(reasons) == 2, done.stdout


@pytest.mark.slow
def test_it_builds(tmp_path: Path, ansible: Any) -> None:
    """The artifact holds all that a user needs, and nothing that is not of the collection."""
    done = ansible("ansible-galaxy", "collection", "build", "--output-path", str(tmp_path), str(COLLECTION))
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(tmp_path / "attnkit-fleet-0.1.0.tar.gz") as archive:
        names = {member.name for member in archive.getmembers() if member.isfile()}
    tracked = {path.relative_to(COLLECTION).as_posix() for path in COLLECTION.rglob("*") if path.is_file()}
    unwanted = {"galaxy.yml", *(name for name in tracked if "__pycache__" in name)}
    assert names == (tracked - unwanted) | {"MANIFEST.json", "FILES.json"}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "meta/runtime.yml", "plugins/doc_fragments/service.py"} <= names


def test_its_license_and_version_are_those_of_the_project() -> None:
    assert (COLLECTION / "LICENSE").read_bytes() == (DEPLOY.parent / "LICENSE").read_bytes()
    assert _yaml(COLLECTION / "galaxy.yml")["version"] == metadata.version("attnkit")


def test_the_example_pulls_by_digest_for_known_platforms() -> None:
    platforms = _yaml(DEPLOY.parent / "images" / "platforms.yaml")
    images = _yaml(DEPLOY / "inventories" / "example" / "group_vars" / "attnkit.yml")["attnkit_images"]
    assert set(images) <= set(platforms)
    assert all("@sha256:" in image for image in images.values())


def test_the_canaries_are_the_first_of_their_types_in_the_order_of_the_inventory() -> None:
    types = {"b": "h100", "a": "a100", "c": "a100", "d": "h100", "e": "cpu"}
    hostvars = {name: {"ansible_facts": {"attnkit": {"node_type": kind}}} for name, kind in reversed(types.items())}
    assert canaries(hostvars, list(types)) == ["b", "a", "e"]
