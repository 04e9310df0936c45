"""What `make dist` builds: complete, with the license, with one version, and installable in a bare environment."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import attnkit

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".venv" / "bin" / "python"  # hatchling and Ansible are there
LICENSE = (ROOT / "LICENSE").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    env = {**os.environ, "ANSIBLE_HOME": str(out.parent / "ansible")}
    done = subprocess.run(
        [TOOLS, "-m", "tools.dist", "--out", out], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def _only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_the_license_is_the_whole_apache_license() -> None:
    lines = LICENSE.splitlines()
    assert lines[1].strip() == "Apache License" and "http://www.apache.org/licenses/LICENSE-2.0" in LICENSE
    assert [f"{n}." in LICENSE for n in range(1, 10)] == [True] * 9
    assert hashlib.sha256(LICENSE.encode()).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_checksums_are_of_the_files(dist: Path) -> None:
    listed = dict(reversed(line.split("  ")) for line in (dist / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    assert len(listed) == 3
    for name, digest in listed.items():
        assert hashlib.sha256((dist / name).read_bytes()).hexdigest() == digest


def test_the_collection_has_license_and_version(dist: Path) -> None:
    with tarfile.open(_only(dist, "attnkit-fleet-*.tar.gz")) as archive:
        read = archive.extractfile("LICENSE")
        manifest = archive.extractfile("MANIFEST.json")
        assert read is not None and manifest is not None
        assert read.read().decode() == LICENSE
        info = json.load(manifest)["collection_info"]
        names = archive.getnames()
    assert info["version"] == attnkit.__version__ and info["license"] == ["Apache-2.0"]
    assert "plugins/modules/attnkit_facts.py" in names and "playbooks/rollout.yml" in names


def test_wheel_and_sdist_have_the_license(dist: Path) -> None:
    version = attnkit.__version__
    with zipfile.ZipFile(_only(dist, "*.whl")) as wheel:
        assert wheel.read(f"attnkit-{version}.dist-info/licenses/LICENSE").decode() == LICENSE
        assert "License-Expression: Apache-2.0" in wheel.read(f"attnkit-{version}.dist-info/METADATA").decode()
    with tarfile.open(dist / f"attnkit-{version}.tar.gz") as sdist:
        read = sdist.extractfile(f"attnkit-{version}/LICENSE")
        assert read is not None and read.read().decode() == LICENSE


@pytest.mark.parametrize("kind", ["*.whl", "attnkit-[0-9]*.tar.gz"])
def test_each_installs_in_an_environment_of_its_own(dist: Path, tmp_path: Path, kind: str) -> None:
    """Without the network: dependencies, and hatchling for the sdist, are found in the environments that make has made."""
    venv.create(tmp_path, with_pip=True)
    python = tmp_path / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path), "platbase": str(tmp_path)}))
    borrowed = [sysconfig.get_path("purelib"), *map(str, TOOLS.parents[1].glob("lib/python*/site-packages"))]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    install = [python, "-m", "pip", "install", "-qq", "--ignore-installed", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*install, _only(dist, kind)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = subprocess.run(
        [tmp_path / "bin" / "attnkit", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert told.stdout.strip() == f"attnkit {attnkit.__version__}", told.stderr
    assert (site / f"attnkit-{attnkit.__version__}.dist-info" / "licenses" / "LICENSE").read_text(encoding="utf-8") == LICENSE
    assert len(list((site / "attnkit" / "data" / "profiles" / "nodes").glob("*.yaml"))) > 10


def test_the_version_is_written_once() -> None:
    galaxy = subprocess.run(
        ["git", "ls-files", "*galaxy.yml"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    (path,) = (ROOT / name for name in galaxy if not (ROOT / name).is_symlink())
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["version"] == attnkit.__version__
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_images_are_labelled_with_the_version() -> None:
    (path,) = (ROOT / "images").rglob("build.py")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import build; print(build.version())"
    done = subprocess.run([sys.executable, "-c", code, path.parent], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == attnkit.__version__
