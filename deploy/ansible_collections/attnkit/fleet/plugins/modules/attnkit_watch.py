#!/usr/bin/python
"""Starts a watchdog on a node before its service is changed. Standard library only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: attnkit_watch
short_description: Start a watchdog that reverts a node if a rollout ends during a change
version_added: 0.2.0
description:
  - Call it before a service is changed. It creates a copy of the container that serves now under the name C(CONTAINER-before),
    which is never started, and starts a small watchdog, C(CONTAINER-watch), from the image that serves now.
  - The gate (M(attnkit.fleet.attnkit_gate) with I(watch_dir)) sends heartbeats while it waits, and removes both once it passes.
  - After I(timeout) seconds without a heartbeat, the watchdog probes the new service itself. If that has passed its self-test
    and is ready, it stays. If not, the kept container replaces it.
  - The container runtime restarts the watchdog after a reboot; the time then starts again.
  - If a change is pending already (an earlier run ended), the kept container is that of the service before that change, and
    stays.
  - Nothing is done if no service runs. What this module creates is temporary and not part of a node's configuration, so it is
    not reported as a change.
options:
  state_dir:
    description: Folder on the node; the watchdog's is C(watch) in it, the boot reports are in C(run).
    type: path
    required: true
  image:
    description: Image with digest that is about to run.
    type: str
    required: true
  timeout:
    description: Seconds without a heartbeat of the rollout after which the node decides.
    type: float
    required: true
attributes:
  check_mode:
    description: Does nothing.
    support: full
  diff_mode:
    description: Nothing to show.
    support: none
extends_documentation_fragment:
  - attnkit.fleet.service
  - attnkit.fleet.service.gated
"""

EXAMPLES = r"""
- name: Start the watchdog of the node
  attnkit.fleet.attnkit_watch:
    container: attnkit
    state_dir: /var/lib/attnkit
    image: registry:5000/attnkit/cpu@sha256:0000000000000000000000000000000000000000000000000000000000000000
    timeout: 960
"""

RETURN = r"""
watched:
  description: Whether the node would revert by itself now.
  returned: always
  type: bool
"""

import contextlib
import importlib.util
import os
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import boot_report, docker_api, pending, probe, watchdog
from ..module_utils.arguments import GATED, SERVICE, Arguments

ARGUMENTS: Arguments = {
    **SERVICE,
    **GATED,
    "state_dir": {"type": "path", "required": True},
    "image": {"type": "str", "required": True},
    "timeout": {"type": "float", "required": True},
}

PROGRAM = (boot_report, docker_api, pending, probe, watchdog)
SOCKET = "/var/run/docker.sock"
"""The path of Docker's socket in the watchdog's container, wherever the node has it."""


def write_program(folder: str) -> str:
    """The watchdog's code as a package of its own; the folder to import it from."""
    program = os.path.join(folder, "program")
    package = os.path.join(program, "attnkit_watch")
    shutil.rmtree(program, ignore_errors=True)
    os.makedirs(package)
    sources = {"__init__": ""}
    for module in PROGRAM:
        spec = importlib.util.find_spec(module.__name__)  # Ansible runs this from a zip archive
        assert spec is not None and spec.loader is not None
        sources[module.__name__.rpartition(".")[2]] = spec.loader.get_source(module.__name__)  # type: ignore[attr-defined]
    for name, source in sources.items():
        with open(os.path.join(package, f"{name}.py"), "w", encoding="utf-8") as file:
            file.write(source)
    return program


def like(inspected: dict[str, Any]) -> dict[str, Any]:
    """The request that creates a copy of a container which no reboot starts.

    Args:
        inspected: what `docker inspect` shows of the container.
    """
    config = {key: value for key, value in inspected["Config"].items() if key not in ("Hostname", "Domainname", "MacAddress")}
    return {**config, "HostConfig": {**inspected["HostConfig"], "RestartPolicy": {"Name": "no"}, "AutoRemove": False}}


def watchdog_container(image: str, folder: str, run_dir: str, container: str, socket: str) -> dict[str, Any]:
    """The request that creates the watchdog: Docker's socket and two folders, no network, no capability.

    Args:
        image: whose Python runs it.
        folder: where the change is written.
        run_dir: where the boot reports are.
        container: the service's name.
        socket: Docker's, on the node.
    """
    return {
        "Image": image,
        "Entrypoint": ["python3", "-m", "attnkit_watch.watchdog", folder, "--container", container, "--socket", SOCKET],
        "Cmd": [],
        "User": "0:0",
        "WorkingDir": "/",
        "Env": [f"PYTHONPATH={folder}/program", "PYTHONDONTWRITEBYTECODE=1"],
        "Healthcheck": {"Test": ["NONE"]},
        "StopTimeout": 5,
        "HostConfig": {
            "Binds": [f"{folder}:{folder}:rw", f"{run_dir}:{run_dir}:ro", f"{socket}:{SOCKET}:rw"],
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges", "label=disable"],  # under SELinux no container may use the socket otherwise
            "UsernsMode": "host",
            "RestartPolicy": {"Name": "unless-stopped"},
        },
    }


def start_watchdog(client: docker_api.Docker, name: str, wanted: dict[str, Any]) -> None:
    """A new watchdog, instead of one that may be left over."""
    client.remove(name)
    made = client.send("POST", f"/containers/create?name={name}", wanted)
    client.send("POST", f"/containers/{made['Id']}/start")


def main() -> None:
    """The module's entry."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    p = module.params
    if module.check_mode:
        module.exit_json(changed=False, watched=False)
    try:
        module.exit_json(changed=False, watched=watch(docker_api.Docker(p["docker_socket"]), p))
    except (docker_api.DockerError, OSError) as error:
        module.fail_json(msg=f"the watchdog could not be started, so nothing was changed: {error}")


def watch(client: docker_api.Docker, p: dict[str, Any]) -> bool:
    """Start the watchdog, or renew the pending change; False if there is nothing to revert to.

    Args:
        client: the node's Docker.
        p: the module's parameters.

    Raises:
        DockerError: Docker refused, or the node is reverting by itself. Nothing is pending then that was not before.
    """
    name, folder, run_dir = p["container"], os.path.join(p["state_dir"], "watch"), os.path.join(p["state_dir"], "run")
    kept, watching = pending.kept_name(name), pending.watchdog_name(name)
    pending.outlast(folder)
    judged_by = {key: p[key] for key in ("image", "node_type", "accept_planted", "settle", "timeout")}
    if os.path.isdir(folder):
        with pending.locked(folder):
            change = pending.read(folder)
            if change is not None and change["state"] == "going back":  # what is kept is being put in place: not to be removed
                raise docker_api.DockerError(
                    f"the node has been reverting by itself for more than {pending.GOING_SECONDS:.0f} s"
                )
            if change is not None and change["state"] == "waiting" and client.container(change["kept"]) is not None:
                # This may be the rollout's own revert, on a full disk: then what is written already must do.
                with contextlib.suppress(OSError, docker_api.DockerError):
                    os.utime(pending.path_of(folder))
                    pending.write(folder, "pending.json", {**change, **judged_by})
                    inspected = client.container(watching)
                    if inspected is None or not inspected["State"]["Running"]:
                        wanted = watchdog_container(change["old_image"], folder, run_dir, name, p["docker_socket"])
                        start_watchdog(client, watching, wanted)
                return True
    inspected = client.container(name)
    if inspected is None or not inspected["State"]["Running"]:
        return False
    client.remove(watching)
    client.remove(kept)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, mode=0o700)
    write_program(folder)
    made = client.send("POST", f"/containers/create?name={kept}", like(inspected))
    change = {
        "state": "waiting",
        "container": name,
        "before": inspected["Id"],
        "old_image": inspected["Image"],
        "kept": made["Id"],
        "restart_policy": inspected["HostConfig"]["RestartPolicy"],
        "run_dir": run_dir,
        **judged_by,
    }
    pending.write(folder, "pending.json", change)
    try:
        start_watchdog(client, watching, watchdog_container(inspected["Image"], folder, run_dir, name, p["docker_socket"]))
    except docker_api.DockerError:
        pending.confirm(client, folder, name)
        raise
    return True


if __name__ == "__main__":
    main()
