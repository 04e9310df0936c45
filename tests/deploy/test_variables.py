"""The fleet's variables: every mistake is named with its place, what is allowed and the nearest name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.attnkit.fleet.plugins.module_utils import variables

from .conftest import DEPLOY

TASKS = {"ATTNKIT_FLEET_SHOW_TASKS": "true"}
DIGEST = f"@sha256:{'0' * 64}"


def _texts(**given: Any) -> list[str]:
    return [str(problem) for problem in variables.check(given)]


def test_the_example_is_right() -> None:
    example = yaml.safe_load((DEPLOY / "inventories" / "example" / "group_vars" / "attnkit.yml").read_text(encoding="utf-8"))
    assert variables.check(example) == []


def test_the_defaults_are_right() -> None:
    """Where they are no templates."""
    defaults = {name: option["default"] for name, option in variables.options().items() if "{{" not in str(option["default"])}
    assert variables.check(defaults) == []


def test_what_is_known_more_closely_is_an_option() -> None:
    assert set(variables.NARROWER) <= set(variables.options())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attnkit_comand": ["vllm"]}, ["attnkit_comand: there is no such variable; did you mean attnkit_command?"]),
        ({"attnkit_command": "vllm serve x"}, ["must be a list; found 'vllm serve x'. Write [vllm, serve, x]"]),
        ({"attnkit_command": ["vllm", True]}, ["attnkit_command.1: must be a string; found True"]),
        ({"attnkit_images": {"cuda-amper": f"r/x{DIGEST}"}}, ["no such platform; did you mean cuda-ampere?"]),
        ({"attnkit_images": {"cpu": "r/x:latest"}}, ["attnkit_images.cpu: must be an image with its digest"]),
        ({"attnkit_images": {"cpu": f"r/x{DIGEST}0"}}, ["must be an image with its digest"]),
        ({"attnkit_images": [f"r/x{DIGEST}"]}, ["attnkit_images: must be a dictionary"]),
        ({"attnkit_node_type": "rtx-2080ti"}, ["no such node type; did you mean rtx-2080-ti?"]),
        ({"attnkit_only_type": "h1000"}, ["no such node type"]),
        ({"attnkit_port": 0}, ["greater than or equal to 1; found 0"]),
        ({"attnkit_port": "http"}, ["must be an integer, unable to parse string as an integer; found 'http'"]),
        ({"attnkit_gate_timeout": float("nan")}, ["attnkit_gate_timeout"]),
        ({"attnkit_settle": float("inf")}, ["finite number"]),
        ({"attnkit_hooks_on": "moon"}, ["must be 'controller' or 'node'; found 'moon'"]),
        ({"attnkit_accept_planted": "perhaps"}, ["attnkit_accept_planted"]),
        ({"attnkit_env": {"A B": 1}}, ["must be a variable's name"]),
        ({"attnkit_volumes": ["/data"]}, ["attnkit_volumes.0: must be a mount"]),
        ({"attnkit_bind_address": "eth0"}, ["does not appear to be an IPv4 or IPv6 address"]),
        ({"attnkit_state_dir": "var/lib/attnkit"}, ["must be an absolute path"]),
        ({"attnkit_memory": "eight"}, ["must be a size"]),
        ({"attnkit_container": "my service"}, ["must be a container's name"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_is_named(given: dict[str, Any], said: list[str]) -> None:
    texts = _texts(**given)
    assert len(texts) == len(said), texts
    for text, part in zip(texts, said, strict=True):
        assert part in text


def test_numbers_may_come_as_text() -> None:
    """From an INI inventory and from -e."""
    assert _texts(attnkit_port="8000", attnkit_settle="5", attnkit_accept_planted="true", attnkit_env={"A": 1}) == []


def test_a_secret_is_not_shown() -> None:
    texts = _texts(attnkit_secret_env={"TOKEN": ["geheim"]})
    assert texts and "geheim" not in texts[0]


def test_what_is_not_ours_is_left_alone() -> None:
    assert _texts(my_variable=[1, 2], ansible_user="x") == []


@pytest.mark.slow
def test_a_playbook_names_file_and_line(tmp_path: Path, ansible: Any) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        "attnkit:\n  hosts:\n    a:\n      attnkit_comand: [x]\n  vars:\n    attnkit_images:\n      cpu: r/x:latest\n"
        "    attnkit_api_key: '{{ nothing.at_all }}'\n",
        encoding="utf-8",
    )
    done = ansible("ansible-playbook", "-i", str(inventory), "playbooks/verify.yml", "-e", "attnkit_port=70000", env=TASKS)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert f"{inventory}:4: attnkit_comand: there is no such variable" in said
    assert f"{inventory}:7: attnkit_images.cpu: must be an image with its digest" in said
    assert f"{inventory}:8: attnkit_api_key: cannot be evaluated" in said
    assert "attnkit_port: must be less than or equal to 65535" in said
    assert "Check the group" in said and "Detect" not in said and "Verify the service" not in said


@pytest.mark.slow
def test_an_inventory_without_the_group_is_an_error(tmp_path: Path, ansible: Any) -> None:
    (tmp_path / "hosts.yml").write_text("others:\n  hosts:\n    a:\n", encoding="utf-8")
    done = ansible("ansible-playbook", "-i", str(tmp_path / "hosts.yml"), "playbooks/status.yml")
    assert done.returncode != 0
    assert "no host in the group attnkit" in done.stdout + done.stderr
