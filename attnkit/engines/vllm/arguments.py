"""Reading vLLM's own options where vLLM is not asked: which words are values, the file behind `--config`, attention's options.

Which options take no value, or several, is in data/vllm-options.json, written from vLLM's own parser by
`python -m tools.engines.vllm_options`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from attnkit.errors import UsageError


@dataclass(frozen=True)
class AttentionOptions:
    """What the command says about attention.

    Args:
        backend: the backend, None where none is named, or "auto".
        where: the option that names it.
        by_kind: `backend_per_kind`: vLLM's word for a kind of layer → backend.
        flash_attn_version: 2, 3 or 4 where it is stated.
    """

    backend: str | None = None
    where: str = ""
    by_kind: Mapping[str, str] | None = None
    flash_attn_version: int | None = None


def spelling(option: str) -> str:
    """vLLM takes dashes and underscores alike, in an option's name."""
    head, dot, tail = option.partition(".")
    return head.replace("_", "-") + dot + tail.replace("-", "_")


def option_value(options: Sequence[str], *names: str) -> str | None:
    """The last value of `--name VALUE` or `--name=VALUE`; vLLM takes dashes and underscores alike."""
    found = values(options, *names)
    return found[-1] if found else None


def values(options: Sequence[str], *names: str) -> list[str]:
    """Every value of these options, in order."""
    wanted = {spelling(name) for name in names}
    found = []
    for position, text in enumerate(options):
        name, separator, given = text.partition("=")
        if not name.startswith("-") or spelling(name) not in wanted:
            continue
        if separator:
            found.append(given)
        elif position + 1 < len(options):
            found.append(options[position + 1])
    return found


@cache
def _arity() -> dict[str, frozenset[str]]:
    text = resources.files("attnkit").joinpath("data/vllm-options.json").read_text("utf-8")
    return {name: frozenset(options) for name, options in json.loads(text).items() if isinstance(options, list)}


def split_model(words: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """(the positional model wherever it stands, the options without it)."""
    arity = _arity()
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("-"):
            return word, (*words[:position], *words[position + 1 :])
        name, separator, _ = word.partition("=")
        name = spelling(name)
        position += 1
        if separator or name in arity["none"]:
            continue
        if name in arity["several"]:  # takes words up to the next option; a model behind it cannot be told apart
            while position < len(words) and not words[position].startswith("-"):
                position += 1
        else:
            position += 1
    return None, tuple(words)


def with_config_file(words: Sequence[str]) -> tuple[str, ...]:
    """Put what the file of `--config` says in front of the other options, which win over it, as vLLM does.

    Raises:
        UsageError: the file cannot be read, or is not a mapping of options.
    """
    file = option_value(words, "--config")
    if file is None:
        return tuple(words)
    from attnkit.profiles.strict_yaml import read_mapping

    stated: list[str] = []
    for key, setting in read_mapping(Path(file)).items():
        option = f"--{key}"
        if isinstance(setting, bool):
            stated += [option] if setting else []
        elif isinstance(setting, dict):
            stated += [option, json.dumps(setting)]
        elif isinstance(setting, list):
            stated += [option, *map(str, setting)]
        elif setting is not None:
            stated += [option, str(setting)]
    return (*stated, *words)


def attention_options(options: Sequence[str]) -> AttentionOptions:
    """What `--attention-backend`, `--attention-config` and its dotted forms say.

    Raises:
        UsageError: not a JSON object, a value of the wrong kind, or two options that contradict each other.
    """
    config: dict[str, Any] = {}
    named: list[tuple[str, str]] = []
    for text in values(options, "--attention-config", "-ac"):
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise UsageError(f"--attention-config is not a JSON object: {text[:80]!r}")
        config |= document
    if config.get("backend") is not None:
        named.append((str(config["backend"]), "--attention-config"))
    dotted = {
        field: [*values(options, f"--attention-config.{field}"), *values(options, f"-ac.{field}")]
        for field in ("backend", "flash_attn_version", "backend_per_kind")
    }
    if dotted["backend"]:
        named.append((dotted["backend"][-1], "--attention-config.backend"))
    if (plain := option_value(options, "--attention-backend")) is not None:
        named.insert(0, (plain, "--attention-backend"))
    for other, where in named[1:]:
        if other.casefold() != named[0][0].casefold():
            raise UsageError(f"{named[0][1]} says {named[0][0]} but {where} says {other}; give one")
    version = config.get("flash_attn_version")
    if dotted["flash_attn_version"]:
        version = int(text) if (text := dotted["flash_attn_version"][-1]).isascii() and text.isdigit() else text
    if version not in (None, 2, 3, 4):
        raise UsageError(f"--attention-config: flash_attn_version is {version!r}; it must be 2, 3 or 4")
    kinds = config.get("backend_per_kind")
    if dotted["backend_per_kind"]:
        try:
            kinds = json.loads(dotted["backend_per_kind"][-1])
        except ValueError:
            raise UsageError("--attention-config.backend_per_kind is not a JSON object") from None
    if kinds is not None and not (isinstance(kinds, dict) and all(isinstance(name, str) for name in kinds.values())):
        raise UsageError("--attention-config: backend_per_kind must be an object: a kind of layer, and the name of a backend")
    backend, where = named[0] if named else (None, "")
    return AttentionOptions(backend, where, kinds, version)
