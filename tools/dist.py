"""Build what a release publishes as files: wheel, source distribution, Ansible collection, and their checksums.

    python -m tools.dist [--out dist]

Every archive contains the LICENSE. Images and their bills of materials are built by `make images`
(docs/development/release.md).
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def tracked(pattern: str) -> list[Path]:
    """Tracked files below the root that match a git pattern, without symbolic links."""
    done = subprocess.run(["git", "ls-files", "-z", pattern], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = (ROOT / name for name in done.stdout.split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def collection_root() -> Path:
    """The folder of the collection: the one with the only tracked galaxy.yml."""
    (galaxy,) = tracked("*galaxy.yml")
    return galaxy.parent


def build_packages(out: Path) -> None:
    """The wheel and the source distribution."""
    for target in ("sdist", "wheel"):
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)], cwd=ROOT, check=True)


def build_collection(out: Path) -> None:
    """The collection's archive, from its tracked files."""
    source = collection_root()
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder) / "collection"
        for path in tracked(str(source.relative_to(ROOT))):
            target = stage / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        galaxy = Path(sys.executable).with_name("ansible-galaxy")
        command = [str(galaxy), "collection", "build", str(stage), "--output-path", str(out), "--force"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def checksums(out: Path) -> str:
    """Lines for `sha256sum --check`."""
    files = sorted(path for path in out.iterdir() if path.name != "SHA256SUMS")
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="an empty or missing folder (default: dist)")
    out = parser.parse_args(argv).out.resolve()
    if out.is_dir() and any(out.iterdir()):
        print(f"error: {out} is not empty: remove it, or choose another folder with --out", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    build_packages(out)
    build_collection(out)
    (out / "SHA256SUMS").write_text(checksums(out), encoding="utf-8")
    print((out / "SHA256SUMS").read_text(encoding="utf-8"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
