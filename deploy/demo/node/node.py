"""PID 1 of a demo node: its own cgroups, sshd, and a container engine; or, as `node.py registry`, the fleet's registry.

Standard library only. Ends, and with it the node, where one of its services ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
SERVICES = {
    "node": (
        ["/usr/sbin/sshd", "-D", "-e"],
        ["/usr/sbin/dockerd", "--host", "unix:///var/run/docker.sock", "--log-level", "warn"],
    ),
    "registry": (["/usr/bin/docker-registry", "serve", "/etc/attnkit-registry.yml"],),
}


def own_cgroups() -> None:
    """On cgroup v1 hosts: replace the read-only mounts that the outer engine made by writable ones of the same hierarchies."""
    if (CGROUPS / "cgroup.controllers").exists():
        subprocess.run(["mount", "-o", "remount,rw", str(CGROUPS)], check=False)
        return
    hierarchies = [line.split(":")[1] for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    subprocess.run(["mount", "-o", "remount,rw", str(CGROUPS)], check=False)
    for hierarchy in filter(None, hierarchies):
        names = hierarchy.removeprefix("name=")
        folder = CGROUPS / names
        subprocess.run(["umount", str(folder)], check=False, capture_output=True)
        folder.mkdir(exist_ok=True)
        options = f"none,{hierarchy}" if hierarchy.startswith("name=") else names
        subprocess.run(["mount", "-t", "cgroup", "-o", options, "cgroup", str(folder)], check=False)


def main() -> int:
    """Start the services of this role and wait; SIGTERM ends them all."""
    role = sys.argv[1] if len(sys.argv) > 1 else "node"
    if role == "node":
        own_cgroups()
        subprocess.run(["ssh-keygen", "-A"], check=True, stdout=subprocess.DEVNULL)
        Path("/run/sshd").mkdir(exist_ok=True)
        # Left over where the node was stopped hard; on a machine /run is empty then. An engine that finds its containerd's
        # process number there, and another process of that number, waits for it in vain.
        Path("/var/run/docker.pid").unlink(missing_ok=True)
        shutil.rmtree("/var/run/docker", ignore_errors=True)
    running = [subprocess.Popen(command) for command in SERVICES[role]]

    def stop(*_signal: object) -> None:
        for service in running:
            service.terminate()
        deadline = time.monotonic() + 20
        waiting = {service.pid for service in running}
        while waiting and time.monotonic() < deadline:
            ended, _ = os.waitpid(-1, os.WNOHANG)
            waiting.discard(ended)
            time.sleep(0 if ended else 0.1)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    services = {service.pid for service in running}
    while True:
        ended, _ = os.wait()  # PID 1 reaps what others leave behind, too
        if ended in services:
            return 1


if __name__ == "__main__":
    sys.exit(main())
