"""attnkit_facts through Ansible itself: every recorded tree becomes its node type, and what is unknown stops."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import attnkit
from attnkit import profiles

TREES = Path(__file__).resolve().parents[1] / "data" / "trees"
NODE_TYPES = sorted(p.name for p in TREES.iterdir() if p.is_dir())


def _play(
    tmp_path: Path, ansible: Any, hosts: dict[str, dict[str, Any]], *options: str
) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Detect on hosts that are recorded trees of this machine; (the run, each host's result)."""
    out = tmp_path / "out"
    out.mkdir()
    common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"trees": {"hosts": hosts, "vars": common}}), encoding="utf-8")
    play = tmp_path / "play.yml"
    keep = {"content": "{{ found | to_json }}", "dest": f"{out}/{{{{ inventory_hostname }}}}", "mode": "0600"}
    facts = {"root": "{{ tree }}", "node_type": "{{ given | default(omit) }}", "require_known": "{{ strict | default(true) }}"}
    tasks = [
        {"attnkit.fleet.attnkit_facts": facts, "register": "found", "ignore_errors": True},
        {"ansible.builtin.copy": keep, "check_mode": False},
    ]
    play.write_text(yaml.safe_dump([{"hosts": "trees", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    done = ansible("ansible-playbook", "-i", str(inventory), str(play), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, {path.name: json.loads(path.read_text(encoding="utf-8")) for path in out.iterdir()}


@pytest.mark.slow
def test_every_recorded_tree_becomes_its_node_type(tmp_path: Path, ansible: Any) -> None:
    done, results = _play(tmp_path, ansible, {name: {"tree": str(TREES / name)} for name in NODE_TYPES})
    assert "Callback dispatch" not in done.stderr + done.stdout
    facts = {name: result["ansible_facts"]["attnkit"] for name, result in results.items()}
    assert {name: f["node_type"] for name, f in facts.items()} == {name: name for name in NODE_TYPES}
    assert {f["node_type_source"] for f in facts.values()} == {"detected"}
    assert {name: f["platform"] for name, f in facts.items()} == {n: profiles.load_node(n).platform for n in NODE_TYPES}
    assert not any(result["changed"] for result in results.values())


def test_unknown_wrong_and_given(tmp_path: Path, ansible: Any) -> None:
    """Unknown hardware stops; an override wins and says so; a typo in it names the near types. All of it in check mode."""
    empty, odd = tmp_path / "empty", tmp_path / "odd"
    empty.mkdir()
    shutil.copytree(TREES / "rtx-4090", odd)
    shutil.rmtree(odd / "proc" / "driver")
    for device in (odd / "sys" / "bus" / "pci" / "devices").glob("*/device"):
        device.write_text("0xdead\n", encoding="utf-8")
    hosts = {
        "unknown": {"tree": str(odd)},
        "shown": {"tree": str(odd), "strict": False},
        "empty": {"tree": str(empty)},
        "given": {"tree": str(TREES / "h100"), "given": "h200"},
        "typo": {"tree": str(TREES / "h100"), "given": "h10"},
        "missing": {"tree": str(tmp_path / "nowhere")},
    }
    _, results = _play(tmp_path, ansible, hosts, "--check")
    assert results["unknown"]["failed"] and results["unknown"]["msg"].startswith("unknown hardware: ")
    assert "10de:dead" in results["unknown"]["msg"]
    assert results["shown"]["ansible_facts"]["attnkit"]["node_type"] is None
    assert not results["shown"].get("failed")
    assert "neither a sys nor a proc" in results["empty"]["msg"] and "Traceback" not in results["empty"]["msg"]
    given = results["given"]["ansible_facts"]["attnkit"]
    assert (given["node_type"], given["node_type_source"], given["detected_node_type"]) == ("h200", "given", "h100")
    assert "detection says h100" in given["why"]
    assert results["typo"]["failed"] and "h100" in results["typo"]["msg"] and "h10" in results["typo"]["msg"]
    assert results["missing"]["failed"] and "is not a directory" in results["missing"]["msg"]


def test_the_payload_needs_the_standard_library_only(tmp_path: Path) -> None:
    """What is sent to a node runs isolated: no site-packages, no environment, no current directory."""
    from ansible_collections.attnkit.fleet.plugins.action.attnkit_facts import build_payload

    package = Path(attnkit.__file__).parent
    payload = build_payload(package)
    assert payload == build_payload(package), "the same code must give the same archive"
    assert len(payload) < 200_000
    names = zipfile.ZipFile(io.BytesIO(payload)).namelist()
    assert not [n for n in names if "__pycache__" in n]
    archive = tmp_path / "attnkit.zip"
    archive.write_bytes(payload)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from attnkit.hardware import detect; print(detect('/').devices[-1].kind)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(archive)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout.strip()) == (0, "cpu"), done.stderr
