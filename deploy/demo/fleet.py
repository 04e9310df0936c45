"""A fleet on one computer: nodes and a registry, as containers with their own Docker, on their own network.

Everything of a fleet is named by its prefix (attnkit-demo-*); `down` removes exactly that. Keys, certificates
and inventory are generated under its folder in .cache.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import requests

from deploy.demo.registry import Registry
from images.builder import base, build, container_engine, platforms

ROOT = Path(__file__).resolve().parents[2]
REGISTRY_PORT = 5000
TRUSTED = f"/etc/docker/certs.d/registry:{REGISTRY_PORT}"
"""Where a node's Docker looks for the registry's authority."""
AUTHORIZED_KEYS = "/etc/ssh/authorized_keys"
"""What the sshd of a node reads (node/Dockerfile)."""
NODE_CONTEXT = Path(__file__).resolve().parent / "node"
# A container with Docker inside. Plain --privileged would do if the machine's own capability set is complete; this also works
# if it is not, and gives less.
ENGINE_FLAGS = (
    "--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--security-opt", "seccomp=unconfined",
    "--security-opt", "apparmor=unconfined", "--security-opt", "systempaths=unconfined", "--cgroupns", "private",
)  # fmt: skip


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Node:
    """One node: its name in the inventory and its address on the fleet's network."""

    name: str
    address: str


@dataclass(frozen=True)
class Machine:
    """A node to be started.

    Args:
        name: its name in the inventory.
        options: more options of `docker run`; the last one may be a mount over /var/lib/docker in place of a volume.
        storage: whether its Docker keeps images on their own volume.
    """

    name: str
    options: tuple[str, ...] = ()
    storage: bool = True


def docker(*args: str, check: bool = True) -> str:
    """Output of a docker command; DemoError with Docker's message if it fails."""
    done = subprocess.run([container_engine.client(), *args], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise DemoError(f"docker {' '.join(args[:4])} …: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout.strip() if done.returncode == 0 else ""


def node_image(name: str, context: Path = NODE_CONTEXT, base_name: str = "", secrets_at: Path | None = None) -> None:
    """Build an image of nodes; nothing to do if its inputs did not change.

    Args:
        name: of the image.
        context: folder with the Dockerfile.
        base_name: image to start from; the distribution's base image if it is empty.
        secrets_at: folder for what the build sees only while it runs; None if it needs no network.
    """
    base_name = base_name or base.base_image(platforms.load()["cpu"].base)
    inputs = build.fingerprint(context, {"BASE": base_name}, {}, build.inspect(base_name, "{{.Id}}"))
    if build.inspect(name, '{{index .Config.Labels "attnkit.inputs"}}') == inputs:
        return
    command = [container_engine.client(), "build", "-q", "-t", name, "--label", f"attnkit.inputs={inputs}"]
    command += ["--build-arg", f"BASE={base_name}"]
    try:
        for key, path in (build.secrets(secrets_at) if secrets_at else {}).items():
            if key in ("apt", "ca"):
                command += ["--secret", f"id={key},src={path}"]
        done = subprocess.run(
            [*command, str(context)], capture_output=True, text=True, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=False
        )
    finally:
        if secrets_at:
            shutil.rmtree(secrets_at, ignore_errors=True)
    if done.returncode != 0:
        raise DemoError(f"the image {name} did not build:\n{done.stderr.strip()[-2500:]}")


def make_certificate(certificate: Path, key: Path, title: str) -> None:
    """A certificate that is its own authority, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, title)])
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


@dataclass(frozen=True)
class Fleet:
    """A fleet of this computer.

    Args:
        prefix: the first part of every name: containers, volumes, network, image.
        state: folder for keys, certificates and the inventory.
        host_port: port on 127.0.0.1 where images are pushed to its registry.
        image: image of its nodes, where that is not the fleet's own.
    """

    prefix: str
    state: Path
    host_port: int
    image: str = ""

    @property
    def node_image_name(self) -> str:
        """The image that nodes and registry run."""
        return self.image or f"{self.prefix}-node"

    @property
    def registry(self) -> str:
        """The registry's container."""
        return f"{self.prefix}-registry"

    def container(self, name: str) -> str:
        """The container that is this node."""
        return f"{self.prefix}-{name}"

    @property
    def label(self) -> str:
        """Label of its containers; the value tells this checkout's fleet from another's."""
        return self.prefix.replace("-", ".")

    def ssh_key(self) -> Path:
        """The operator's key for this fleet."""
        key = self.state / "id_ed25519"
        if not key.is_file():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.prefix, "-f", str(key)], check=True)
        return key

    def certificates(self) -> tuple[Path, Path]:
        """The registry's certificate, which is its own authority, and its key."""
        certificate, key = self.state / "registry.crt", self.state / "registry.key"
        if not (certificate.is_file() and key.is_file()):
            make_certificate(certificate, key, f"{self.prefix} registry")
        return certificate, key

    def identity(self) -> str:
        """What tells this checkout's fleet from another's: its SSH key and the registry's certificate."""
        parts = [self.ssh_key().with_suffix(".pub").read_bytes(), self.certificates()[0].read_bytes()]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    def running(self, name: str) -> bool:
        """Whether the container is up; one that is stopped is started again.

        One of another image is removed, and one of another checkout (whose keys this one does not have) with all that it holds.
        """
        there = docker("inspect", "--format", "{{.Id}}", name, check=False)
        if there and docker("inspect", "--format", f'{{{{index .Config.Labels "{self.label}"}}}}', name) != self.identity():
            docker("rm", "-f", "-v", name)
            docker("volume", "rm", "-f", name)
            return False
        image = build.inspect(self.node_image_name, "{{.Id}}")
        if docker("inspect", "--format", "{{.Image}}", name, check=False) not in ("", image):
            docker("rm", "-f", name)
            return False
        state = docker("inspect", "--format", "{{.State.Running}}", name, check=False)
        if state == "false":
            docker("start", name)
            return True
        return state == "true"

    def up(self, machines: Sequence[Machine]) -> list[Node]:
        """Network, registry and nodes, each only if it is not there yet; returns once every node answers over SSH.

        The nodes' image must have been built (`node_image`).
        """
        self.state.mkdir(parents=True, exist_ok=True)
        if shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
            if os.geteuid() != 0:
                raise DemoError("ssh is needed and not installed (Debian, Ubuntu: openssh-client)")
            container_engine.apt_install(("openssh-client",))
        if not docker("network", "ls", "-q", "--filter", f"name=^{self.prefix}$"):
            docker("network", "create", self.prefix)
        if not self.running(self.registry):
            self._start_registry()
        for machine in machines:
            if not self.running(self.container(machine.name)):
                self._start_node(machine)
        nodes = [Node(machine.name, self.address(self.container(machine.name))) for machine in machines]
        for node in nodes:
            self.wait_for(node)
        self.known_hosts(nodes)
        return nodes

    def _start_registry(self) -> None:
        certificate, private = self.certificates()
        config = self.state / "registry.yml"
        config.write_text(
            "version: 0.1\n"
            "storage: {filesystem: {rootdirectory: /var/lib/registry}, delete: {enabled: true}}\n"
            f"http: {{addr: ':{REGISTRY_PORT}', tls: {{certificate: /tls/registry.crt, key: /tls/registry.key}}}}\n"
            "log: {level: warn}\n",
            encoding="utf-8",
        )
        docker(
            "run", "-d", "--label", f"{self.label}={self.identity()}", "--entrypoint", "python3",
            "--name", self.registry, "--hostname", "registry", "--network", self.prefix, "--network-alias", "registry",
            "--restart", "unless-stopped", "-p", f"127.0.0.1:{self.host_port}:{REGISTRY_PORT}",
            "-v", f"{config}:/etc/attnkit-registry.yml:ro", "-v", f"{certificate}:/tls/registry.crt:ro",
            "-v", f"{private}:/tls/registry.key:ro", "-v", f"{self.registry}:/var/lib/registry",
            self.node_image_name, "/usr/local/bin/node.py", "registry",
        )  # fmt: skip

    def _start_node(self, machine: Machine) -> None:
        container = self.container(machine.name)
        storage = ("-v", f"{container}:/var/lib/docker") if machine.storage else ()
        docker(
            "run", "-d", "--label", f"{self.label}={self.identity()}",
            "--name", container, "--hostname", machine.name, "--network", self.prefix, "--network-alias", machine.name,
            "--restart", "unless-stopped", *ENGINE_FLAGS, *storage,
            "--mount", f"type=bind,source={self.certificates()[0]},target={TRUSTED}/ca.crt,readonly",
            "--mount", f"type=bind,source={self.ssh_key()}.pub,target={AUTHORIZED_KEYS},readonly",
            *machine.options, self.node_image_name,
        )  # fmt: skip

    def address(self, container: str) -> str:
        """Its address on the fleet's network."""
        return docker("inspect", "--format", f'{{{{(index .NetworkSettings.Networks "{self.prefix}").IPAddress}}}}', container)

    def wait_for(self, node: Node, seconds: float = 60.0) -> None:
        """Wait until the node's Docker answers and its SSH host key is there."""
        container = self.container(node.name)
        deadline = time.monotonic() + seconds
        while True:
            if docker("exec", container, "docker", "info", "--format", "{{.ServerVersion}}", check=False):
                return
            if time.monotonic() > deadline:
                log = subprocess.run(
                    [container_engine.client(), "logs", "--tail", "15", container], capture_output=True, text=True, check=False
                )
                raise DemoError(f"{node.name}: its Docker did not start in {seconds:.0f} s:\n{log.stdout}{log.stderr}")
            time.sleep(0.3)

    def known_hosts(self, nodes: Sequence[Node]) -> Path:
        """The nodes' host keys, fetched out of band (through the outer Docker), not trusted on first use."""
        file = self.state / "known_hosts"
        lines = []
        for node in nodes:
            key = docker("exec", self.container(node.name), "cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()
            lines.append(f"{node.name},{node.address} {key[0]} {key[1]}")
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file

    def ssh_variables(self) -> dict[str, str]:
        """The inventory's variables that reach the nodes."""
        return {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.ssh_key()),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.state / 'known_hosts'} -o IdentitiesOnly=yes",
        }

    def push(self, tag: str) -> str:
        """Push an image of the outer Docker to the registry; returns its name by digest, as the nodes pull it."""
        name, _, kind = tag.partition(":")  # attnkit:cpu-0.1.0 -> attnkit/cpu:0.1.0-IDENTITY
        platform, _, version = kind.rpartition("-")
        repository = f"{name}/{platform}"
        target = Registry(f"https://127.0.0.1:{self.host_port}", repository, self.certificates()[0])
        known = f"{version}-{build.inspect(tag, '{{.Id}}').removeprefix('sha256:')[:12]}"
        try:
            digest = target.digest("manifests", known)
            if digest is None:
                with tempfile.TemporaryDirectory(dir=self.state) as folder:
                    archive = Path(folder) / "image.tar"
                    docker("save", "-o", str(archive), tag)
                    digest = target.push(archive, known)
        except requests.RequestException as error:
            raise DemoError(f"{tag} could not be pushed to {target.repository}: {error}") from error
        return f"registry:{REGISTRY_PORT}/{repository}@{digest}"

    def down(self, machines: Sequence[str]) -> None:
        """Remove the fleet's containers, volumes, network and state."""

        def remove(container: str) -> None:
            docker("rm", "-f", "-v", container, check=False)
            docker("volume", "rm", "-f", container, check=False)

        containers = [self.registry, *(self.container(name) for name in machines)]
        with ThreadPoolExecutor(len(containers)) as pool:
            list(pool.map(remove, containers))
        docker("network", "rm", self.prefix, check=False)
        shutil.rmtree(self.state, ignore_errors=True)


DEMO = Fleet(prefix="attnkit-demo", state=ROOT / ".cache" / "demo", host_port=5000)
