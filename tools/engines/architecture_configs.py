"""A configuration for every architecture in vLLM's registry, from the defaults of classes that vLLM and transformers ship.

Nothing is downloaded. Which class belongs to an architecture is found in this order: transformers' own tables of models, a
configuration class of the architecture's name, and the class of another architecture that the same vLLM module serves.
`architecture_configs.json` beside this file adds what the classes' defaults lack, written by hand after vLLM's model code, and
has small configurations for model types whose class comes with their weights alone.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SUFFIX = re.compile(r"_?(For[A-Z]\w*|Model|LMHeadModel|ChatModel)$")
_NO_MODELS = ("_VLLM_MODELS", "_PREVIOUSLY_SUPPORTED_MODELS", "_OOT_SUPPORTED_MODELS")


@dataclass(frozen=True)
class Entry:
    """An architecture as vLLM registers it.

    Args:
        name: as in a config.json's `architectures`.
        table: of the registry, in words.
        module, model_class: what serves it.
    """

    name: str
    table: str
    module: str
    model_class: str


def registered() -> dict[str, Entry]:
    """Every architecture of the installed vLLM's registry, with one of the tables in which it stands."""
    from vllm.model_executor.models import registry

    found: dict[str, Entry] = {}
    for name in sorted(vars(registry), key=lambda name: name == "_TEXT_GENERATION_MODELS", reverse=True):
        models = getattr(registry, name)
        if name.startswith("_") and name.endswith("_MODELS") and name not in _NO_MODELS and isinstance(models, dict):
            words = name.removesuffix("_MODELS").strip("_").lower().replace("_", " ")
            for architecture, served in models.items():
                found.setdefault(architecture, Entry(architecture, words, served[0], served[1]))
    missing = set(registry.ModelRegistry.get_supported_archs()) - set(found)
    if missing:
        raise SystemExit(f"the registry has tables that are not read here: {sorted(missing)}")
    return found


def types(entries: Mapping[str, Entry]) -> dict[str, tuple[str, str]]:
    """Architecture → (model type, where that was found); one without any is absent."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    named: dict[str, str] = {}
    classes: dict[str, str] = {}
    for table, mapping in vars(modeling_auto).items():
        if table.endswith("_MAPPING_NAMES"):
            for model_type, architectures in mapping.items():
                for one in architectures if isinstance(architectures, tuple | list) else (architectures,):
                    if one not in named or (model_type.endswith("_text") and not named[one].endswith("_text")):
                        named[one] = model_type
    for model_type, config_class in CONFIG_MAPPING_NAMES.items():
        classes.setdefault(config_class, model_type)
    for model_type, config_class in dict.items(_CONFIG_REGISTRY):
        classes[config_class if isinstance(config_class, str) else config_class.__name__] = model_type
    found: dict[str, tuple[str, str]] = {}
    for name in entries:
        stem = _SUFFIX.sub("", name)
        if name in named:
            found[name] = (named[name], "transformers' table")
        elif f"{stem}Config" in classes:
            found[name] = (classes[f"{stem}Config"], "class of its name")
    for same in ("model_class", "module"):
        for name, entry in entries.items():
            if name not in found and entry.module != "transformers":
                other = next(
                    (
                        one
                        for one, beside in entries.items()
                        if beside.module == entry.module
                        and getattr(beside, same) == getattr(entry, same)
                        and found.get(one, ("", "as "))[1][:3] != "as "
                    ),
                    None,
                )
                if other:
                    found[name] = (found[other][0], f"as {other}")
    return found


def configurations(entries: Mapping[str, Entry]) -> dict[str, dict[str, Any]]:
    """Architecture → {"model_type", "from", "config"}; without "config" where there is none, and then "missing" says why."""
    stated: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    found = types(entries)
    made: dict[str, dict[str, Any]] = {}
    for name in entries:
        if name in stated["whole"]:
            config = stated["base"] | stated["whole"][name] | {"architectures": [name]}
            made[name] = {"model_type": config["model_type"], "from": "by hand, after vLLM's model code", "config": config}
        elif name not in found:
            made[name] = {"missing": "no configuration class with defaults in vLLM or transformers"}
        else:
            model_type, source = found[name]
            made[name] = {"model_type": model_type, "from": source}
            try:
                made[name]["config"] = default(model_type, name)
            except Exception as error:
                made[name]["missing"] = (
                    f"its class has no defaults: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
                )
                continue
            if name in stated["more"]:
                made[name]["config"] = _with(made[name]["config"], stated["more"][name])
                made[name]["from"] += f", with {', '.join(stated['more'][name])}"
    return made


def _with(config: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    inner = {key: _with(config[key], value) for key, value in more.items() if isinstance(value, dict) and config.get(key)}
    return config | more | inner


def default(model_type: str, architecture: str) -> dict[str, Any]:
    """The config.json of a class's defaults."""
    from transformers import CONFIG_MAPPING
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    config_class = _CONFIG_REGISTRY[model_type] if model_type in _CONFIG_REGISTRY else CONFIG_MAPPING[model_type]
    with tempfile.TemporaryDirectory() as folder:
        config_class(architectures=[architecture]).save_pretrained(folder)
        config: dict[str, Any] = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    return config | {"architectures": [architecture], "model_type": config.get("model_type") or model_type}


def make_known(model_type: str) -> None:
    """A class for a model type whose own comes with the weights: fields as they stand in the file, and in objects by name."""
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    if model_type in CONFIG_MAPPING or model_type in _CONFIG_REGISTRY:
        return

    def __init__(self: Any, **fields: Any) -> None:
        PretrainedConfig.__init__(self, **{name: _by_name(value) for name, value in fields.items()})

    name = f"{model_type[0].upper()}{model_type[1:]}Config"
    AutoConfig.register(model_type, type(name, (PretrainedConfig,), {"model_type": model_type, "__init__": __init__}))


class _Fields(dict[str, Any]):
    """An object of a configuration, whose fields are attributes as well."""

    __getattr__ = dict.get


def _by_name(value: Any) -> Any:
    if isinstance(value, list):
        return [
            _Fields({name: _by_name(inner) for name, inner in one.items()}) if isinstance(one, dict) else one for one in value
        ]
    return _Fields(value) if isinstance(value, dict) else value
