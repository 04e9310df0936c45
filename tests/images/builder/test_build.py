"""The build's command line, its Dockerfile, and what a build sees of the machine it runs on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from images import IMAGES, ROOT
from images.builder import build, platforms


def test_the_dockerfile_is_clean() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, IMAGES / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_a_build_sees_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = tmp_path / "corporate.pem"
    authority.write_text("x", encoding="utf-8")
    monkeypatch.setenv("ATTNKIT_CA_BUNDLE", str(authority))
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://second.example/simple file:///a/folder")
    monkeypatch.setenv("PIP_FIND_LINKS", "/a/folder")
    monkeypatch.setenv("ATTNKIT_APT_MIRROR", "http://mirror.example/debian")
    monkeypatch.delenv("ATTNKIT_APT_SECURITY_MIRROR", raising=False)
    found = build.secrets(tmp_path / "secrets")
    assert found["ca"] == authority
    assert found["pip"].read_text(encoding="utf-8").splitlines() == [
        f"# {build.SECRET_MARK}",
        "[global]",
        "timeout = 60",
        "index-url = https://index.example/simple",
        "extra-index-url = https://second.example/simple",
        "cert = /run/build/ca.pem",
    ]
    assert found["apt"].read_text(encoding="utf-8").splitlines() == [
        f"# {build.SECRET_MARK}",
        "deb http://mirror.example/debian bookworm main",
    ]
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0


def test_a_missing_ca_bundle_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNKIT_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(platforms.DescriptionError, match=r"the CA bundle .*none\.pem does not exist"):
        build.secrets(tmp_path / "secrets")


def test_make_names_its_targets(repo_root: Path) -> None:
    make = shutil.which("make")
    assert make is not None
    done = subprocess.run([make], cwd=repo_root, capture_output=True, text=True, check=True)
    assert {"image", "images", "lock", "engine", "venv"} <= {
        line.split()[1] for line in done.stdout.splitlines() if line.startswith("  make ")
    }


def _build(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "images.builder.build", *args], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_an_unknown_platform_is_a_usage_error_with_the_nearest_names() -> None:
    done = _build("cuda-turin")
    assert done.returncode == 2
    assert "unknown PLATFORM 'cuda-turin'. Did you mean cuda-turing" in done.stderr
    assert all(name in done.stderr.split("Allowed:")[1] for name in platforms.load())
    assert "Traceback" not in done.stderr


def test_a_described_platform_is_refused_with_its_reason() -> None:
    for platform in platforms.load().values():
        if platform.not_built:
            done = _build(platform.name)
            assert done.returncode == 2
            assert f"PLATFORM {platform.name} is described but not built yet: {platform.not_built}" in done.stderr
