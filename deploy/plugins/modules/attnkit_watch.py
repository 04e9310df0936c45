#!/usr/bin/python
"""Sets a watcher on a node before its service is changed. Standard library only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: attnkit_watch
short_description: Let a node go back by itself where a rollout ends in mid-change
version_added: 0.2.0
description:
  - Called before a service is changed. Makes a container like the one that serves now under the name C(CONTAINER-before), which
    is never started, and starts a small watcher (C(CONTAINER-watch), from the image that serves now).
  - The gate (M(attnkit.fleet.attnkit_gate) with I(watch_dir)) gives signs of life while it waits, and removes both once it
    opens.
  - Where the node hears nothing of the rollout for I(timeout) seconds, the watcher looks at the new service itself. Where that
    has passed its self-test and is ready, it stays. Where not, the kept container takes its place.
  - The engine starts the watcher again after a reboot; the time then begins anew.
  - Where a change is pending already (a run before this one ended), what is kept is the service before that change, and stays.
  - Nothing is done where no service runs. What this module makes is no part of a node's configuration and goes again, so that
    it is not reported as a change.
options:
  container:
    description: Name of the service's container.
    type: str
    required: true
  state_dir:
    description: Folder on the node; the watcher's is C(watch) in it, the boot reports are in C(run).
    type: path
    required: true
  image:
    description: Image with digest that is about to run.
    type: str
    required: true
  node_type:
    description: Node type that its report must be of.
    type: str
  accept_planted:
    description: Let a boot stay in which no kernel ran because the device's answer was planted. For rehearsals alone.
    type: bool
    default: false
  settle:
    description: Seconds that the new service must have been ready.
    type: float
    default: 0.0
  timeout:
    description: Seconds without a sign of life of the rollout after which the node decides.
    type: float
    required: true
  docker_socket:
    description: The engine's socket.
    type: path
    default: /var/run/docker.sock
attributes:
  check_mode:
    description: Does nothing.
    support: full
  diff_mode:
    description: Nothing to show.
    support: none
author:
  - The attnkit authors
"""

EXAMPLES = r"""
- name: Let the node go back by itself
  attnkit.fleet.attnkit_watch:
    container: attnkit
    state_dir: /var/lib/attnkit
    image: registry:5000/attnkit/cpu@sha256:0000000000000000000000000000000000000000000000000000000000000000
    timeout: 960
"""

RETURN = r"""
watched:
  description: Whether the node would go back by itself now.
  returned: always
  type: bool
"""

import contextlib
import importlib.util
import os
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import boot_report, engine, judge, pending, watcher

PROGRAM = (boot_report, engine, judge, pending, watcher)
SOCKET = "/var/run/docker.sock"
"""Where the watcher finds the engine's socket, wherever the node has it."""


def write_program(folder: str) -> str:
    """The watcher's code as a package of its own; the folder to import it from."""
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
    """What to ask the engine for to get the same container once more, one that no reboot starts.

    Args:
        inspected: what `docker inspect` shows of the container.
    """
    config = {key: value for key, value in inspected["Config"].items() if key not in ("Hostname", "Domainname", "MacAddress")}
    return {**config, "HostConfig": {**inspected["HostConfig"], "RestartPolicy": {"Name": "no"}, "AutoRemove": False}}


def watcher_container(image: str, folder: str, run_dir: str, container: str, socket: str) -> dict[str, Any]:
    """What to ask the engine for to get the watcher: the engine's socket and two folders, no network, no capability.

    Args:
        image: whose Python runs it.
        folder: where the change is written.
        run_dir: where the boot reports are.
        container: the service's name.
        socket: the engine's, on the node.
    """
    return {
        "Image": image,
        "Entrypoint": ["python3", "-m", "attnkit_watch.watcher", folder, "--container", container, "--socket", SOCKET],
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


def start_watcher(client: engine.Engine, name: str, wanted: dict[str, Any]) -> None:
    """A new watcher, in the place of one that may be left over."""
    client.remove(name)
    made = client.send("POST", f"/containers/create?name={name}", wanted)
    client.send("POST", f"/containers/{made['Id']}/start")


def main() -> None:
    """The module's entry."""
    module = AnsibleModule(
        argument_spec={
            "container": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "image": {"type": "str", "required": True},
            "node_type": {"type": "str"},
            "accept_planted": {"type": "bool", "default": False},
            "settle": {"type": "float", "default": 0.0},
            "timeout": {"type": "float", "required": True},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    p = module.params
    if module.check_mode:
        module.exit_json(changed=False, watched=False)
    try:
        module.exit_json(changed=False, watched=watch(engine.Engine(p["docker_socket"]), p))
    except (engine.EngineError, OSError) as error:
        module.fail_json(msg=f"no watcher could be set, so nothing is changed: {error}")


def watch(client: engine.Engine, p: dict[str, Any]) -> bool:
    """Set the watcher, or renew the change that is pending; False where there is nothing to go back to.

    Args:
        client: the node's engine.
        p: the module's parameters.

    Raises:
        EngineError: the engine did not do it, or the node is on its own way back. Nothing is pending then that was not before.
    """
    name, folder, run_dir = p["container"], os.path.join(p["state_dir"], "watch"), os.path.join(p["state_dir"], "run")
    kept, watching = pending.kept_name(name), pending.watcher_name(name)
    pending.outlast(folder)
    judged_by = {key: p[key] for key in ("image", "node_type", "accept_planted", "settle", "timeout")}
    if os.path.isdir(folder):
        with pending.locked(folder):
            change = pending.read(folder)
            if change is not None and change["state"] == "going back":  # what is kept is being put in place: not to be removed
                raise engine.EngineError(f"the node has been going back by itself for more than {pending.GOING_SECONDS:.0f} s")
            if change is not None and change["state"] == "waiting" and client.container(change["kept"]) is not None:
                # This may be the rollout's own way back, on a full disk: then what is written already must do.
                with contextlib.suppress(OSError, engine.EngineError):
                    os.utime(pending.path_of(folder))
                    pending.write(folder, "pending.json", {**change, **judged_by})
                    inspected = client.container(watching)
                    if inspected is None or not inspected["State"]["Running"]:
                        wanted = watcher_container(change["old_image"], folder, run_dir, name, p["docker_socket"])
                        start_watcher(client, watching, wanted)
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
        start_watcher(client, watching, watcher_container(inspected["Image"], folder, run_dir, name, p["docker_socket"]))
    except engine.EngineError:
        pending.confirm(client, folder, name)
        raise
    return True


if __name__ == "__main__":
    main()
