"""The build's helpers: the Dockerfile's lint, the wheel page, slimming, the engine's set-up, the mirror and the secrets."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import base
import build
import engine
import numpy
import pytest
import slim
import wheels


def test_the_dockerfile_is_clean(images_dir: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, images_dir / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def _wheel(folder: Path, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"thing-{version}-py3-none-any.whl"
    info = f"thing-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_local_wheel_wins_over_the_index_only_through_the_page(tmp_path: Path) -> None:
    """pip prefers a candidate whose hash it knows: the reason for the page of links."""
    index, local = tmp_path / "index", tmp_path / "local"
    _wheel(index, "1.0")
    ours = _wheel(local, "1.0+cpu")
    wheels.write_page(index, tmp_path / "index.html", relative=False)
    wheels.write_page(local, local / wheels.PAGE, relative=True)
    hashes = [
        part
        for page in (tmp_path / "index.html", local / wheels.PAGE)
        for part in page.read_text().split('"')
        if "#sha256" in part
    ]
    pinned = tmp_path / "lock.txt"
    pinned.write_text("thing==1.0 " + " ".join(f"--hash=sha256:{h.split('=')[1]}" for h in hashes), encoding="utf-8")

    def chosen(links: Path) -> str:
        command = [sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--dry-run", "--quiet", "--report", "-"]
        command += ["--ignore-installed", "--no-deps", "--require-hashes", "--find-links", str(tmp_path / "index.html")]
        done = subprocess.run(
            [*command, "--find-links", str(links), "-r", str(pinned)], capture_output=True, text=True, check=True
        )
        return str(json.loads(done.stdout)["install"][0]["metadata"]["version"])

    assert chosen(local / wheels.PAGE) == "1.0+cpu"
    _wheel(tmp_path / "plain", "1.0+cpu")
    assert chosen(tmp_path / "plain") == "1.0", "pip now ranks by version alone: the page of links can go"
    assert ours.name.replace("+", "%2B") in (local / wheels.PAGE).read_text(encoding="utf-8")


def test_a_wheel_folder_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATTNKIT_WHEELS", str(tmp_path / "none"))
    with pytest.raises(wheels.WheelFolderError, match=r"ATTNKIT_WHEELS=.*none: not a directory"):
        wheels.wheel_folder()


def test_slimming_leaves_what_runs(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in (
        "torch/bin/torch_shm_manager",
        "torch/bin/test_api",
        "torch/testing/__init__.py",
        "torch/include/torch.h",
        "pack/tests/test_x.py",
        "pack/core.py",
        "pack/core.pyi",
        "pack-1.dist-info/licenses/tests/LICENSE",
        "tests/top.py",
        "triton/backends/nvidia/include/cuda.h",
    ):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(b"x" * 10)
    assert slim.main(str(tmp_path)) == 0
    left = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert left == {
        "torch/bin/torch_shm_manager",
        "torch/testing/__init__.py",
        "pack/core.py",
        "pack-1.dist-info/licenses/tests/LICENSE",
        "tests/top.py",
        "triton/backends/nvidia/include/cuda.h",
    }


def test_a_library_that_stripping_broke_is_recognised(tmp_path: Path) -> None:
    library = next(Path(numpy.__file__).parent.joinpath("_core").glob("_multiarray_umath*.so"))
    assert slim.loads(library)
    broken = tmp_path / "broken.so"
    data = bytearray(library.read_bytes())
    table, entry, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    first = next(
        table + i * entry for i in range(count) if struct.unpack_from("<I", data, table + i * entry)[0] == slim.LOAD_SEGMENT
    )
    struct.pack_into("<Q", data, first + 8, struct.unpack_from("<Q", data, first + 8)[0] + 8)
    broken.write_bytes(data)
    assert not slim.loads(broken)


def _client(folder: Path, version: str, *, buildx: bool) -> Path:
    folder.mkdir()
    script = folder / "docker"
    script.write_text(f'#!/bin/sh\n[ "$1" = buildx ] && exit {0 if buildx else 1}\n[ "$1" = info ] && exit 1\necho {version}\n')
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("version", "buildx", "suits"), [("20.10.24", False, True), ("28.2.2", False, False), ("28.2.2", True, True)]
)
def test_a_client_must_drive_buildkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, buildx: bool, suits: bool
) -> None:
    """20.10 has BuildKit built in; a newer client needs the plugin, and the next one on PATH is taken where it lacks it."""
    first = _client(tmp_path / "first", version, buildx=buildx)
    second = _client(tmp_path / "second", "20.10.24", buildx=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'first'}:{tmp_path / 'second'}:/bin")
    engine.client.cache_clear()
    try:
        assert engine.client() == str(first if suits else second)
    finally:
        engine.client.cache_clear()


def test_without_root_a_missing_engine_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert engine.main(["ensure"]) == 2
    message = capsys.readouterr().err
    assert "no container engine answers, and installing or starting one needs root: install Docker Engine" in message


def test_an_engine_named_by_docker_host_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert engine.main(["ensure"]) == 2
    assert f"no container engine answers at DOCKER_HOST=unix://{tmp_path}/none.sock" in capsys.readouterr().err


def test_a_given_mirror_replaces_the_machines_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNKIT_APT_MIRROR", "http://mirror.example/debian")
    monkeypatch.delenv("ATTNKIT_APT_SECURITY_MIRROR", raising=False)
    assert base.mirror_lines() == ["deb http://mirror.example/debian bookworm main"]
    monkeypatch.setenv("ATTNKIT_APT_SECURITY_MIRROR", "http://mirror.example/security")
    assert base.mirror_lines()[1] == "deb http://mirror.example/security bookworm-security main"


def test_what_a_build_sees_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = tmp_path / "corporate.pem"
    authority.write_text("x", encoding="utf-8")
    monkeypatch.setenv("ATTNKIT_CA_BUNDLE", str(authority))
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://second.example/simple file:///a/folder")
    monkeypatch.setenv("PIP_FIND_LINKS", "/a/folder")
    monkeypatch.setenv("ATTNKIT_APT_MIRROR", "http://mirror.example/debian")
    found = build.secrets(tmp_path / "secrets")
    assert found["ca"] == authority
    assert found["pip"].read_text(encoding="utf-8").splitlines() == [
        "[global]",
        "timeout = 60",
        "index-url = https://index.example/simple",
        "extra-index-url = https://second.example/simple",
        "cert = /run/build/ca.pem",
    ]
    assert "mirror.example" in found["apt"].read_text(encoding="utf-8")
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0


def test_a_missing_ca_bundle_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNKIT_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(build.DescriptionError, match=r"the CA bundle .*none\.pem does not exist"):
        build.secrets(tmp_path / "secrets")


def test_only_a_virtual_environment_is_replaced(tmp_path: Path, images_dir: Path) -> None:
    """Making an environment clears its folder, which must not happen to anything else, nor through a link."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x", encoding="utf-8")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "lock.txt").write_text("", encoding="utf-8")
    for folder in (precious, tmp_path / "link"):
        command = [sys.executable, str(images_dir / "venv.py"), str(folder), str(tmp_path / "lock.txt")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "is a link or not a virtual environment" in done.stderr
    assert (precious / "thesis.tex").is_file()


def test_make_names_its_targets(repo_root: Path) -> None:
    make = shutil.which("make")
    assert make is not None
    done = subprocess.run([make], cwd=repo_root, capture_output=True, text=True, check=True)
    assert {"image", "images", "lock", "engine", "venv"} <= {
        line.split()[1] for line in done.stdout.splitlines() if line.startswith("  make ")
    }
