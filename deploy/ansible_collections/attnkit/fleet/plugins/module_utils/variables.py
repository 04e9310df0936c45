"""The fleet's variables, checked on the controller before a node is asked anything.

Names, types and choices come from roles/common/meta/options.yml, platforms from roles/common/vars/main.yml and node types from
attnkit's profiles; only what these files cannot say (what an image, a port or a mount looks like) is stated here. The playbooks
and the generator of the Kubernetes manifests use the same model.
"""

from __future__ import annotations

import difflib
import functools
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from attnkit.profiles import node_names

COMMON = Path(__file__).resolve().parents[2] / "roles" / "common"
PREFIX = "attnkit_"


@dataclass(frozen=True, order=True)
class Problem:
    """What is wrong with a variable.

    Args:
        where: file and line, or the host, as far as known.
        name: the variable, with the path inside it: attnkit_images.rocm.
        text: what is wrong, what is allowed, what to do.
    """

    where: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.name}: {self.text}" if self.where else f"{self.name}: {self.text}"


@functools.cache
def options() -> dict[str, dict[str, Any]]:
    """Every option of the roles by its name."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((COMMON / "meta" / "options.yml").read_text(encoding="utf-8"))
    return found


@functools.cache
def platforms() -> tuple[str, ...]:
    """The platforms that there are images for."""
    return tuple(yaml.safe_load((COMMON / "vars" / "main.yml").read_text(encoding="utf-8"))["attnkit_access"])


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like this one, as the end of a sentence; empty if none is."""
    own = {other.removeprefix(PREFIX): other for other in known}
    typed = name.removeprefix(PREFIX)
    close = difflib.get_close_matches(typed, list(own))
    swapped = [other for other in close if sorted(other) == sorted(typed)]  # two letters in the wrong order
    return f"; did you mean {own[(swapped or close)[0]]}?" if close else ""


def _platform(name: str) -> str:
    if name not in platforms():
        raise ValueError(f"no such platform{nearest(name, platforms())} There are: {', '.join(platforms())}")
    return name


def _node_type(name: str) -> str:
    if name and name not in node_names():
        near = nearest(name, node_names())
        raise ValueError(f"no such node type{near or ';'} `attnkit backends` and profiles/nodes list them")
    return name


def _address(text: str) -> str:
    ipaddress.ip_address(text)
    return text


def _absolute(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError("must be an absolute path")
    return text


def _like(pattern: str, allowed: str) -> AfterValidator:
    """Texts of a form, with the words for the message: what is allowed."""

    def check_form(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {allowed}")
        return text

    return AfterValidator(check_form)


def _image(text: str) -> str:
    name, at, digest = text.partition("@sha256:")
    if not at or not name or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError(
            "must be an image with its digest, NAME@sha256: and 64 hexadecimal digits: a tag can be moved during a rollout"
            " (docker buildx imagetools inspect NAME shows the digest)"
        )
    return text


_Platform = Annotated[str, AfterValidator(_platform)]
_Variable = Annotated[str, _like(r"[A-Za-z_][A-Za-z0-9_]*", "a variable's name: letters, digits and _")]
_SIZE = r"\d+([.]\d+)?[bkmgtBKMGT]?[bB]?"
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Path = Annotated[str, AfterValidator(_absolute)]
_TYPES: Mapping[str, Any] = {
    "str": str, "path": _Path, "int": int, "float": float, "bool": bool, "list": list[str], "dict": dict[str, Any]
}  # fmt: skip
NARROWER: Mapping[str, Any] = {
    "attnkit_images": dict[_Platform, Annotated[str, AfterValidator(_image)]],
    "attnkit_commands": dict[_Platform, list[str]],
    "attnkit_env": dict[_Variable, str],
    "attnkit_secret_env": dict[_Variable, str],
    "attnkit_node_type": Annotated[str, AfterValidator(_node_type)],
    "attnkit_only_type": Annotated[str, AfterValidator(_node_type)],
    "attnkit_port": Annotated[int, Field(ge=1, le=65535)],
    "attnkit_metrics_port": Annotated[int, Field(ge=0, le=65535)],
    "attnkit_bind_address": Annotated[str, AfterValidator(_address)],
    "attnkit_container": Annotated[str, _like(r"[A-Za-z0-9][A-Za-z0-9_.-]+", "a container's name: letters, digits, _ . and -")],
    "attnkit_volumes": list[
        Annotated[str, _like(r"[^:]+:/[^:]*(:[A-Za-z,]+)?", "a mount, HOST:CONTAINER or HOST:CONTAINER:ro")]
    ],
    "attnkit_memory": Annotated[str, _like(f"({_SIZE})?", "a size as in 8g, or empty for no limit")],
    "attnkit_shm_size": Annotated[str, _like(_SIZE, "a size as in 2g")],
    "attnkit_cpus": Annotated[float, Field(ge=0, allow_inf_nan=False)],
    "attnkit_image_bytes": Annotated[int, Field(ge=0)],
    "attnkit_gate_timeout": Annotated[int, Field(gt=0)],
    "attnkit_hook_timeout": Annotated[int, Field(gt=0)],
    "attnkit_settle": _Seconds,
    "attnkit_confirm_timeout": _Seconds,
    "attnkit_stale_lock_after": _Seconds,
    "attnkit_max_clock_skew": _Seconds,
    "attnkit_max_report_age": _Seconds,
    "attnkit_textfile_dir": _Path,
    "attnkit_plan_dir": _Path,
}
"""The variables of which more is known than options.yml says."""


def _field(option: Mapping[str, Any], narrower: Any) -> Any:
    if "choices" in option:
        return Literal[tuple(option["choices"])]
    return narrower if narrower is not None else _TYPES[option["type"]]


@functools.cache
def model() -> type[BaseModel]:
    """The variables as a pydantic model: every option of the roles, each optional, nothing else.

    Numbers may be given as text (an INI inventory and `-e NAME=VALUE` know nothing else); lists and mappings may not.
    """
    fields: dict[str, Any] = {
        name: (_field(option, NARROWER.get(name)), Field(default=None)) for name, option in options().items()
    }
    return create_model("FleetVariables", __config__=ConfigDict(extra="forbid", coerce_numbers_to_str=True), **fields)


Where = Callable[[tuple[str, ...]], str]
"""Path to a value, ("attnkit_images", "rocm") -> where it is stated, for the messages."""


def check(given: Mapping[str, Any], where: Where = lambda _path: "") -> list[Problem]:
    """What is wrong with some variables.

    Args:
        given: name -> value; names that do not begin with attnkit_ are somebody else's and are left alone.
        where: says where a value is stated.
    """
    try:
        model().model_validate({name: value for name, value in given.items() if name.startswith(PREFIX)})
    except ValidationError as error:
        return [_problem(dict(detail), where) for detail in error.errors(include_url=False)]
    return []


def _problem(detail: Mapping[str, Any], where: Where) -> Problem:
    path = tuple(str(part) for part in detail["loc"] if part != "[key]")
    option = options().get(path[0])
    if option is None:
        return Problem(where(path), path[0], f"there is no such variable{nearest(path[0], options())}")
    text = str(detail["ctx"]["error"] if detail["type"] == "value_error" else detail["msg"])
    text = re.sub(r"^Input should be ", "must be ", text).replace("a valid i", "an i").replace("a valid ", "a ")
    if not option.get("no_log"):
        text += f"; found {_shown(detail['input'])}"
    if detail["type"] == "list_type" and isinstance(detail["input"], str):
        text += f". Write [{', '.join(detail['input'].split())}]"
    return Problem(where(path), ".".join(path), text)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
