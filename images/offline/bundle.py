"""Packs everything that a host without a network needs into one file: `python -m images.offline.bundle PLATFORM`.

The image, the wheels of attnkit and of what runs playbooks, the playbooks, the profiles, the bill of materials, an installer,
and the sha256 of each. `python3 install.py` on the other host checks them and installs (images/offline/install.py). Packing the
same image and the same tree again gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from images import CACHE, IMAGES, ROOT
from images.builder import build, platforms
from images.builder.container_engine import EngineError, client
from images.builder.platforms import DescriptionError, Platform
from images.builder.wheels import WheelFolderError
from images.in_image import stamp
from images.offline import install, tree

OUT = ROOT / "out" / "bundles"
STAGE = CACHE / "bundle"
IMAGE = "image.tar.gz"
PYTHONS = ("3.11", "3.12", "3.13")
"""Interpreters of a controller that the bundle has wheels for."""
TAGS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
LOCKS = (ROOT / "deploy" / "requirements.txt", IMAGES / "requirements" / "bundle.txt")
LEFT_OUT = {"demo", "lab", "out", "requirements.in", "__pycache__", ".ansible", ".molecule"}
"""Of deploy/: demo and lab build machines and images, which needs a network."""


class BundleError(Exception):
    """The bundle cannot be packed; the message says why."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"[bundle] {text}", flush=True)


def wheels(folder: Path, attnkit: Path) -> None:
    """attnkit's wheel, and every wheel of the locks for each of PYTHONS.

    Raises:
        BundleError: the index has no wheel that a lock names.
    """
    folder.mkdir()
    shutil.copy2(attnkit, folder)
    for version in PYTHONS:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        command += ["-d", str(folder), "--implementation", "cp", "--python-version", version]
        command += [part for tag in TAGS for part in ("--platform", tag)]
        command += [part for path in LOCKS for part in ("-r", str(path))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BundleError(f"pip download for Python {version} failed:\n{done.stderr.strip()[-1500:]}")


def save_image(tag: str, target: Path) -> None:
    """The image as Docker saves it, compressed at the quickest level, with no time or name in the file's head."""
    command = [client(), "save", tag]
    with target.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as out:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as saving:
            assert saving.stdout is not None
            shutil.copyfileobj(saving.stdout, out, install.CHUNK)
        if saving.returncode != 0:
            raise BundleError(f"docker save {tag} ended with {saving.returncode}")


def collect(folder: Path, platform: Platform, wheel: Path) -> None:
    """Everything that goes in, below folder, with its description and its checksums."""
    tag = build.tags(platform)[0]
    shutil.copy2(Path(install.__file__), folder / "install.py")
    shutil.copy2(build.bill_of_materials(platform), folder / "sbom.cdx.json")
    shutil.copytree(ROOT / "deploy", folder / "deploy", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    wheels(folder / "wheels", wheel)
    save_image(tag, folder / IMAGE)
    described = {
        "format": 1,
        "name": folder.name,
        "platform": platform.name,
        "version": build.version(),
        "revision": build.inspect(tag, '{{index .Config.Labels "org.opencontainers.image.revision"}}'),
        "pythons": PYTHONS,
        "image": {
            "file": IMAGE,
            "tag": tag,
            "layers": json.loads(build.inspect(tag, "{{json .RootFS.Layers}}")),
            "bytes": int(build.inspect(tag, "{{.Size}}")),
        },
    }
    (folder / install.DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    write_sums(folder)


def inputs(platform: Platform, wheel: Path) -> str:
    """A hash over everything that decides the bundle's content."""
    tag = build.tags(platform)[0]
    seen = hashlib.sha256(build.inspect(tag, "{{json .RootFS.Layers}} {{json .Config.Labels}}").encode())
    parts = [wheel, Path(__file__), Path(install.__file__), *LOCKS]
    for folder in (ROOT / "deploy", ROOT / "profiles"):
        inside = (path for path in folder.rglob("*") if not LEFT_OUT & set(path.relative_to(folder).parts))
        parts += sorted(path for path in inside if path.is_file())
    for path in parts:
        seen.update(f"{path.name} {install.digest(path)}\n".encode())
    return seen.hexdigest()


def write_sums(folder: Path) -> None:
    """SHA256SUMS, in the form that `sha256sum -c` reads; links are not in it."""
    lines = [
        f"{install.digest(path)}  {path.relative_to(folder).as_posix()}\n"
        for path in install.files(folder)
        if not path.is_symlink()
    ]
    (folder / install.SUMS).write_text("".join(lines), encoding="utf-8")


def settled(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member without what differs between machines."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = stamp.MOMENT
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def pack(folder: Path, target: Path) -> None:
    """One tar of the folder, the image last."""
    paths = sorted(folder.rglob("*"), key=lambda path: (path.name == IMAGE, path.as_posix()))
    partial = target.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in (folder, *paths):
            archive.add(path, path.relative_to(folder.parent).as_posix(), recursive=False, filter=settled)
    partial.rename(target)


def bundle(platform: Platform) -> Path:
    """Build the image and pack it, each where it is not up to date; returns the file."""
    started = time.monotonic()
    wheel = build.build_wheel()
    build.build(platform, wheel=wheel, no_cache=False, plain=True)
    folder = STAGE / f"attnkit-{build.version()}-{platform.image}"
    target = OUT / f"{folder.name}.bundle.tar"
    packed, wanted = target.with_suffix(".inputs"), inputs(platform, wheel)
    if target.is_file() and packed.is_file() and packed.read_text(encoding="utf-8").strip() == wanted:
        say(f"{target.relative_to(ROOT)}: up to date")
        return target
    packed.unlink(missing_ok=True)
    shutil.rmtree(STAGE, ignore_errors=True)
    folder.mkdir(parents=True)
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        collect(folder, platform, wheel)
        pack(folder, target)
    finally:
        shutil.rmtree(STAGE, ignore_errors=True)
    value = install.digest(target)
    target.with_suffix(".tar.sha256").write_text(f"{value}  {target.name}\n", encoding="utf-8")
    packed.write_text(wanted + "\n", encoding="utf-8")
    size = target.stat().st_size / 1e6
    say(f"{target.relative_to(ROOT)}: {size:.0f} MB in {time.monotonic() - started:.0f} s, sha256 {value}")
    say(f"on the other host: tar xf {target.name} && python3 {folder.name}/install.py")
    return target


def bundle_tree(platform: Platform) -> Path:
    """Build the image and pack it as a root tree; returns the folder."""
    started = time.monotonic()
    build.build(platform, wheel=None, no_cache=False, plain=True)
    folder = OUT / f"attnkit-{build.version()}-{platform.image}.tree"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pieces = tree.pack(build.tags(platform)[0], folder)
    shutil.copy2(build.bill_of_materials(platform), folder / "sbom.cdx.json")
    write_sums(folder)
    size = sum(piece.stat().st_size for piece in pieces) / 1e6
    say(f"{folder.relative_to(ROOT)}: {len(pieces)} pieces, {size:.0f} MB, in {time.monotonic() - started:.0f} s")
    say("on the other host: ./unpack.sh TREE && ./attnkit-run TREE -- attnkit detect")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("platform", help="a platform of platforms.yaml")
    parser.add_argument("--arch", default="", help="only these of its architectures, comma-separated: cuda --arch sm_90")
    parser.add_argument(
        "--form", choices=("bundle", "tree"), default="bundle", help="tree: for hosts without a container engine"
    )
    args = parser.parse_args(argv)
    try:
        chosen = platforms.choose(args.platform, args.arch, platforms.load())
        if args.form == "tree":
            bundle_tree(chosen)
        else:
            bundle(chosen)
    except (DescriptionError, BundleError, tree.TreeError, EngineError, WheelFolderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
