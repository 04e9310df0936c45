"""Builds the image of a platform: `python -m images.builder.build PLATFORM`, or `--all`, or `--list`.

A build whose inputs did not change ends at once: the hash of everything that goes in is a label of the image. What belongs to
this machine (package index, mirror, CA bundle, wheel folder) reaches the build as secrets and bind mounts
and is no input.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from images import CACHE, IMAGES, ROOT
from images.builder import base, platforms, preflight, wheels
from images.builder.container_engine import EngineError, client, docker, ensure
from images.builder.platforms import DescriptionError, Platform

STAGE = CACHE / "images"
WHEEL_SOURCES = ("attnkit", "profiles", "pyproject.toml", "README.md", "LICENSE")
SOURCES = (*WHEEL_SOURCES, "images")
"""What images are made of: their label names the last commit that changed any of it."""
INPUTS = "attnkit.inputs"
"""The label with the hash of everything that decides an image's content."""
INPUTS_OF = f'{{{{index .Config.Labels "{INPUTS}"}}}}'
PROXIES = ("http_proxy", "https_proxy", "no_proxy")
SECRET_MARK = "attnkit-build-secret"
"""A line of every secret that a build writes: no layer may have it."""
BILL_OF_MATERIALS = "/usr/share/attnkit/sbom.cdx.json"
"""Where an image has its own."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"[image] {text}", flush=True)


def version() -> str:
    """attnkit's version."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "attnkit" / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def build_wheel(root: Path = ROOT, folder: Path = STAGE / "wheel") -> Path:
    """attnkit's wheel, built reproducibly from the tree below root."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    built = sorted(folder.glob("attnkit-*.whl"))
    if done.returncode != 0 or len(built) != 1:
        raise EngineError(f"building attnkit's wheel failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return built[0]


def pip_setting(name: str) -> str:
    """One of pip's settings (environment first, then its configuration files), web addresses only."""
    value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if value is None:
        asked = subprocess.run(
            [sys.executable, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True, check=False
        )
        value = asked.stdout if asked.returncode == 0 else ""
    return " ".join(word for word in value.split() if word.startswith(("http://", "https://")))


def secrets(folder: Path) -> dict[str, Path]:
    """The files that a build sees only while it runs, by the id the Dockerfile uses."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    found: dict[str, Path] = {}
    authority = os.environ.get("ATTNKIT_CA_BUNDLE") or os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if authority:
        if not Path(authority).is_file():
            raise DescriptionError(f"the CA bundle {authority} does not exist (ATTNKIT_CA_BUNDLE, PIP_CERT or SSL_CERT_FILE)")
        found["ca"] = Path(authority)
    lines = [f"# {SECRET_MARK}", "[global]", "timeout = 60"]
    lines += [f"{name} = {value}" for name in ("index-url", "extra-index-url", "find-links") if (value := pip_setting(name))]
    if "ca" in found:
        lines.append("cert = /run/build/ca.pem")
    found["pip"] = folder / "pip.conf"
    found["pip"].write_text("\n".join(lines) + "\n", encoding="utf-8")
    if sources := base.mirror_lines():
        found["apt"] = folder / "apt.list"
        found["apt"].write_text("\n".join([f"# {SECRET_MARK}", *sources]) + "\n", encoding="utf-8")
    return found


def stage(platform: Platform, wheel: Path) -> Path:
    """The build context: only what the image is made of (and the local wheels, which are bind-mounted, not copied)."""
    context = STAGE / platform.image
    for name in ("dist", "requirements", "in_image"):
        shutil.rmtree(context / name, ignore_errors=True)
        (context / name).mkdir(parents=True)
    shutil.copy2(IMAGES / "Dockerfile", context)
    for script in (IMAGES / "in_image").glob("[!_]*"):
        shutil.copy2(script, context / "in_image")
    shutil.copy2(wheel, context / "dist")
    assert platform.lock_path is not None
    for path in (platform.lock_path, platform.lock_path.with_suffix(".cuda-torch.txt"), IMAGES / "requirements" / "sbom.txt"):
        if path.is_file():
            shutil.copy2(path, context / "requirements")
    mounted = context / "wheels"
    mounted.mkdir(exist_ok=True)
    local = wheels.wheel_folder()
    wanted = {path.name: path for path in local.glob("*.whl")} if local else {}
    for path in mounted.iterdir():
        if path.name not in wanted:
            path.unlink()
    for name, path in wanted.items():
        copy = mounted / name
        if not copy.is_file() or copy.stat().st_size != path.stat().st_size:
            shutil.copy2(path, copy)
    wheels.write_page(mounted, mounted / wheels.PAGE, relative=True)
    return context


def git(*args: str) -> str:
    """Output of a git command in the repository, empty where that fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def labels(platform: Platform) -> dict[str, str]:
    """OCI labels. The revision is the last commit that touched what goes into images, so that others do not change them."""
    revision = git("log", "-1", "--format=%H", "--", *SOURCES)
    if revision and git("status", "--porcelain", "--", *SOURCES):
        revision += "-dirty"
    found = {
        "org.opencontainers.image.title": f"attnkit for {platform.title}",
        "org.opencontainers.image.version": version(),
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.revision": revision or "unknown",
        "attnkit.platform": platform.name,
        "attnkit.engine": f"{platform.engine.package}=={platform.engine.version}",
        "attnkit.python": platform.python,
        "attnkit.targets": " ".join(platform.targets),
    }
    if platform.torch:
        found["attnkit.torch"] = platform.torch
    if platform.cuda:
        found |= {"attnkit.cuda": str(platform.cuda.major), "attnkit.driver": platform.cuda.driver}
    return found


def fingerprint(context: Path, arguments: dict[str, str], names: dict[str, str], base_id: str) -> str:
    """A hash over everything that decides the image's content."""
    seen = hashlib.sha256(json.dumps([arguments, names, base_id], sort_keys=True).encode())
    for path in sorted(p for p in context.rglob("*") if p.is_file() and "wheels" not in p.relative_to(context).parts):
        seen.update(path.relative_to(context).as_posix().encode())
        seen.update(hashlib.sha256(path.read_bytes()).digest())
    return seen.hexdigest()


def inspect(image: str, template: str) -> str:
    """One value of an image, empty where there is no such image."""
    done = subprocess.run(
        [client(), "image", "inspect", "--format", template, image], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def tags(platform: Platform) -> tuple[str, str]:
    """The versioned tag and the moving one."""
    return f"attnkit:{platform.image}-{version()}", f"attnkit:{platform.image}"


def bill_of_materials(platform: Platform) -> Path:
    """Where a build puts a copy of the image's bill of materials."""
    return ROOT / "out" / "images" / f"{platform.image}.sbom.cdx.json"


def copy_bill_of_materials(image: str, target: Path) -> None:
    """Copy the bill of materials out of an image; EngineError where it has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    container = docker("create", image, "-")
    try:
        docker("cp", f"{container}:{BILL_OF_MATERIALS}", str(target))
    finally:
        docker("rm", container)


def build_arguments(platform: Platform, base_name: str) -> dict[str, str]:
    """What the Dockerfile's ARGs get for this platform."""
    return {
        "BASE": base_name,
        "PACKAGES": " ".join(platform.packages),
        "LOCK": platform.lock_path.stem if platform.lock_path else "",
        "PLATFORM": platform.name,
        "FOUNDATION": "flat" if platform.bootstrap else "system",
        "KERNELS": platform.kernels,
        "TARGETS": ",".join(platform.targets),
        "CODE": ",".join(platform.targets) if platform.cuda else "",
    }


def docker_build(
    context: Path,
    arguments: Mapping[str, str],
    *options: str,
    labels: Mapping[str, str] | None = None,
    given: Mapping[str, Path] | None = None,
    show: bool = False,
) -> None:
    """Build a staged context.

    Args:
        context: as `stage` makes it.
        arguments: the Dockerfile's ARGs.
        options: more options of `docker build`, such as `-t NAME`.
        labels: of the image.
        given: the secrets, by id; None: those of this machine.
        show: print what the build prints, instead of showing it only where the build fails.

    Raises:
        EngineError: the build failed.
    """
    command = [client(), "build", *options]
    for key, value in (labels or {}).items():
        command += ["--label", f"{key}={value}"]
    for key, value in arguments.items():
        command += ["--build-arg", f"{key}={value}"]
    for key in PROXIES:
        if proxy := os.environ.get(key) or os.environ.get(key.upper()):
            command += ["--build-arg", f"{key}={proxy}"]
    with tempfile.TemporaryDirectory() as folder:
        for key, path in (secrets(Path(folder) / "secrets") if given is None else given).items():
            command += ["--secret", f"id={key},src={path}"]
        variables = {**os.environ, "DOCKER_BUILDKIT": "1"}
        done = subprocess.run([*command, str(context)], env=variables, capture_output=not show, text=True, check=False)
    if done.returncode != 0:
        shown = "its output is above" if show else f"it ended with:\n{done.stderr[-3000:]}"
        raise EngineError(f"docker build of {context} failed (exit code {done.returncode}); {shown}")


def prepare(platform: Platform, wheel: Path) -> tuple[Path, dict[str, str], dict[str, str]]:
    """The staged context of a platform's image, its build arguments, and its labels with the hash of all inputs."""
    base_name = base.base_image(platform.base)
    context, arguments, names = stage(platform, wheel), build_arguments(platform, base_name), labels(platform)
    inputs = fingerprint(context, arguments, names, inspect(base_name, "{{.Id}}"))
    return context, arguments, names | {INPUTS: inputs}


def build(platform: Platform, *, wheel: Path | None, no_cache: bool, plain: bool) -> str:
    """Build one image, or find that it is up to date. Returns its id."""
    if platform.not_built:
        raise DescriptionError(f"PLATFORM {platform.name} is described but not built yet: {platform.not_built}")
    preflight.require([platform])
    started = time.monotonic()
    ensure()
    context, arguments, names = prepare(platform, wheel or build_wheel())
    tag, moving = tags(platform)
    if not no_cache and inspect(tag, INPUTS_OF) == names[INPUTS]:
        docker("tag", tag, moving)
        state = "up to date"
    else:
        say(f"{platform.image}: building {tag} on {arguments['BASE']}")
        options = ["--progress", "plain" if plain else "auto", "-t", tag, "-t", moving, *(["--no-cache"] if no_cache else [])]
        docker_build(context, arguments, *options, labels=names, show=True)
        state = "built"
    copy_bill_of_materials(tag, bill_of_materials(platform))
    identity, size = inspect(tag, "{{.Id}}"), int(inspect(tag, "{{.Size}}"))
    say(f"{platform.image}: {state} in {time.monotonic() - started:.1f} s: {tag} {identity[7:19]} {size / 1e6:.0f} MB")
    return identity


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("platform", nargs="?", default="", help="a platform of platforms.yaml")
    parser.add_argument("--arch", default="", help="only these of its architectures, comma-separated: cuda --arch sm_90")
    parser.add_argument("--all", action="store_true", help="build every platform that can be built; list the others")
    parser.add_argument("--list", action="store_true", help="print every platform and whether it is built")
    parser.add_argument("--wheel", type=Path, help="use this wheel of attnkit instead of building one from the working tree")
    parser.add_argument("--no-cache", action="store_true", help="repeat every step")
    parser.add_argument("--plain", action="store_true", default=not sys.stdout.isatty(), help="print progress as lines")
    args = parser.parse_args(argv)
    try:
        known = platforms.load()
        if args.list:
            for platform in known.values():
                state = f"not built yet: {platform.not_built}" if platform.not_built else "built"
                print(f"{platform.name:13} {platform.title:40} {state}")
            return 0
        chosen = list(known.values()) if args.all else [platforms.choose(args.platform, args.arch, known)]
        preflight.require([platform for platform in chosen if not platform.not_built])
        for platform in chosen:
            if args.all and platform.not_built:
                say(f"{platform.name}: not built yet: {platform.not_built}")
                continue
            build(platform, wheel=args.wheel, no_cache=args.no_cache, plain=args.plain)
    except (DescriptionError, wheels.WheelFolderError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
