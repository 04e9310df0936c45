"""Workflow and commit hooks run what make runs, and the files that a public project has are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def _steps() -> list[str]:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


def test_the_workflow_runs_make_targets_that_exist() -> None:
    steps = _steps()
    assert {"make lint", "make docs", "make test-python", "make test-docker", "make contracts"} <= set(steps)
    for step in steps:
        program, target = step.split()
        assert program == "make" and target in TARGETS, step


def test_the_workflow_tests_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    tested = set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"])
    tested |= {step["with"]["python-version"] for step in workflow["jobs"]["oldest-python"]["steps"] if "with" in step}
    assert tested == {"3.10", "3.11", "3.12", "3.13"}


def test_commit_hooks_fetch_nothing_and_run_the_tools_of_make() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repo["repo"] == "local"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in repo["hooks"]:
        assert hook["language"] == "system"
        program = hook["entry"].split()[0]
        if program == "make":
            assert hook["entry"].split()[-1] in TARGETS
        else:
            assert program.startswith(".venv-test/bin/") and f"$(BIN)/{Path(program).name}" in makefile


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md", "README.md"])
def test_links_of_the_public_files_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    missing = [link for link in links if not (ROOT / link.split("#")[0]).exists()]
    assert not missing


def test_changelog_fragments_have_a_known_type() -> None:
    for path in (ROOT / "changelog.d").glob("*.md"):
        assert path.name == "README.md" or re.fullmatch(
            r"[+\w-]+\.(added|changed|deprecated|removed|fixed|security)\.md", path.name
        )
