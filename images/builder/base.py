"""The base image: pulled from its registry, or bootstrapped from the distribution's packages where no registry answers.

The air-gapped path needs root, `debootstrap` (installed with apt if missing) and a Debian mirror. The bootstrapped tree is
slimmed, carries no mirror address, and its tar is kept in .cache/, so that a second run imports it in a second.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from images import CACHE, ROOT
from images.builder.container_engine import EngineError, apt_install, client, docker

SUITE = "bookworm"
PROBE_SECONDS = 8
PULL_SECONDS = 600
INCLUDE = "python3-minimal,python3,ca-certificates"
BOOTSTRAP = f"attnkit-base:{SUITE}"
EXCLUDES = (
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log/*.log",
    "var/log/apt",
    "var/cache/debconf/*-old",
    "var/lib/dpkg/*-old",
    "etc/apt/sources.list",
    "etc/resolv.conf",
    "etc/hostname",
    "etc/machine-id",
    "dev/*",
)
"""Left out of the tar, beside the documentation that `slim` removes."""


def present(name: str) -> bool:
    """Whether Docker has this image."""
    return subprocess.run([client(), "image", "inspect", name], capture_output=True, check=False).returncode == 0


def registry_answers(reference: str) -> bool:
    """Whether the registry of a reference answers within seconds: a manifest look-up, nothing is downloaded."""
    try:
        done = subprocess.run(
            [client(), "manifest", "inspect", reference],
            capture_output=True,
            check=False,
            timeout=PROBE_SECONDS,
            env={**os.environ, "DOCKER_CLI_EXPERIMENTAL": "enabled"},
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def pull(reference: str) -> bool:
    """Pull an image; False (with the reason shown) where that fails."""
    try:
        done = subprocess.run(
            [client(), "pull", "-q", reference], capture_output=True, text=True, check=False, timeout=PULL_SECONDS
        )
    except subprocess.TimeoutExpired:
        print(f"[base] pulling {reference}: timed out after {PULL_SECONDS} s", flush=True)
        return False
    if done.returncode != 0:
        reason = (done.stderr.strip() or "failed").splitlines()[-1]
        print(f"[base] pulling {reference}: {reason}", flush=True)
    return done.returncode == 0


def apt_sources() -> list[tuple[str, str, str]]:
    """The apt entries (address, suite, components) of this machine, of both file formats, without options."""
    entries: list[tuple[str, str, str]] = []
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.list"))]:
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                if match := re.match(r"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)$", line.strip()):
                    entries.append((match[1], match[2], match[3]))
    for path in sorted(Path("/etc/apt/sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
            fields = dict(re.findall(r"^(URIs|Suites|Components):\s*(.*)$", stanza, re.MULTILINE))
            for address in fields.get("URIs", "").split():
                entries.extend((address, suite, fields.get("Components", "main")) for suite in fields.get("Suites", "").split())
    return entries


def mirror_lines() -> list[str]:
    """apt lines for Debian's suite and its security updates: from ATTNKIT_APT_MIRROR, else from this machine's own sources.

    Empty where this machine is not Debian and no mirror is given.
    """
    chosen = os.environ.get("ATTNKIT_APT_MIRROR")
    if chosen:
        lines = [f"deb {chosen} {SUITE} main"]
        if security := os.environ.get("ATTNKIT_APT_SECURITY_MIRROR"):
            lines.append(f"deb {security} {SUITE}-security main")
        return lines
    found: dict[str, str] = {}
    for address, suite, _ in apt_sources():
        kind = suite.partition("-")[2].split("/")[0]
        if address.rstrip("/").endswith("/debian") and kind == "":
            found.setdefault("", f"deb {address} {SUITE} main")
        elif address.rstrip("/").endswith("/debian") and kind == "updates":
            found.setdefault("updates", f"deb {address} {SUITE}-updates main")
        elif address.rstrip("/").endswith("debian-security"):
            found.setdefault("security", f"deb {address} {SUITE}-security main")
    return list(found.values()) if "" in found else []


def bootstrap(tar: Path) -> None:
    """Write the tar of a minimal, slimmed system with Python. EngineError where that cannot be done here."""
    if os.geteuid() != 0:
        raise EngineError(
            "no registry answers, and bootstrapping the base image needs root (or an image named by ATTNKIT_BASE_IMAGE)"
        )
    lines = mirror_lines()
    if not lines:
        raise EngineError(
            f"no registry answers, and no Debian mirror is known here: set ATTNKIT_APT_MIRROR to one that has {SUITE}"
        )
    if shutil.which("debootstrap") is None:
        apt_install(("debootstrap",))
    mirror = lines[0].split()[1]
    CACHE.mkdir(exist_ok=True)
    log = CACHE / "debootstrap.log"
    print(f"[base] bootstrapping {SUITE} from packages (log: {log.relative_to(ROOT)})", flush=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="base-") as folder, log.open("wb") as out:
        tree = Path(folder) / "tree"
        command = ["debootstrap", "--variant=minbase", f"--include={INCLUDE}"]
        keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
        if keyring.is_file():
            command.append(f"--keyring={keyring}")
        # A tree that was interrupted is thrown away, so dpkg need not wait for the disk.
        variables = {**os.environ, "DPKG_FORCE": "unsafe-io"}
        done = subprocess.run([*command, SUITE, str(tree), mirror], env=variables, stdout=out, stderr=out, check=False)
        if done.returncode != 0:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
            raise EngineError(f"debootstrap failed:\n{tail}")
        slim(tree)
        partial = tar.with_suffix(".partial")
        excludes = [f"--exclude=./{pattern}" for pattern in EXCLUDES]
        options = ["--numeric-owner", "--sort=name", "--mtime=@0", "--one-file-system"]
        subprocess.run(["tar", *options, *excludes, "-C", str(tree), "-cf", str(partial), "."], check=True)
        partial.rename(tar)


def slim(tree: Path) -> None:
    """Remove documentation except copyright files, and tell dpkg to leave it out of later installs."""
    for path in (tree / "usr/share/doc").rglob("*"):
        if not path.is_dir() and path.name != "copyright":
            path.unlink()
    config = tree / "etc/dpkg/dpkg.cfg.d/90-slim"
    config.write_text(
        "path-exclude=/usr/share/doc/*\npath-include=/usr/share/doc/*/copyright\n"
        "path-exclude=/usr/share/man/*\npath-exclude=/usr/share/info/*\npath-exclude=/usr/share/locale/*\n"
        "path-exclude=/usr/share/lintian/*\npath-exclude=/usr/share/bug/*\n",
        encoding="utf-8",
    )


def base_image(reference: str) -> str:
    """The name of an image to build on: the wanted one where it is present or can be pulled, else the bootstrapped one."""
    explicit = os.environ.get("ATTNKIT_BASE_IMAGE")
    wanted = explicit or reference
    if present(wanted):
        return wanted
    if not explicit and present(BOOTSTRAP):
        return BOOTSTRAP
    tar = CACHE / f"base-{SUITE}.tar"
    if (explicit or not tar.is_file()) and registry_answers(wanted) and pull(wanted):
        return wanted
    if explicit:
        raise EngineError(f"ATTNKIT_BASE_IMAGE={explicit}: not present locally, and it cannot be pulled")
    if not tar.is_file():
        print(f"[base] {wanted} cannot be pulled", flush=True)
        bootstrap(tar)
    docker("import", "-c", 'CMD ["/bin/bash"]', str(tar), BOOTSTRAP)
    return BOOTSTRAP
