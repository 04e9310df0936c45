"""Starts Docker where it does not run yet, and finds a client that supports BuildKit.

`python3 -m images.builder.container_engine` is idempotent and needs the standard library only:

1. a Docker daemon answers: nothing to do;
2. root on Debian or Ubuntu: the distribution's own `docker.io` is installed and started, by systemd where systemd runs,
   otherwise in a process session of its own (log: .cache/dockerd.log);
3. anything else: a message that says what to do, exit code 2.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from images import CACHE, ROOT

DAEMON_LOG = CACHE / "dockerd.log"
START_SECONDS = 60.0
PACKAGES = ("docker.io", "iptables")
OPTIONAL_PACKAGES = ("docker-cli", "docker-buildx")
"""Split off docker.io in newer releases; installed where the distribution has them."""


class EngineError(Exception):
    """Docker cannot be used, or a docker command failed; the message says why and what to do."""


def answers() -> bool:
    """Whether a Docker daemon answers the first client on PATH."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    done = subprocess.run([docker, "info", "--format", "{{.ServerVersion}}"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() != ""


def distribution() -> set[str]:
    """ID and ID_LIKE of /etc/os-release, as a set of words."""
    words: set[str] = set()
    release = Path("/etc/os-release")
    if release.is_file():
        for line in release.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition("=")
            if key in ("ID", "ID_LIKE"):
                words.update(value.strip().strip('"').split())
    return words


def apt_install(packages: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """Install distribution packages without their recommendations; EngineError with apt's last lines if that fails."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-q", "-o", "Dpkg::Use-Pty=0"]
    subprocess.run([*apt, "update"], env=env, capture_output=True, check=False)
    wanted = [*packages]
    for name in optional:
        shown = subprocess.run(
            ["apt-cache", "policy", name], capture_output=True, text=True, check=False, env={**env, "LC_ALL": "C"}
        )
        if "Candidate: " in shown.stdout and "Candidate: (none)" not in shown.stdout:
            wanted.append(name)
    print(f"[engine] apt-get install {' '.join(wanted)}", flush=True)
    done = subprocess.run(
        [*apt, "install", "-y", "--no-install-recommends", *wanted], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        raise EngineError(f"apt-get install {' '.join(wanted)} failed:\n{tail}")


def start_daemon() -> None:
    """Start the Docker daemon and wait until it answers; EngineError with the end of its log if it does not."""
    daemon: subprocess.Popen[bytes] | None = None
    if Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "start", "docker"], check=False)
    else:
        dockerd = shutil.which("dockerd") or "/usr/sbin/dockerd"
        CACHE.mkdir(exist_ok=True)
        print(f"[engine] starting {dockerd} (log: {DAEMON_LOG.relative_to(ROOT)})", flush=True)
        with DAEMON_LOG.open("ab") as log:
            daemon = subprocess.Popen(
                [dockerd], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True, cwd="/"
            )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if answers():
            return
        if daemon is not None and daemon.poll() is not None:
            break
        time.sleep(0.3)
    tail = ""
    if DAEMON_LOG.is_file():
        tail = "\n" + "\n".join(DAEMON_LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
    ended = daemon.poll() if daemon is not None else None
    what = f"ended with code {ended}" if ended is not None else f"did not answer within {START_SECONDS:.0f} s"
    raise EngineError(f"the Docker daemon {what}.{tail}")


def ensure() -> str:
    """Make sure that Docker runs. Returns one word on what was found or done; raises EngineError otherwise."""
    if answers():
        return "running"
    advice = "install Docker Engine (20.10 or newer) and start it, or point DOCKER_HOST at one, then run the command again"
    if os.environ.get("DOCKER_HOST"):
        raise EngineError(f"no Docker daemon answers at DOCKER_HOST={os.environ['DOCKER_HOST']}; start it or unset DOCKER_HOST")
    if os.geteuid() != 0:
        raise EngineError(f"no Docker daemon answers, and installing or starting one needs root: {advice}")
    if shutil.which("dockerd") is None and not Path("/usr/sbin/dockerd").exists():
        if not distribution() & {"debian", "ubuntu"} or shutil.which("apt-get") is None:
            raise EngineError(f"no Docker daemon answers, and only Debian and Ubuntu are set up automatically: {advice}")
        apt_install(PACKAGES, OPTIONAL_PACKAGES)
    start_daemon()
    return "started"


@functools.cache
def client() -> str:
    """Path of a docker client that can build with BuildKit.

    A client from 23.0 on needs the buildx plugin; the distribution's 20.10 client has BuildKit built in. So the first client on
    PATH that has either is taken.
    """
    tried: list[str] = []
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"]
    for folder in dict.fromkeys(folders):
        candidate = Path(folder) / "docker"
        if not candidate.is_file():
            continue
        has_buildx = subprocess.run([candidate, "buildx", "version"], capture_output=True, check=False).returncode == 0
        asked = subprocess.run(
            [candidate, "version", "--format", "{{.Client.Version}}"], capture_output=True, text=True, check=False
        )
        version = asked.stdout.strip()
        major = int(version.split(".")[0]) if version[:1].isdigit() else 0
        if has_buildx or 18 < major < 23:
            return str(candidate)
        tried.append(f"{candidate} {version or '(no version)'}")
    raise EngineError(
        f"no docker client that supports BuildKit (tried: {', '.join(tried) or 'none on PATH'}); "
        "install the buildx plugin (Debian, Ubuntu: docker-buildx)"
    )


def docker(*args: str) -> str:
    """Output of a docker command; EngineError with Docker's words where it fails."""
    done = subprocess.run([client(), *args], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineError(f"docker {' '.join(args[:3])} failed: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout.strip()


def main(argv: list[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    try:
        print(f"[engine] {ensure()}, client {client()}", flush=True)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
