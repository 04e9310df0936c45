"""Reads and checks platforms.yaml, the one build description of every image."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from images import IMAGES

FILE = IMAGES / "platforms.yaml"


class DescriptionError(Exception):
    """The description or a platform's name is wrong; the message says where and what is allowed."""


@dataclass(frozen=True)
class Engine:
    """The serving engine's distribution."""

    package: str
    version: str


@dataclass(frozen=True)
class Cuda:
    """CUDA major version and the oldest driver that runs it."""

    major: int
    driver: str


@dataclass(frozen=True)
class Platform:
    """One entry of platforms.yaml; the fields are explained on top of that file."""

    name: str
    title: str
    base: str
    bootstrap: bool
    python: str
    packages: tuple[str, ...]
    lock: str | None
    engine: Engine
    torch: str | None
    cuda: Cuda | None
    targets: tuple[str, ...]
    not_built: str | None = None
    family: str = ""
    """Where only some of its architectures were asked for: the name that was given, such as cuda. Not in the file."""

    @property
    def image(self) -> str:
        """What its image is called: the platform's name, or cuda-sm_90 where it is for some of its architectures."""
        return "-".join((self.family, *self.targets)) if self.family else self.name

    @property
    def kernels(self) -> str:
        """What is precompiled for its targets: cpu, triton, pallas or none, as the Dockerfile's KERNELS."""
        if not self.targets:
            return "none"
        if self.targets == ("cpu",):
            return "cpu"
        return "pallas" if all(target.startswith("tpu-") for target in self.targets) else "triton"

    @property
    def lock_path(self) -> Path | None:
        """The lock file, None where there is none yet."""
        return IMAGES / self.lock if self.lock else None


def _line_of(text: str, platform: str, field: str = "") -> int:
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(r"^\S+:", line):
            inside = line.startswith(f"{platform}:")
            if inside and not field:
                return number
        elif inside and line.startswith(f"  {field}:"):
            return number
    return _line_of(text, platform) if field else 1


_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "title": (str, "a text"),
    "base": (str, "an image reference"),
    "bootstrap": (bool, "true or false"),
    "python": (str, 'a quoted version such as "3.11"'),
    "packages": (list, "a list of package names"),
    "lock": ((str, type(None)), "a path relative to images/, or null"),
    "engine": (dict, "{package: NAME, version: VERSION}"),
    "torch": ((str, type(None)), "a version, or null"),
    "cuda": ((dict, type(None)), "{major: NUMBER, driver: VERSION}, or null"),
    "targets": (list, "a list of architectures"),
    "not_built": (str, "the reason why it is not built"),
}


def _platform(name: str, entry: Any, text: str, where: str) -> Platform:
    def wrong(message: str, field: str = "") -> DescriptionError:
        return DescriptionError(f"{where}:{_line_of(text, name, field)}: platform {name}: {message}")

    if not isinstance(entry, dict):
        raise wrong("an entry is a mapping of fields")
    allowed = [f.name for f in fields(Platform) if f.name not in ("name", "family")]
    for field in entry:
        if field not in allowed:
            near = difflib.get_close_matches(str(field), allowed, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise wrong(f"unknown field {field!r}.{hint} Allowed: {', '.join(allowed)}", str(field))
    for field in allowed:
        if field not in entry and field != "not_built":
            raise wrong(f"field {field!r} is missing")
    for field, value in entry.items():
        kind, words = _TYPES[field]
        if not isinstance(value, kind):
            raise wrong(f"{field} must be {words}, not {value!r}", field)
    try:
        engine = Engine(**entry["engine"])
        cuda = Cuda(**entry["cuda"]) if entry["cuda"] else None
    except TypeError as error:
        field = "engine" if "Engine" in str(error) else "cuda"
        raise wrong(f"{field} must be {_TYPES[field][1]}", field) from None
    lists = {"packages": tuple(entry["packages"]), "targets": tuple(entry["targets"])}
    platform = Platform(name=name, **{**entry, **lists, "engine": engine, "cuda": cuda})
    if platform.lock_path is None and platform.not_built is None:
        raise wrong("without a lock it cannot be built, so not_built must say why", "lock")
    if platform.lock_path is not None and not platform.lock_path.is_file():
        raise wrong(f"no such file: images/{platform.lock}", "lock")
    return platform


def load(path: Path = FILE) -> dict[str, Platform]:
    """Every platform by name. DescriptionError names file, line, field and what is allowed."""
    text = path.read_text(encoding="utf-8")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DescriptionError(f"{path.name}: not YAML: {error}") from None
    if not isinstance(data, dict):
        raise DescriptionError(f"{path.name}: expected a mapping of platforms")
    return {name: _platform(name, entry, text, path.name) for name, entry in data.items()}


def find(name: str, platforms: dict[str, Platform]) -> Platform:
    """A platform by its name; DescriptionError with the nearest names and all that are allowed."""
    if name in platforms:
        return platforms[name]
    near = difflib.get_close_matches(name.lower(), platforms, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise DescriptionError(f"unknown PLATFORM {name!r}.{hint} Allowed: {', '.join(platforms)}")


def choose(name: str, architectures: str, platforms: Mapping[str, Platform]) -> Platform:
    """A platform by its name, for some of its architectures where a comma-separated list names them.

    `cuda` with `sm_90` is the platform of the family cuda that has sm_90, for sm_90 alone.

    Raises:
        DescriptionError: no such platform, or none that has all of them.
    """
    wanted = tuple(dict.fromkeys(word.strip() for word in architectures.split(",") if word.strip()))
    if not wanted:
        return find(name, dict(platforms))
    family = [p for p in platforms.values() if p.cuda and (p.name == name or p.name.startswith(f"{name}-"))]
    for platform in family:
        if set(wanted) <= set(platform.targets):
            return replace(platform, family=name, targets=tuple(t for t in platform.targets if t in wanted))
    known = "; ".join(f"{p.name} has {', '.join(p.targets)}" for p in family or (p for p in platforms.values() if p.cuda))
    raise DescriptionError(f"no PLATFORM {name!r} with ARCH {architectures}: an image is for some of one platform's. {known}")


_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s\\;]+)", re.MULTILINE)


def pins(lock: Path) -> dict[str, str]:
    """Versions by project name in a lock."""
    return {name.lower(): version for name, version in _PIN.findall(lock.read_text(encoding="utf-8"))}
