"""Creates a virtual environment from a lock and keeps it up to date: `python3 -m images.builder.venv DIR LOCK [WHEEL …]`.

Standard library only; run by make with the system's Python. Nothing happens when the environment was already made from the
same lock and the same interpreter. Wheels given after the lock are installed on top without their dependencies, every time
that their content changed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from images.builder import wheels

OLDEST = (3, 11)
"""The locks are resolved from this Python version on (the package itself supports 3.10)."""


def digest(*paths: Path) -> str:
    """One hash over the interpreter's version and the content of the files."""
    seen = hashlib.sha256(str(sys.version_info[:2]).encode())
    for path in paths:
        seen.update(path.read_bytes())
    return seen.hexdigest()


def fail(message: str) -> None:
    """Print a message and exit with code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def create(folder: Path) -> None:
    """An empty environment; installs the distribution's python3-venv where ensurepip is missing and we may."""
    if folder.is_symlink() or (folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file()):
        fail(f"{folder} is a link or not a virtual environment, so it is not replaced: move it away first")
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            fail("this Python has no ensurepip: install the distribution's python3-venv package (apt-get install python3-venv)")
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        print(f"[venv] apt-get install {package}", flush=True)
        for action in (["update"], ["install", "-y", "--no-install-recommends", package]):
            done = subprocess.run(["apt-get", "-qq", *action], env=env, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            fail(f"apt-get install {package}: {done.stderr.strip()}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)


def pip(folder: Path, *args: str) -> None:
    """Run the environment's pip quietly; the process's exit code becomes ours if it fails.

    Bytecode is not compiled here, which takes half of the time: most of these modules are never imported.
    """
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-qq"]
    done = subprocess.run([*install, "--no-compile", *args], check=False)
    if done.returncode != 0:
        fail(f"pip could not install {args[-1]} (exit code {done.returncode})")


def torch_needs_cuda(folder: Path) -> bool:
    """Whether the CUDA build of torch was installed (its metadata asks for NVIDIA's libraries)."""
    for metadata in folder.glob("lib/python*/site-packages/torch-*.dist-info/METADATA"):
        return re.search(r"^Requires-Dist: nvidia-", metadata.read_text(encoding="utf-8"), re.MULTILINE) is not None
    return False


def ensure(folder: Path, lock: Path, on_top: list[Path]) -> None:
    """Bring the environment up to date with the lock and the wheels."""
    cuda = lock.with_suffix(".cuda-torch.txt")
    locks = [lock, *([cuda] if cuda.is_file() else [])]
    stamp = folder / "lock.sha256"
    wanted = digest(*locks)
    if not stamp.is_file() or stamp.read_text(encoding="utf-8").strip() != wanted:
        print(f"[venv] {folder}: installing {lock}", flush=True)
        create(folder)
        page = folder / wheels.PAGE
        wheels.write_page(wheels.wheel_folder(), page, relative=False)
        pip(folder, "--no-deps", "--require-hashes", "--find-links", str(page), "-r", str(lock))
        if cuda.is_file() and torch_needs_cuda(folder):
            pip(folder, "--no-deps", "--require-hashes", "-r", str(cuda))
        stamp.write_text(wanted + "\n", encoding="utf-8")
    for wheel in on_top:
        mark = folder / f"{wheel.name.split('-')[0]}.sha256"
        content = digest(wheel)
        if not mark.is_file() or mark.read_text(encoding="utf-8").strip() != content:
            pip(folder, "--no-deps", "--no-index", "--force-reinstall", str(wheel))
            mark.write_text(content + "\n", encoding="utf-8")
    print(f"[venv] {folder}: up to date with {lock}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the environment is or goes")
    parser.add_argument("lock", type=Path, help="a requirements file with hashes")
    parser.add_argument("wheels", type=Path, nargs="*", help="wheels to install on top")
    args = parser.parse_args(argv)
    if sys.version_info < OLDEST:
        found = sys.version.split()[0]
        fail(f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed here, this is {found}; choose one: make PYTHON=python3.12 …")
    for path in (args.lock, *args.wheels):
        if not path.is_file():
            fail(f"no such file: {path}")
    try:
        ensure(args.folder, args.lock, args.wheels)
    except wheels.WheelFolderError as error:
        fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
