"""Reading the fields of a model's configuration: values are checked, and fields that bear on attention are accounted for.

What a file leaves out is a default of its model type. Those come from transformers' own configuration class where
transformers is installed, else from data/model-types.json, which `python -m tools.engines.model_types` writes from the
same classes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module, resources
from importlib.util import find_spec
from typing import Any, NoReturn

from attnkit.errors import NotUnderstoodError, UsageError, did_you_mean

LAYER_WORDS = (
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "indexed_attention",
    "linear_attention",
    "attention",
    "hybrid",
    "mamba",
    "mamba2",
    "conv",
    "recurrent",
    "moe",
    "mlp",
)
"""Kinds of layer that configurations name."""

BEARS_ON_ATTENTION = re.compile(
    r"window|slid|swa_|chunk|attn|attention|head|kv|lora_rank|alibi|sink|softcap|logit_cap|causal|bidirect|layer_types"
    r"|block_types?$|layers_block|block_configs|index_|indexer|qk_|query|cross|sparse_|prefix_lm|relative|position_bias"
    r"|group_num|gqa|per_layer_config|local|global|full_att|pattern|is_decoder|is_encoder|dual_chunk|lambda",
    re.IGNORECASE,
)
"""Names of fields that may change what attention computes."""

_HARMLESS = re.compile(
    r"dropout|pdrop|drop_rate|norm|eps$|init|token|lm_head|classifier|projection|mlp|moe|expert|ffn|rope|rotary|router|_impl"
    r"|implementation|output_attentions|final_logit|pruned|chunk_size_feed|softmax_in_fp32|mtp|nextn|backend|tie_|vocab|_cache$"
    r"|^(attention|attn|qkv|use_qkv|add_qkv|query_key)_?bias$|^attention_out_bias$|^qkv_bias$|^head_(bias|hidden|dropout)"
    r"|^use_(mem_eff|flash)|^(scale_)?attention_softmax|^apply_query_key_layer_scaling$|^query_pre_attn_scalar$|^attn_temperature"
    r"|^attn_scale$|^attention_multiplier$|^scale_attn|^reorder_and_upcast|^mamba|^ssm|^linear_|^conv|^layerdrop|upcast"
    r"|^vision_use_head$|^deterministic_flash_attn$|^sparse_prediction|^attention_value_scale$|^attention_k_eq_v$"
    r"|^num_kv_shared_layers$|^clip_qkv$|^mla_scale_|^qk_scale|^attn_pdrop$|^num_(local|global)_experts$|^decoder_(start|sparse|hidden_act)"
    r"|^(layer|interleave)_|^embed|^hidden_size_per_layer|^cross_entropy|^global_pointer|^ignore_index$|^local_files|index$"
    r"|^activation_sparsity_pattern$|^encoder_no_repeat|^auto_map$|^transformers|_name_or_path$|^pad_head|^layer_switch$",
    re.IGNORECASE,
)
"""Names that look as if they did, and change weights, scales that every kernel takes, training or bookkeeping alone."""


def bears_on_attention(name: str) -> bool:
    """Whether a field of this name has to be understood."""
    return bool(BEARS_ON_ATTENTION.search(name)) and not _HARMLESS.search(name)


@cache
def recorded() -> Mapping[str, Mapping[str, Any]]:
    """data/model-types.json: for every model type {"fields": its defaults, "parts": types of its sub-configurations,
    "optional": those that are absent by default}."""
    text = resources.files("attnkit").joinpath("data/model-types.json").read_text("utf-8")
    types: dict[str, dict[str, Any]] = json.loads(text)["types"]
    return types


@cache
def type_record(model_type: str) -> Mapping[str, Any]:
    """{"fields", "parts"} of a model type: from transformers' class where that is installed, else as recorded."""
    if find_spec("transformers") is not None:
        found = _from_transformers(model_type)
        if found is not None:
            return found
    return recorded().get(model_type, {})


def _from_transformers(model_type: str) -> Mapping[str, Any] | None:
    """The record of an installed transformers' class; None where it has none, or cannot be imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        auto = import_module("transformers.models.auto.configuration_auto")
        known = auto.CONFIG_MAPPING_NAMES
        if model_type not in known:
            return None
        return class_record(auto.CONFIG_MAPPING[model_type])
    except Exception:  # a broken installation of an optional package: what was recorded holds
        return None


def class_record(config_class: Any) -> dict[str, Any]:
    """{"fields": {name: default} of what bears on attention, "parts": {name: model type}} of a transformers class."""
    import dataclasses
    import inspect

    fields: dict[str, Any] = {}
    if dataclasses.is_dataclass(config_class):
        for field in dataclasses.fields(config_class):
            if field.default is not dataclasses.MISSING:
                fields[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                fields[field.name] = field.default_factory()
    else:
        for name, parameter in inspect.signature(config_class.__init__).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                fields[name] = parameter.default
    kept = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in fields.items()
        if (bears_on_attention(name) or name in SHAPE) and isinstance(value, bool | int | float | str | list | tuple)
    }
    parts = {
        name: str(getattr(part, "model_type", ""))
        for name, part in (getattr(config_class, "sub_configs", None) or {}).items()
        if getattr(part, "model_type", "")
    }
    try:
        default = config_class()
    except Exception:  # some have no defaults of their own
        return {"fields": kept, "parts": parts}
    optional = [name for name in parts if getattr(default, name, None) is None]
    return {"fields": kept, "parts": parts} | ({"optional": optional} if optional else {})


_SHAPE_NAMES = (
    "hidden_size n_embd d_model dim emb_dim embed_dim model_dim num_hidden_layers n_layer n_layers num_layers "
    "depth encoder_layers decoder_layers num_decoder_layers num_encoder_layers d_kv full_attention_interval "
    "multi_query new_decoder_architecture hidden_size_per_head no_rope_layers no_rope_layer_interval "
    "attention_multiplier query_pre_attn_scalar num_transformer_layers vision_feature_layer"
)
SHAPE = frozenset(_SHAPE_NAMES.split())
"""Names of fields that are needed for shapes, though their names do not bear on attention."""


class Part:
    """A configuration, or one inside another, being read.

    Args:
        source: the file, for messages.
        where: "text_config." for one inside; "" for the whole.
        raw: what the file says.
        model_type: whose defaults fill in what it leaves out.
    """

    def __init__(self, source: str, where: str, raw: Mapping[str, Any], model_type: str) -> None:
        self.source, self.where, self.raw, self.model_type = source, where, raw, model_type
        self._read: set[str] = set()

    def wrong(self, name: str, must: str) -> NoReturn:
        """Raise the UsageError for a field with a value that it cannot have."""
        raise UsageError(f"{self.source}: field '{self.where}{name}' is {self.raw.get(name)!r}; it must be {must}")

    def not_understood(self, name: str, why: str) -> NoReturn:
        """Raise the NotUnderstoodError for a field."""
        raise NotUnderstoodError(f"{self.source}: not understood: field '{self.where}{name}': {why}")

    def get(self, *names: str) -> tuple[str, Any]:
        """(name, value) of the first of `names` that the file states, else of the first with a default; (names[0], None)."""
        self._read.update(names)
        stated = [(name, self.raw[name]) for name in names if self.raw.get(name) is not None]
        for name, value in stated[1:]:
            if value != stated[0][1]:
                raise UsageError(
                    f"{self.source}: fields '{self.where}{stated[0][0]}' and '{self.where}{name}' are the same thing, "
                    f"but are {stated[0][1]!r} and {value!r}"
                )
        if stated:
            return stated[0]
        if any(name in self.raw for name in names):  # null is a statement, too: not the default
            return next(name for name in names if name in self.raw), None
        if not any(recorded().get(self.model_type, {}).get("fields", {}).get(name) is not None for name in names):
            return names[0], None  # no need to ask: importing transformers takes seconds
        defaults = type_record(self.model_type).get("fields", {})
        return next(((name, defaults[name]) for name in names if defaults.get(name) is not None), (names[0], None))

    def integer(self, *names: str) -> int | None:
        """A positive whole number, or None where it is neither stated nor a default."""
        name, value = self.get(*names)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            self.wrong(name, "a positive whole number")
        return value

    def needed(self, *names: str) -> int:
        """A positive whole number that must be there."""
        value = self.integer(*names)
        if value is None:
            raise UsageError(
                f"{self.source}: field '{self.where}{names[0]}' is missing: without it the attention's shape is unknown"
            )
        return value

    def flag(self, *names: str, default: bool = False) -> bool:
        """True or false."""
        name, value = self.get(*names)
        if value is not None and not isinstance(value, bool):
            self.wrong(name, "true or false")
        return default if value is None else value

    def number(self, *names: str) -> float | None:
        """A positive number; zero and absent are None."""
        name, value = self.get(*names)
        if value is None or (value == 0 and not isinstance(value, bool)):
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            self.wrong(name, "a positive number")
        return float(value)

    def window(self, *names: str) -> int | None:
        """Width of a window; null, 0 and -1 are none."""
        name, value = self.get(*names)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < -1):
            self.wrong(name, "a whole number of tokens, or null")
        return value if value and value > 0 else None

    def items(self, *names: str) -> list[Any] | None:
        """A list, or None where there is none."""
        name, value = self.get(*names)
        if value is not None and not isinstance(value, list):
            self.wrong(name, "a list")
        return value

    def indices(self, *names: str) -> list[int] | None:
        """A list of layer numbers, from 0."""
        found = self.items(*names)
        if found is not None and not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in found):
            self.wrong(self.get(*names)[0], "a list of whole numbers")
        return found

    def layer_words(self, *names: str, extra: tuple[str, ...] = ()) -> list[str] | None:
        """One word a layer, each of `LAYER_WORDS` or `extra`; None where the file states none."""
        name, value = next(((n, self.raw[n]) for n in names if self.raw.get(n) is not None), (names[0], None))
        self._read.update(names)
        if value is None:
            return None
        if not isinstance(value, list) or not value:
            self.wrong(name, "a list with one word a layer")
        allowed = (*LAYER_WORDS, *extra)
        for position, word in enumerate(value):
            if word not in allowed:
                hint = did_you_mean(word, allowed) if isinstance(word, str) else ""
                raise UsageError(
                    f"{self.source}: field '{self.where}{name}[{position}]' is {word!r}.{hint} Allowed: {', '.join(allowed)}"
                )
        return value

    def inner(self, *names: str) -> Part | None:
        """A configuration inside, None where it is absent, null, or neither stated nor part of the type."""
        self._read.update(names)
        record = recorded().get(self.model_type, {})
        parts, optional = record.get("parts", {}), record.get("optional", ())
        for name in names:
            raw = self.raw.get(name)
            if raw is None:
                continue
            if not isinstance(raw, Mapping):
                self.wrong(name, "an object")
            stated = raw.get("model_type")
            if stated is not None and not isinstance(stated, str):
                Part(self.source, f"{self.where}{name}.", raw, "").wrong("model_type", "a text")
            return Part(self.source, f"{self.where}{name}.", raw, stated or parts.get(name, ""))
        for name in names:  # left out: the type's own, with all its defaults
            if name in parts and name not in optional and name not in self.raw and parts[name] in recorded():
                return Part(self.source, f"{self.where}{name}.", {}, parts[name])
        return None

    def finish(self, *allowed: str) -> None:
        """Every field that bears on attention was read, or says what its type has anyway.

        Raises:
            NotUnderstoodError: naming the field.
        """
        defaults = recorded().get(self.model_type, {}).get("fields", {})
        for name, value in self.raw.items():
            if name in self._read or name in allowed or name.startswith("_") or not bears_on_attention(name):
                continue
            if value in (None, False, 0, 0.0, "", -1) or value in ([], {}):
                continue
            if name in defaults and defaults[name] == value:
                continue
            kind = f" of model type {self.model_type}" if self.model_type else ""
            self.not_understood(name, f"it bears on attention, and nothing here knows what {value!r:.80} means{kind}")
