"""The bundle for hosts without a network: one damaged byte is refused, and it installs, and serves, with no network at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.builder import build, platforms
from images.builder.container_engine import client
from images.offline import bundle, install

NAME = "attnkit-0-cpu"


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """A small bundle with the real installer: no image, one playbook, one link."""
    folder = tmp_path / NAME
    (folder / "deploy" / "playbooks").mkdir(parents=True)
    (folder / "deploy" / "playbooks" / "rollout.yml").write_text("---\n", encoding="utf-8")
    (folder / "deploy" / "link").symlink_to("playbooks")
    (folder / "image.tar.gz").write_bytes(b"layers" * 1000)
    shutil.copy2(Path(install.__file__), folder / "install.py")
    described = {"name": NAME, "platform": "cpu", "version": "0", "pythons": ["3.11"], "image": {"tag": "attnkit:x"}}
    (folder / install.DESCRIPTION).write_text(json.dumps(described), encoding="utf-8")
    bundle.write_sums(folder)
    return folder


def _install(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", str(folder / "install.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)


def test_a_complete_bundle_verifies(unpacked: Path) -> None:
    done = _install(unpacked, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 files verified OK" in done.stdout
    sums = subprocess.run(["sha256sum", "-c", "--quiet", install.SUMS], cwd=unpacked, capture_output=True, check=False)
    assert sums.returncode == 0


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "added", "no sums", "link"])
def test_a_damaged_bundle_installs_nothing(unpacked: Path, damage: str) -> None:
    image = unpacked / "image.tar.gz"
    whole = image.read_bytes()
    if damage == "changed":
        image.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    elif damage == "cut":
        image.write_bytes(whole[:-1])
    elif damage == "missing":
        image.unlink()
    elif damage == "added":
        (unpacked / "deploy" / "extra.yml").write_text("---\n", encoding="utf-8")
    elif damage == "no sums":
        (unpacked / install.SUMS).unlink()
    else:
        (unpacked / "deploy" / "link").unlink()
        (unpacked / "deploy" / "link").symlink_to("/etc")
    done = _install(unpacked, "--to", "there")
    assert done.returncode == 1
    assert "nothing was installed" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (unpacked.parent / "there").exists()
    if damage in ("changed", "cut"):
        found = hashlib.sha256(image.read_bytes()).hexdigest()
        assert f"image.tar.gz: sha256 is {found}, not {hashlib.sha256(whole).hexdigest()}" in done.stderr
    names = {"missing": "image.tar.gz: missing", "added": "deploy/extra.yml: not listed", "link": "deploy/link: a link to /etc"}
    assert names.get(damage, "") in done.stderr


def test_what_this_machine_lacks_is_said(unpacked: Path) -> None:
    done = _install(unpacked, "--engine", "no-such-engine", "--no-controller")
    assert done.returncode == 2
    assert "there is no no-such-engine here" in done.stderr
    described = json.loads((unpacked / install.DESCRIPTION).read_text(encoding="utf-8"))
    (unpacked / install.DESCRIPTION).write_text(json.dumps({**described, "pythons": ["2.7"]}), encoding="utf-8")
    bundle.write_sums(unpacked)
    done = _install(unpacked, "--no-image")
    assert done.returncode == 2
    assert "the bundle has packages for 2.7" in done.stderr


def test_another_folder_is_not_overwritten(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("", encoding="utf-8")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    described = json.loads((unpacked / install.DESCRIPTION).read_text(encoding="utf-8"))
    (unpacked / install.DESCRIPTION).write_text(json.dumps({**described, "pythons": [version]}), encoding="utf-8")
    bundle.write_sums(unpacked)
    done = _install(unpacked, "--no-image", "--to", "there")
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert (tmp_path / "there" / "mine").is_file()


def test_packing_twice_gives_the_same_bytes(unpacked: Path, tmp_path: Path) -> None:
    again = tmp_path / "again" / NAME
    shutil.copytree(unpacked, again, symlinks=True)
    for path in again.rglob("*.yml"):
        path.touch()
    bundle.pack(unpacked, tmp_path / "first.tar")
    bundle.pack(again, tmp_path / "second.tar")
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()
    with tarfile.open(tmp_path / "first.tar") as archive:
        members = archive.getmembers()
    assert members[-1].name == f"{NAME}/image.tar.gz"
    assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}


@pytest.fixture(scope="module")
def isolated() -> Iterator[str]:
    """A machine without any network, as a container with an engine of its own: only its loopback is there."""
    from deploy.demo import fleet

    image = f"attnkit-test-node-{uuid.uuid4().hex[:8]}"
    secrets = build.STAGE / "node-secrets"
    fleet.node_image(image, secrets_at=secrets)
    name = f"attnkit-test-{uuid.uuid4().hex[:8]}"
    try:
        fleet.docker(
            *("run", "-d", "--name", name, "--network", "none", *fleet.ENGINE_FLAGS, "-v", f"{name}:/var/lib/docker"),
            *("--mount", f"type=bind,source={bundle.OUT},target=/bundles,readonly", image),
        )
        deadline = time.monotonic() + 60
        while not fleet.docker("exec", name, "docker", "info", "--format", "{{.ServerVersion}}", check=False):
            assert time.monotonic() < deadline, "the machine's engine did not start"
            time.sleep(0.5)
        yield name
    finally:
        fleet.docker("rm", "-f", "-v", name, check=False)
        fleet.docker("volume", "rm", "-f", name, check=False)
        fleet.docker("rmi", image, check=False)


def _exec(machine: str, script: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [client(), "exec", machine, "sh", "-euc", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{script}:\n{(done.stdout + done.stderr)[-3000:]}"
    return done


INVENTORY = {
    "attnkit": {
        "hosts": {"here": {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}},
        "vars": {
            "attnkit_node_type": "cpu",
            "attnkit_command": [
                *("vllm", "serve", "/models/tiny", "--served-model-name", "tiny", "--host", "0.0.0.0", "--port", "8000"),
                *("--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "4"),
            ],
            "attnkit_env": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"},
            "attnkit_init_command": ["tiny-model", "/models/tiny"],
            "attnkit_init_creates": "/var/lib/attnkit/models/tiny/config.json",
        },
    }
}


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.on_demand
def test_it_installs_and_serves_without_a_network(repo_root: Path, isolated: str) -> None:
    """The whole chain on a machine that has a loopback and nothing else: check, load, push to a registry on that machine, roll
    out with the playbooks of the bundle, and a completion from what was rolled out."""
    done = subprocess.run(["make", "bundle", "PLATFORM=cpu"], cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    again = subprocess.run(["make", "bundle", "PLATFORM=cpu"], cwd=repo_root, capture_output=True, text=True, check=True)
    platform = platforms.load()["cpu"]
    name = f"attnkit-{build.version()}-cpu"
    assert f"{name}.bundle.tar: up to date" in again.stdout
    assert not _exec(isolated, "ip route show default").stdout
    assert {line.split()[1] for line in _exec(isolated, "ip -o -4 address").stdout.splitlines()} <= {"lo", "docker0"}
    assert not _exec(isolated, "docker images -q").stdout
    _exec(isolated, f"cd /bundles; sha256sum -c {name}.bundle.tar.sha256; tar xf {name}.bundle.tar -C /opt")

    damaged = "printf x | dd of=/opt/copy/image.tar.gz bs=1 seek=100000 conv=notrunc 2>/dev/null"
    refused = _exec(isolated, f"cp -r /opt/{name} /opt/copy; {damaged}; python3 /opt/copy/install.py", check=False)
    assert refused.returncode == 1
    assert "nothing was installed" in refused.stderr and "image.tar.gz: sha256 is" in refused.stderr
    assert not _exec(isolated, "rm -r /opt/copy; docker images -q").stdout

    config = "version: 0.1\nstorage: {filesystem: {rootdirectory: /var/lib/docker/registry}}\nhttp: {addr: '127.0.0.1:5000'}\n"
    _exec(isolated, f'printf "{config}" > /etc/registry.yml; setsid docker-registry serve /etc/registry.yml >/dev/null 2>&1 &')
    installed = _exec(isolated, f"python3 /opt/{name}/install.py --to /opt/attnkit --push localhost:5000/attnkit/cpu").stdout
    digest = next(line for line in installed.splitlines() if "for the inventory" in line).split("cpu: ")[1].rstrip("}")
    assert digest.startswith("localhost:5000/attnkit/cpu@sha256:")
    layers = json.loads(_exec(isolated, f"docker image inspect -f '{{{{json .RootFS.Layers}}}}' {digest}").stdout)
    assert layers == json.loads(build.inspect(build.tags(platform)[0], "{{json .RootFS.Layers}}"))
    selected = json.loads(_exec(isolated, "/opt/attnkit/venv/bin/attnkit select --device sm_75 --json").stdout)
    assert selected["platform"] == "cuda-turing"

    document = json.loads(json.dumps(INVENTORY))
    document["attnkit"]["vars"]["attnkit_images"] = {"cpu": digest}
    play = "cd /opt/attnkit/deploy; /opt/attnkit/venv/bin/ansible-playbook -i /opt/inventory.json playbooks/rollout.yml"
    _exec(isolated, f"cat > /opt/inventory.json <<'END'\n{json.dumps(document)}\nEND\n{play}")
    report = json.loads(_exec(isolated, "cat /var/lib/attnkit/run/report.json").stdout)
    assert report["verdict"] == "pass"
    ask = """
import json, urllib.request
body = json.dumps({"model": "tiny", "prompt": "The license", "max_tokens": 8, "temperature": 0, "ignore_eos": True}).encode()
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=120))["usage"]["completion_tokens"])
"""
    assert _exec(isolated, f"python3 - <<'END'{ask}END").stdout.strip() == "8"
