"""Makes the hash-locked requirement files from their `.in` files: `make lock`, or `python -m images.builder.lock NAME …`.

Each lock lists everything that is installed, with the hashes of every file of a release, so that it is installed with
`pip install --no-deps --require-hashes` and is the same from any index or mirror. Index addresses never get into a lock.

Torch comes in two builds of one version: a plain index has the CUDA build, a CPU index or a local wheel folder has `+cpu`.
A lock carries the hashes of both; the CUDA libraries that only the first needs are in a lock of their own
(`*.cuda-torch.txt`), which `images/builder/venv.py` and the Dockerfile install only when that build was taken. The lock of the
CUDA images is of the CUDA build alone and has them in it.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from images import ROOT
from images.builder.wheels import sha256, wheel_folder


@dataclass(frozen=True)
class Lock:
    """One lock.

    Args:
        source: the .in file.
        python: the oldest interpreter it is for.
        universal: for every system and newer interpreters; otherwise for this interpreter on `system` alone.
        cuda: of torch's CUDA build alone.
        system: what wheels may ask of the system, as uv names it.
    """

    source: str
    python: str
    universal: bool
    cuda: bool = False
    system: str = "x86_64-manylinux_2_28"

    @property
    def target(self) -> Path:
        """The lock file."""
        return (ROOT / self.source).with_suffix(".txt")

    @property
    def cuda_target(self) -> Path:
        """The lock of the CUDA libraries that only the CUDA build of torch needs."""
        return self.target.with_suffix(".cuda-torch.txt")

    @property
    def override(self) -> Path:
        """The overrides, if this lock has any."""
        return (ROOT / self.source).with_suffix(".override")


LOCKS: dict[str, Lock] = {
    "cpu": Lock("images/requirements/cpu.in", python="3.11", universal=False),
    "cuda": Lock("images/requirements/cuda.in", python="3.11", universal=False, cuda=True),
    "ipex": Lock("images/requirements/ipex.in", python="3.11", universal=False),
    "tpu": Lock("images/requirements/tpu.in", python="3.11", universal=False, system="x86_64-manylinux_2_31"),
    "sbom": Lock("images/requirements/sbom.in", python="3.11", universal=False),
    "bundle": Lock("images/requirements/bundle.in", python="3.11", universal=True),
    "deploy": Lock("deploy/requirements.in", python="3.11", universal=True),
    "docs": Lock("docs/requirements.in", python="3.11", universal=True),
    "tests": Lock("tests/requirements.in", python="3.11", universal=True),
}
CUDA_ONLY = re.compile(r"^(nvidia-(?!ml-py)|cuda-|triton$)")
HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")


def blocks(text: str) -> dict[str, str]:
    """The requirement blocks of a lock, by `name==version[ ; marker]`: one line and its hash lines each."""
    found: dict[str, str] = {}
    current = ""
    for line in text.splitlines():
        if re.match(r"^[A-Za-z0-9]", line):
            current = line.rstrip(" \\")
            found[current] = ""
        if current and not line.startswith("#") and line.strip():
            found[current] += line + "\n"
    return found


def project(key: str) -> str:
    """The project name of a block's key."""
    return re.split(r"[=\[ ;]", key, maxsplit=1)[0].lower()


def direct(lock: Lock) -> set[str]:
    """Names that the .in file asks for itself."""
    lines = (ROOT / lock.source).read_text(encoding="utf-8").splitlines()
    return {re.split(r"[=<>!~\[ ;]", line, maxsplit=1)[0].lower() for line in lines if re.match(r"^[A-Za-z0-9]", line)}


def local_torch_hashes(version: str) -> set[str]:
    """Hashes of `+cpu` wheels of this torch version in the local wheel folder, if there is one."""
    folder = wheel_folder()
    if folder is None:
        return set()
    return {f"sha256:{sha256(wheel)}" for wheel in folder.glob(f"torch-{version}+cpu-*.whl")}


def compile_lock(lock: Lock) -> str:
    """Resolve a lock with uv against the configured index; its text with hashes, without comments."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock.txt"
        command = [sys.executable, "-m", "uv", "pip", "compile", str(ROOT / lock.source), "-o", str(out), "--quiet"]
        command += ["--generate-hashes", "--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links"]
        command += ["--python-version", lock.python]
        command += ["--universal"] if lock.universal else ["--python-platform", lock.system]
        if lock.override.is_file():
            command += ["--override", str(lock.override)]
        if lock.target.is_file():
            out.write_text(lock.target.read_text(encoding="utf-8") + text_of(lock.cuda_target), encoding="utf-8")
        env = {key: value for key, value in os.environ.items() if key != "UV_FIND_LINKS"}
        if index := os.environ.get("PIP_INDEX_URL"):
            env.setdefault("UV_DEFAULT_INDEX", index)
        if authority := os.environ.get("ATTNKIT_CA_BUNDLE") or os.environ.get("PIP_CERT"):
            env.setdefault("SSL_CERT_FILE", authority)
        subprocess.run(command, check=True, env=env, cwd=ROOT)
        return out.read_text(encoding="utf-8")


def text_of(path: Path) -> str:
    """The text of a file, empty where there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def split(lock: Lock, text: str) -> tuple[str, str]:
    """The lock and the CUDA libraries' lock from a resolved text, with the hashes of torch's `+cpu` builds added."""
    asked = direct(lock)
    head = f"# Made by `make lock` from {lock.source}. Do not edit. Install: pip install --no-deps --require-hashes -r FILE\n"
    main, cuda = head, ""
    for key, block in blocks(text).items():
        name = project(key)
        if CUDA_ONLY.match(name) and name not in asked and not lock.cuda:
            cuda += block
            continue
        if name == "torch" and not lock.cuda:
            version = key.split("==")[1].split()[0]
            known = set(HASH.findall(block))
            before = next((b for k, b in blocks(text_of(lock.target)).items() if k.startswith(f"torch=={version}")), "")
            extra = (set(HASH.findall(before)) | local_torch_hashes(version)) - known
            lines = sorted(known | extra)
            block = key + " \\\n" + " \\\n".join(f"    --hash={h}" for h in lines) + "\n"
        main += block
    return main, head + cuda if cuda else ""


def run(name: str, *, check: bool) -> bool:
    """Make (or with `check` compare) one lock. Returns whether it was up to date."""
    lock = LOCKS[name]
    main, cuda = split(lock, compile_lock(lock))
    fresh = text_of(lock.target) == main and text_of(lock.cuda_target) == cuda
    if not check and not fresh:
        lock.target.write_text(main, encoding="utf-8")
        if cuda:
            lock.cuda_target.write_text(cuda, encoding="utf-8")
        else:
            lock.cuda_target.unlink(missing_ok=True)
    what = f"{len(blocks(main))} packages" + (f" + {len(blocks(cuda))} of torch's CUDA build" if cuda else "")
    print(f"[lock] {name}: {what}, {'unchanged' if fresh else ('STALE' if check else 'written')}", flush=True)
    return fresh


def main(argv: list[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(LOCKS)} (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a lock is stale")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in LOCKS:
            near = difflib.get_close_matches(name, LOCKS, n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            print(f"error: unknown lock {name!r}.{hint} Known: {', '.join(LOCKS)}", file=sys.stderr)
            return 2
    results = [run(name, check=args.check) for name in args.names or LOCKS]
    return 0 if all(results) or not args.check else 1


if __name__ == "__main__":
    sys.exit(main())
