"""The installed wheel: its files, its console script, and that it is what the tests import."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import attnkit
from attnkit import profiles
from attnkit.engines.vllm import names as vllm_names
from attnkit.select import evidence
from tools.docs.evidence import dump

ROOT = Path(__file__).resolve().parents[2]


def installed() -> set[str]:
    files = metadata.files("attnkit")
    assert files, "attnkit is not installed here, or without a record of its files: run `make test`"
    return {file.as_posix() for file in files}


def test_tests_run_against_the_wheel() -> None:
    assert Path(attnkit.__file__).is_relative_to(Path(sys.prefix))


def test_every_tracked_file_of_the_package_is_in_the_wheel() -> None:
    tracked = subprocess.run(["git", "ls-files", "attnkit"], cwd=ROOT, capture_output=True, text=True, check=True)
    missing = set(tracked.stdout.split()) - installed()
    assert not missing


def test_every_profile_is_in_the_wheel() -> None:
    wanted = {f"attnkit/data/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "profiles").rglob("*.yaml")}
    assert wanted
    assert wanted <= installed()
    files = {path.stem for path in (ROOT / "profiles" / "nodes").glob("*.yaml")}
    assert {node.name for node in profiles.all_nodes()} - profiles.family_names() == files


def test_data_is_read_from_the_wheel() -> None:
    assert vllm_names.versions()
    assert dump(evidence.load()) == (ROOT / "attnkit" / "data" / "evidence.json").read_text(encoding="utf-8")


def test_nothing_but_the_package_is_in_the_wheel() -> None:
    tops = {name.split("/")[0] for name in installed() if not name.startswith("..")}
    assert tops == {"attnkit", f"attnkit-{attnkit.__version__}.dist-info"}


def test_console_script_tells_the_version() -> None:
    script = Path(sys.executable).parent / "attnkit"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"\b{re.escape(metadata.version('attnkit'))}\b", done.stdout)
    assert attnkit.__version__ == metadata.version("attnkit")


def test_vllm_plugin_is_announced() -> None:
    points = [point for point in metadata.entry_points(group="vllm.general_plugins") if point.name == "attnkit"]
    assert [point.value for point in points] == ["attnkit.engines.vllm_plugin:register"]
    assert callable(points[0].load())
