"""Installs this bundle, without any network: `python3 install.py`, from the folder that its tar was unpacked into.

First every file is checked against SHA256SUMS; where one differs, nothing is installed. Then the image is loaded into this
machine's container engine, and an environment is made with what a controller needs: Ansible, attnkit's command line, the
playbooks and the profiles. Either half can be left out. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"
DESCRIPTION = "bundle.json"
CHUNK = 1 << 20


class DamagedError(Exception):
    """The bundle is not what was packed; the message says which files, and that nothing was installed."""


class InstallError(Exception):
    """It cannot be installed on this machine; the message says why and what to do."""


def digest(path: Path) -> str:
    """The sha256 of a file."""
    seen = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            seen.update(chunk)
    return seen.hexdigest()


def files(folder: Path) -> list[Path]:
    """Every file and link of the bundle, except for the sums themselves."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(path for path in found if path != folder / SUMS)


def verify(folder: Path) -> int:
    """Check every file against the checksums; returns how many there are.

    Raises:
        DamagedError: a file is missing, differs, or is not listed.
    """
    if not (folder / SUMS).is_file():
        raise DamagedError(f"{folder / SUMS} is missing, so nothing can be checked and nothing was installed")
    wanted: dict[str, str] = {}
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        value, _, name = line.partition("  ")
        wanted[name] = value
    there = {path.relative_to(folder).as_posix(): path for path in files(folder)}
    wrong = [f"{name}: missing" for name in wanted if name not in there]
    for name, path in there.items():
        if path.is_symlink():
            target = path.resolve()
            if not target.is_relative_to(folder) or not target.exists():
                wrong.append(f"{name}: a link to {path.readlink()}, which is not in the bundle")
        elif name not in wanted:
            wrong.append(f"{name}: not listed in {SUMS}")
        elif (found := digest(path)) != wanted[name]:
            wrong.append(f"{name}: sha256 is {found}, not {wanted[name]}")
    if wrong:
        listed = "\n".join(f"  {text}" for text in wrong)
        raise DamagedError(f"the bundle is damaged, so nothing was installed; copy it again:\n{listed}")
    return len(wanted)


def engine(name: str, *args: str) -> str:
    """Output of a command of the container engine; InstallError with its words where it fails."""
    try:
        done = subprocess.run([name, *args], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InstallError(f"there is no {name} here: install a container engine, or pass --no-image") from None
    if done.returncode != 0:
        raise InstallError(f"{name} {' '.join(args[:3])}: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout.strip()


def load_image(name: str, folder: Path, image: dict[str, Any]) -> None:
    """Load the image and compare its layers with the description's."""
    engine(name, "info")
    engine(name, "load", "-i", str(folder / image["file"]))
    layers = json.loads(engine(name, "image", "inspect", "--format", "{{json .RootFS.Layers}}", image["tag"]))
    if layers != image["layers"]:
        raise InstallError(f"{image['tag']} was loaded, but its layers are not the packed ones")
    print(f"[bundle] image: {image['tag']}, {len(layers)} layers", flush=True)


def push_image(name: str, tag: str, repository: str, version: str) -> str:
    """Push the image to a registry that the nodes can reach; returns its name by digest."""
    target = f"{repository}:{version}"
    engine(name, "tag", tag, target)
    engine(name, "push", target)
    digests: list[str] = json.loads(engine(name, "image", "inspect", "--format", "{{json .RepoDigests}}", target))
    return next(text for text in digests if text.startswith(f"{repository}@"))


def controller(folder: Path, target: Path, pythons: Sequence[str]) -> None:
    """The environment, the playbooks and the profiles below target."""
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if running not in pythons:
        raise InstallError(
            f"this is Python {running}, and the bundle has packages for {', '.join(pythons)}: run install.py with one of them"
        )
    if target.exists() and any(target.iterdir()) and not (target / DESCRIPTION).is_file():
        raise InstallError(f"{target} is not empty and no controller of ours: choose another folder with --to")
    target.mkdir(parents=True, exist_ok=True)
    environment = target / "venv"
    venv.create(environment, clear=True, with_pip=False, symlinks=True)
    wheels = folder / "wheels"
    pip = next(wheels.glob("pip-*.whl"))
    install = [str(environment / "bin" / "python"), "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--find-links"]
    # Ansible has sixteen thousand modules, of which a play imports few: Python compiles those when they are first used.
    install += [str(wheels), "--no-cache-dir", "--no-compile", "--disable-pip-version-check"]
    # pip's own settings, such as an index, are ignored.
    isolated = {"PYTHONPATH": str(pip), "PIP_CONFIG_FILE": os.devnull}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    locked = ["--require-hashes", "-r", str(folder / "deploy" / "requirements.txt")]
    for what in (locked, [str(path) for path in wheels.glob("attnkit-*.whl")]):
        done = subprocess.run([*install, *what], env={**clean, **isolated}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise InstallError(f"pip failed:\n{(done.stderr or done.stdout).strip()[-1500:]}")
    for part in ("deploy", "profiles"):
        shutil.rmtree(target / part, ignore_errors=True)
        shutil.copytree(folder / part, target / part, symlinks=True)
    shutil.copy2(folder / DESCRIPTION, target)
    print(f"[bundle] controller: {target} (venv, deploy, profiles)", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="check every file against its checksum, install nothing")
    parser.add_argument("--no-image", action="store_true", help="do not load the image")
    parser.add_argument("--no-controller", action="store_true", help="do not install Ansible, attnkit, playbooks and profiles")
    parser.add_argument("--to", type=Path, default=Path("attnkit"), help="folder of the controller (default: ./attnkit)")
    parser.add_argument("--engine", default="docker", help="the container engine's command (default: docker)")
    parser.add_argument("--push", metavar="REPOSITORY", help="also push the image there: registry.example.org:5000/attnkit/cpu")
    args = parser.parse_args(argv)
    try:
        count = verify(HERE)
        described = json.loads((HERE / DESCRIPTION).read_text(encoding="utf-8"))
        print(f"[bundle] {described['name']}: {count} files verified OK", flush=True)
        if args.check:
            return 0
        if not args.no_image:
            load_image(args.engine, HERE, described["image"])
        if args.push:
            named = push_image(args.engine, described["image"]["tag"], args.push, described["version"])
            print(f"[bundle] for the inventory: attnkit_images: {{{described['platform']}: {named}}}", flush=True)
        if not args.no_controller:
            controller(HERE, args.to.resolve(), described["pythons"])
    except DamagedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
