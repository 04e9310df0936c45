"""The demo's machines: three nodes and a registry, as containers with an engine of their own, on a network of their own.

Everything is named attnkit-demo-*; `down` removes exactly that. Keys, certificates and the inventory are made on the spot under
.cache/demo.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "images"))

import base  # noqa: E402
import build  # noqa: E402
import engine  # noqa: E402

STATE = ROOT / ".cache" / "demo"
PREFIX = "attnkit-demo"
NODE_IMAGE = f"{PREFIX}-node"
NETWORK = PREFIX
REGISTRY = f"{PREFIX}-registry"
REGISTRY_PORT = 5000
NODES = ("node-1", "node-2", "node-3")
TRUSTED = f"/etc/docker/certs.d/registry:{REGISTRY_PORT}"
"""Where a node's engine looks for the registry's authority."""
# A container with an engine inside. Plain --privileged would do where the machine's own capability set is complete; this also
# works where it is not, and gives less.
ENGINE_FLAGS = (
    "--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--security-opt", "seccomp=unconfined",
    "--security-opt", "apparmor=unconfined", "--security-opt", "systempaths=unconfined", "--cgroupns", "private",
)  # fmt: skip


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Node:
    """One node: its name in the inventory and its address on the demo's network."""

    name: str
    address: str


def docker(*args: str, check: bool = True) -> str:
    """Output of a docker command; DemoError with the engine's words where it fails."""
    done = subprocess.run([engine.client(), *args], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise DemoError(f"docker {' '.join(args[:4])} …: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout.strip() if done.returncode == 0 else ""


def node_image() -> None:
    """Build the image of the nodes; nothing to do where its inputs did not change."""
    context = Path(__file__).resolve().parent / "node"
    base_name = base.base_image(build.platforms.load()["cpu"].base)
    inputs = build.fingerprint(context, {"BASE": base_name}, {}, build.inspect(base_name, "{{.Id}}"))
    if build.inspect(NODE_IMAGE, '{{index .Config.Labels "attnkit.inputs"}}') == inputs:
        return
    command = [engine.client(), "build", "-q", "-t", NODE_IMAGE, "--label", f"attnkit.inputs={inputs}"]
    command += ["--build-arg", f"BASE={base_name}"]
    folder = STATE / "secrets"
    try:
        for key, path in build.secrets(folder).items():
            if key in ("apt", "ca"):
                command += ["--secret", f"id={key},src={path}"]
        done = subprocess.run(
            [*command, str(context)], capture_output=True, text=True, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=False
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode != 0:
        raise DemoError(f"the node image did not build:\n{done.stderr.strip()[-2500:]}")


def ssh_key() -> Path:
    """The operator's key for this fleet."""
    key = STATE / "id_ed25519"
    if not key.is_file():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", PREFIX, "-f", str(key)], check=True)
    return key


def certificates() -> tuple[Path, Path]:
    """The registry's certificate, which is its own authority, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    certificate, key = STATE / "registry.crt", STATE / "registry.key"
    if certificate.is_file() and key.is_file():
        return certificate, key
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{PREFIX} registry")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = x509.SubjectAlternativeName(
        [x509.DNSName("registry"), x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.touch(mode=0o600)
    key.write_bytes(
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, key


def identity() -> str:
    """What tells this checkout's demo from another's: its SSH key and the registry's certificate."""
    parts = [ssh_key().with_suffix(".pub").read_bytes(), certificates()[0].read_bytes()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def running(name: str) -> bool:
    """Whether the container is up; one that is stopped is started again.

    One of another image is removed, and one of another checkout (whose keys this one does not have) with all that it holds.
    """
    there = docker("inspect", "--format", "{{.Id}}", name, check=False)
    if there and docker("inspect", "--format", '{{index .Config.Labels "attnkit.demo"}}', name) != identity():
        docker("rm", "-f", "-v", name)
        docker("volume", "rm", "-f", name)
        return False
    if docker("inspect", "--format", "{{.Image}}", name, check=False) not in ("", build.inspect(NODE_IMAGE, "{{.Id}}")):
        docker("rm", "-f", name)
        return False
    state = docker("inspect", "--format", "{{.State.Running}}", name, check=False)
    if state == "false":
        docker("start", name)
        return True
    return state == "true"


def up() -> list[Node]:
    """Network, registry and nodes, each only where it is not there yet; returns once every node answers over SSH."""
    STATE.mkdir(parents=True, exist_ok=True)
    if shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        if os.geteuid() != 0:
            raise DemoError("ssh is needed and not installed (Debian, Ubuntu: openssh-client)")
        engine.apt_install(("openssh-client",))
    node_image()
    key = ssh_key()
    certificate, private = certificates()
    if not docker("network", "ls", "-q", "--filter", f"name=^{NETWORK}$"):
        docker("network", "create", NETWORK)
    if not running(REGISTRY):
        config = STATE / "registry.yml"
        config.write_text(
            "version: 0.1\n"
            "storage: {filesystem: {rootdirectory: /var/lib/registry}, delete: {enabled: true}}\n"
            f"http: {{addr: ':{REGISTRY_PORT}', tls: {{certificate: /tls/registry.crt, key: /tls/registry.key}}}}\n"
            "log: {level: warn}\n",
            encoding="utf-8",
        )
        docker(
            "run", "-d", "--label", f"attnkit.demo={identity()}",
            "--name", REGISTRY, "--hostname", "registry", "--network", NETWORK, "--network-alias", "registry",
            "--restart", "unless-stopped", "-p", f"127.0.0.1:{REGISTRY_PORT}:{REGISTRY_PORT}",
            "-v", f"{config}:/etc/attnkit-registry.yml:ro", "-v", f"{certificate}:/tls/registry.crt:ro",
            "-v", f"{private}:/tls/registry.key:ro", "-v", f"{REGISTRY}:/var/lib/registry", NODE_IMAGE, "registry",
        )  # fmt: skip
    for name in NODES:
        container = f"{PREFIX}-{name}"
        if not running(container):
            docker(
                "run", "-d", "--label", f"attnkit.demo={identity()}",
                "--name", container, "--hostname", name, "--network", NETWORK, "--network-alias", name,
                "--restart", "unless-stopped", *ENGINE_FLAGS, "-v", f"{container}:/var/lib/docker",
                "--mount", f"type=bind,source={certificate},target={TRUSTED}/ca.crt,readonly",
                "--mount", f"type=bind,source={key}.pub,target=/root/.ssh/authorized_keys,readonly", NODE_IMAGE,
            )  # fmt: skip
    nodes = [Node(name, address(f"{PREFIX}-{name}")) for name in NODES]
    for node in nodes:
        wait_for(node)
    known_hosts(nodes)
    return nodes


def address(container: str) -> str:
    """Its address on the demo's network."""
    return docker("inspect", "--format", f'{{{{(index .NetworkSettings.Networks "{NETWORK}").IPAddress}}}}', container)


def wait_for(node: Node, seconds: float = 60.0) -> None:
    """Until the node's engine answers and its SSH host key is there."""
    container = f"{PREFIX}-{node.name}"
    deadline = time.monotonic() + seconds
    while True:
        if docker("exec", container, "docker", "info", "--format", "{{.ServerVersion}}", check=False):
            return
        if time.monotonic() > deadline:
            log = subprocess.run(
                [engine.client(), "logs", "--tail", "15", container], capture_output=True, text=True, check=False
            )
            raise DemoError(f"{node.name}: its container engine did not start in {seconds:.0f} s:\n{log.stdout}{log.stderr}")
        time.sleep(0.3)


def known_hosts(nodes: list[Node]) -> Path:
    """The nodes' host keys, fetched out of band (through the outer engine), not trusted on first use."""
    file = STATE / "known_hosts"
    lines = []
    for node in nodes:
        key = docker("exec", f"{PREFIX}-{node.name}", "cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()
        lines.append(f"{node.name},{node.address} {key[0]} {key[1]}")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def push(tag: str) -> str:
    """Push an image of the outer engine to the registry; returns its name by digest, as the nodes pull it."""
    repository = tag.replace(":", "/", 1).split("-")[0]  # attnkit:cpu-0.1.0 -> attnkit/cpu
    local = f"127.0.0.1:{REGISTRY_PORT}/{repository}:{tag.rsplit('-', maxsplit=1)[-1]}"
    docker("tag", tag, local)
    docker("push", local)
    digests = json.loads(docker("image", "inspect", "--format", "{{json .RepoDigests}}", local))
    wanted = f"127.0.0.1:{REGISTRY_PORT}/{repository}@"
    digest = next(d.split("@")[1] for d in digests if d.startswith(wanted))
    return f"registry:{REGISTRY_PORT}/{repository}@{digest}"


def down() -> None:
    """Remove the demo's containers, volumes, network and state."""
    containers = [REGISTRY, *(f"{PREFIX}-{name}" for name in NODES)]
    for container in containers:
        docker("rm", "-f", "-v", container, check=False)
        docker("volume", "rm", "-f", container, check=False)
    docker("network", "rm", NETWORK, check=False)
    shutil.rmtree(STATE, ignore_errors=True)
