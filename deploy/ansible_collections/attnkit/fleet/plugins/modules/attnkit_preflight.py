#!/usr/bin/python
"""Checks a node before a rollout changes it. Standard library only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: attnkit_preflight
short_description: Check whether a node can take a release, without changing it
version_added: 0.1.0
description:
  - Checks Python, Docker, free disk space, the service's port, the clock and the registry.
  - A finding against the rollout is a value, not a failure, so that one table can show the findings of all nodes.
options:
  container:
    description: Name of the service's container. A port that it holds counts as free.
    type: str
    required: true
  state_dir:
    description: Folder with the release record, to compare the node's type with.
    type: path
  port:
    description: Port on the node for the service.
    type: int
    required: true
  bind_address:
    description: Address that the port is bound to.
    type: str
    default: 0.0.0.0
  image:
    description: Image with digest, C(registry:5000/attnkit/cpu@sha256:...).
    type: str
  image_bytes:
    description: Free space that a pull of the image takes, unpacked. Not checked if the node has the image.
    type: int
    default: 0
  devices:
    description: Device nodes that the service must get.
    type: list
    elements: path
    default: []
  driver:
    description: Version of the accelerator's driver, compared with the oldest that the image's label C(attnkit.driver) allows.
    type: str
  controller_time:
    description: Seconds since the epoch on the controller.
    type: float
  max_clock_skew:
    description: Seconds by which the clocks may differ.
    type: int
    default: 60
extends_documentation_fragment:
  - attnkit.fleet.service
  - attnkit.fleet.service.read_only
"""

EXAMPLES = r"""
- name: Check the node before the rollout
  attnkit.fleet.attnkit_preflight:
    container: attnkit
    port: 8000
    image: registry:5000/attnkit/cpu@sha256:0c1c...
    image_bytes: 8000000000
"""

RETURN = r"""
findings:
  description: One entry per check.
  returned: always
  type: list
  elements: dict
  sample:
    - check: disk
      ok: true
      detail: 71.2 GiB free in /var/lib/docker, 7.5 GiB needed
recorded_type:
  description: The node type of the recorded release, null if none is recorded.
  returned: always
  type: str
  sample: h100
recorded:
  description: The recorded release, empty if none is recorded.
  returned: always
  type: dict
service:
  description: Whether the service's container runs, and its image. Null if there is none, or if Docker does not answer.
  returned: always
  type: dict
  sample:
    running: true
    image: registry:5000/attnkit/cpu@sha256:0c1c...
machine:
  description: What tells this machine from every other, null if Docker does not answer. Two hosts with the same are one.
  returned: always
  type: str
  sample: 1f0a3c5e7b9d2f4a6c8e0b1d3f5a7c9e
"""

import errno
import hashlib
import os
import re
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.arguments import SERVICE, Arguments
from ..module_utils.boot_report import part, read_json
from ..module_utils.docker_api import Docker, DockerError
from ..module_utils.findings import finding, human_bytes
from ..module_utils.image_labels import labels, registry_of, tls_context

ARGUMENTS: Arguments = {
    **SERVICE,
    "state_dir": {"type": "path"},
    "port": {"type": "int", "required": True},
    "bind_address": {"type": "str", "default": "0.0.0.0"},
    "image": {"type": "str"},
    "image_bytes": {"type": "int", "default": 0},
    "devices": {"type": "list", "elements": "path", "default": []},
    "driver": {"type": "str"},
    "controller_time": {"type": "float"},
    "max_clock_skew": {"type": "int", "default": 60},
}


def check_python() -> dict[str, Any]:
    """The node's Python: 3.10 or newer, and the requests library that community.docker's modules need."""
    version = sys.version.split()[0]
    if sys.version_info < (3, 10):
        return finding("python", False, f"Python {version}, 3.10 or newer needed")
    try:
        import requests
    except ImportError:
        return finding("python", False, f"Python {version} without the requests library (Debian, Ubuntu: python3-requests)")
    return finding("python", True, f"Python {version}, requests {requests.__version__}")


def check_docker(docker: Docker) -> tuple[dict[str, Any], str | None]:
    """Whether Docker answers, and where it keeps its images."""
    try:
        info = docker.get("/info")
    except DockerError as error:
        return finding("docker", False, str(error)), None
    return finding("docker", True, f"{info['ServerVersion']}, {info['Driver']}"), info["DockerRootDir"]


def recorded(state_dir: str | None) -> dict[str, Any]:
    """The record of the served release, empty if there is none."""
    return part(read_json(os.path.join(state_dir, "release.json")), "release") if state_dir else {}


def service_of(docker: Docker, container: str) -> dict[str, Any] | None:
    """What a plan needs to know of the service's container."""
    found = docker.container(container)
    return {"running": bool(found["State"]["Running"]), "image": found["Config"]["Image"]} if found else None


def identity(docker: Docker) -> str:
    """What tells this machine from every other: its Docker's id, its machine id and its boot.

    Each alone may be alike on two machines (cloned disks, containers that play nodes); all three together are one machine.
    """
    parts = [str(docker.get("/info").get("ID"))]
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                parts.append(file.read(64).strip())
        except OSError:
            parts.append("")
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:32]


def check_disk(docker: Docker, root_dir: str, image: str | None, needed: int) -> dict[str, Any]:
    """Free space where Docker keeps images; an image that is already there needs none."""
    if image and docker.get(f"/images/{image}/json") is not None:
        return finding("disk", True, "the image is already there")
    free = shutil.disk_usage(root_dir).free
    return finding("disk", free >= needed, f"{human_bytes(free)} free in {root_dir}, {human_bytes(needed)} needed")


def check_port(docker: Docker, container: str, address: str, port: int) -> dict[str, Any]:
    """The port is free, or it is ours."""
    ours = docker.container(container)
    bindings = ((ours or {}).get("HostConfig", {}).get("PortBindings") or {}).values()
    running = bool(ours and ours["State"]["Running"])
    if running and any(str(port) == b["HostPort"] for binding in bindings for b in binding or ()):
        return finding("port", True, f"{port} is held by the service itself")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            why = "taken by something else" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
            return finding("port", False, f"{port}: {why}")
    return finding("port", True, f"{port} is free")


def check_registry(docker: Docker, image: str | None) -> dict[str, Any]:
    """The registry of the image answers the node. 401 is an answer: Docker has its own credentials."""
    if not image:
        return finding("registry", False, "no image is stated for this platform (attnkit_images)")
    if docker.get(f"/images/{image}/json") is not None:
        return finding("registry", True, "not needed: the image is already there")
    host = registry_of(image)
    context = tls_context(host)
    reasons = []
    for scheme in ("https", "http"):
        url = f"{scheme}://{host}/v2/"
        try:
            with urllib.request.urlopen(url, timeout=10, context=context if scheme == "https" else None):
                return finding("registry", True, url)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return finding("registry", True, f"{url} (requires credentials)")
            reasons.append(f"{url}: {error}")
        except OSError as error:
            reasons.append(f"{url}: {error}")
    return finding("registry", False, "; ".join(reasons))


def check_driver(docker: Docker, image: str | None, driver: str | None) -> dict[str, Any]:
    """The accelerator's driver is not older than the image's floor."""
    if not image:
        return finding("driver", True, f"{driver or 'none'}, compared with no image")
    try:
        floor = labels(docker, image).get("attnkit.driver")
    except (OSError, DockerError, ValueError, KeyError, StopIteration) as error:
        return finding("driver", True, f"{driver or 'none'}; the image's floor cannot be read ({error})")
    if not floor:
        return finding("driver", True, f"{driver or 'none'}, the image names no floor")
    if not driver:
        return finding("driver", False, f"no driver was found, the image needs {floor} or newer")
    return finding("driver", version(driver) >= version(floor), f"{driver}, the image needs {floor} or newer")


def version(text: str) -> tuple[int, ...]:
    """The numbers of a driver version: 580.65.06 is (580, 65, 6)."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def check_clock(controller_time: float | None, allowed: int) -> dict[str, Any]:
    """The clocks agree: the gate compares times of reports and containers, and TLS needs it."""
    if controller_time is None:
        return finding("clock", True, "not compared")
    skew = time.time() - controller_time
    return finding("clock", abs(skew) <= allowed, f"{skew:+.0f} s against the controller, {allowed} s allowed")


def check_devices(devices: list[str]) -> dict[str, Any]:
    """The device nodes that the service must get are there."""
    missing = [d for d in devices if not os.path.exists(d)]
    return finding("devices", not missing, f"missing: {', '.join(missing)}" if missing else ", ".join(devices) or "none needed")


def main() -> None:
    """The module's entry."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    p = module.params
    docker = Docker(p["docker_socket"])
    docker_finding, root_dir = check_docker(docker)
    findings = [check_python(), docker_finding]
    machine = service = None
    if root_dir is not None:
        machine, service = identity(docker), service_of(docker, p["container"])
        findings += [
            check_disk(docker, root_dir, p["image"], p["image_bytes"]),
            check_port(docker, p["container"], p["bind_address"], p["port"]),
            check_registry(docker, p["image"]),
            check_driver(docker, p["image"], p["driver"]),
        ]
    findings += [check_devices(p["devices"]), check_clock(p["controller_time"], p["max_clock_skew"])]
    release = recorded(p["state_dir"])
    said = release.get("node_type")
    module.exit_json(
        changed=False,
        findings=findings,
        machine=machine,
        recorded=release,
        recorded_type=said if isinstance(said, str) else None,
        service=service,
    )


if __name__ == "__main__":
    main()
