"""From a model's config.json (Hugging Face) or params.json (Mistral) to what its attention needs; nothing is downloaded.

Honest: a model type that nobody here has read the code of, or a field that bears on attention and is not understood, is a
`NotUnderstoodError` that names it, never a default decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

from attnkit.errors import NotUnderstoodError, UsageError, did_you_mean, unknown_name
from attnkit.jsonio import parse_json, read_text, shorten
from attnkit.select.model_fields import Part, bears_on_attention
from attnkit.select.model_reading import HEADS, Reading, with_features
from attnkit.select.model_scales import scaled
from attnkit.select.model_types import (
    FLAT_TEXT,
    IGNORED_PARTS,
    PREFIX_LM,
    RULES,
    SAME_TOWER,
    TEXT_NAMES,
    TOWER_NAMES,
    WRAPPERS,
)
from attnkit.spec import DTYPES, TOWERS, AttentionSpec, Dtype, LayerKind, OtherLayers

_DTYPE = ("dtype", "torch_dtype")


@dataclass(frozen=True)
class ModelNeed:
    """What a model's attention needs.

    Args:
        specs: one per distinct kind of layer of the language model; whoever serves it must serve all of them. Empty where it
            holds no softmax attention.
        notes: what a person should know.
        vision: the vision tower's need (no causal mask, no cache), None where there is none. It may be served by another
            backend than the decoder.
        source: where it was read.
        layers: every kind of layer, towers included.
        other: layers without softmax attention.
        not_understood: towers that are not, each with its field.
    """

    specs: tuple[AttentionSpec, ...]
    notes: tuple[str, ...] = ()
    vision: AttentionSpec | None = None
    source: str = ""
    layers: tuple[LayerKind, ...] = ()
    other: tuple[OtherLayers, ...] = ()
    not_understood: tuple[str, ...] = ()


def presets() -> tuple[str, ...]:
    """Names of the built-in presets, sorted."""
    folder = resources.files("attnkit").joinpath("data/models")
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")))


def need_from_config(model: str, *, dtype: str | None = None, block_size: int = 16) -> ModelNeed:
    """Read what a model needs.

    Args:
        model: a config.json (or Mistral's params.json), a folder with one, or a preset's name.
        dtype: the dtype it is going to run in; None or "auto" takes the config's.
        block_size: tokens a cache block.

    Raises:
        UsageError: no such file or preset, not JSON (file and line), a field missing or wrong (file and field).
        NotUnderstoodError: a model type, or a field that bears on attention, that nobody here knows (file and field).
    """
    source, text = _read(model)
    return read_config(parse(source, text), source, dtype=dtype, block_size=block_size)


def read_config(config: dict[str, Any], source: str, *, dtype: str | None = None, block_size: int = 16) -> ModelNeed:
    """`need_from_config` of a configuration that is read already; `source` is named in messages."""
    notes: list[str] = []
    if "model_type" not in config and {"n_layers", "n_heads", "dim"} <= set(config):
        config = _from_mistral(config, notes)
    model_type = config.get("model_type")
    whole = Part(source, "", config, model_type if isinstance(model_type, str) else "")
    if not isinstance(model_type, str) or not model_type:
        if model_type is not None:
            whole.wrong("model_type", "a text")
        whole.not_understood("model_type", "it is missing, so nothing says how the other fields are to be read")
    reading = Reading(_dtype(whole, dtype, notes), block_size, notes=notes)
    _read_parts(whole, reading)
    layers = tuple(k for k in reading.found if isinstance(k, LayerKind) and k.count)
    specs = tuple(dict.fromkeys(k.spec for k in layers if k.role not in TOWERS))
    for role in dict.fromkeys(k.role for k in layers if k.role in TOWERS):
        notes.append(f"the {role} tower is a need of its own: no causal mask, no cache; its backend is chosen separately")
    if not specs:
        notes.append("the model is attention-free: it holds no softmax attention, so there is no backend to choose or to test")
    return ModelNeed(
        specs,
        tuple(notes),
        next((k.spec for k in layers if k.role == "vision"), None),
        source,
        layers,
        tuple(k for k in reading.found if isinstance(k, OtherLayers) and k.count),
        tuple(reading.missing),
    )


def parse(source: str, text: str) -> dict[str, Any]:
    """The JSON object in `text`, strictly."""
    config = parse_json(text, source, infinity=True)
    if not isinstance(config, dict):
        raise UsageError(f"{source}: is not a JSON object")
    return config


def _read(model: str) -> tuple[str, str]:
    path = Path(model)
    try:
        if path.is_dir():
            path = next((path / n for n in ("config.json", "params.json") if (path / n).is_file()), path / "config.json")
        there = path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or with a zero byte in it
        raise UsageError(f"model {shorten(model)!r}: {getattr(error, 'strerror', None) or error}") from None
    if not there:
        wanted = model.strip().casefold()
        if wanted in presets():
            return f"preset {wanted}", resources.files("attnkit").joinpath(f"data/models/{wanted}.json").read_text("utf-8")
        if "/" in model or model.endswith(".json"):
            known = ", ".join(presets())
            raise UsageError(f"{path}: no such file. A model is a config.json, a folder with one, or a preset: {known}")
        raise unknown_name("model preset", model, presets())
    return str(path), read_text(path)


def _dtype(whole: Part, asked: str | None, notes: list[str]) -> Dtype:
    inner: Mapping[str, Any] = next((whole.raw[k] for k in TEXT_NAMES if isinstance(whole.raw.get(k), dict)), {})
    stated: Any = next((part[n] for part in (inner, whole.raw) for n in _DTYPE if part.get(n) is not None), None)
    if stated is not None:
        stated = str(stated).removeprefix("torch.")
        if stated not in DTYPES:
            raise UsageError(f"{whole.source}: field 'torch_dtype' is {stated!r}; allowed: {', '.join(DTYPES)}")
    if asked not in (None, "auto"):
        if asked not in DTYPES:
            raise UsageError(f"dtype {asked!r} is not allowed; allowed: auto, {', '.join(DTYPES)}")
        if stated not in (None, asked):
            notes.append(f"runs in {asked}, though the model's weights are {stated}")
        return asked
    if stated is None:
        notes.append("the config states no dtype; bfloat16 is assumed")
    return cast(Dtype, stated or "bfloat16")


def _from_mistral(config: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Mistral's params.json in the words of a config.json (vllm/transformers_utils/configs/mistral.py)."""
    names = {
        "dim": "hidden_size",
        "n_kv_heads": "num_key_value_heads",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "hidden_dim": "intermediate_size",
    }
    found = {names.get(key, key): value for key, value in config.items()}
    found["model_type"] = "mixtral" if found.pop("moe", None) else "ministral"
    found.setdefault("sliding_window", None)
    if found.get("qk_nope_head_dim"):
        found["model_type"] = "deepseek_v3"
    windows = found["sliding_window"]
    if isinstance(windows, list) and windows and isinstance(found["num_hidden_layers"], int):
        found["sliding_window"] = next((w for w in windows if w is not None), None)
        repeated = (windows * found["num_hidden_layers"])[: found["num_hidden_layers"]]
        found["layer_types"] = ["full_attention" if w is None else "sliding_attention" for w in repeated]
    if "_sliding_window" in found:
        notes.append("field '_sliding_window' is set aside, as vLLM does: only 'sliding_window' turns a window on")
    for name in ("vision_encoder", "multimodal"):
        if found.get(name):
            raise NotUnderstoodError(f"not understood: field {name!r} of Mistral's params.json: give the model's config.json")
    return found


def _read_parts(whole: Part, reading: Reading) -> None:
    """The language model, then the towers, of a configuration."""
    model_type = whole.model_type
    if model_type not in WRAPPERS:
        _language_model(whole, reading)
        _leftover_parts(whole)
        return
    key = WRAPPERS[model_type]
    outer = whole
    if key:
        inner = whole.inner(key)
        if inner is None:
            whole.not_understood(key, "it is missing, and holds the language model")
        whole = inner
    text = whole.inner(*TEXT_NAMES)
    if text is None or (not text.raw and whole.raw.get(HEADS[0]) is not None):
        flat = FLAT_TEXT.get(whole.model_type)
        if flat is None:
            whole.not_understood(TEXT_NAMES[0], f"it is missing, and model type {model_type!r} holds its language model there")
        text = Part(whole.source, whole.where, whole.raw, flat)
    elif text.model_type == "" and (flat := FLAT_TEXT.get(whole.model_type)):
        text = Part(text.source, text.where, text.raw, flat)
    if model_type in PREFIX_LM:  # "bidirectional" is about the prompt there, which the feature below says
        own = {name: value for name, value in text.raw.items() if name != "use_bidirectional_attention"}
        text = Part(text.source, text.where, own, text.model_type)
    before = len(reading.found)
    _language_model(text, reading)
    if model_type in PREFIX_LM:
        reading.found[before:] = [
            with_features(k, "prefix_lm") if isinstance(k, LayerKind) else k for k in reading.found[before:]
        ]
    for role, name in TOWER_NAMES.items():
        part = whole.inner(name)
        if part is not None:
            before = len(reading.found)
            _tower(part, role, reading)
            if role == "vision":
                reading.found[before:] = _up_to_features(whole, reading.found[before:])
    _leftover_parts(outer, *([key] if key else []))
    if whole is not outer:
        _leftover_parts(whole)


def _language_model(part: Part, reading: Reading) -> None:
    rule = RULES.get(part.model_type)
    if rule is None:
        hint = did_you_mean(part.model_type, RULES)
        part.not_understood("model_type", f"nobody here has read what model type {part.model_type!r} computes.{hint}")
    before = len(reading.found)
    rule(part, reading)
    reading.found[before:] = [scaled(part, kind) for kind in reading.found[before:]]
    causal = [k for k in reading.found[before:] if isinstance(k, LayerKind) and "non_causal" not in k.spec.features]
    if part.raw.get("is_causal") is False and causal:
        part.not_understood("is_causal", f"engines differ in what they make of it for model type {part.model_type!r}")
    part.finish(*TEXT_NAMES, *TOWER_NAMES.values())


def _tower(part: Part, role: str, reading: Reading) -> None:
    """A tower's layers; one that is not understood is named, and the language model's layers stand nevertheless."""
    kind = SAME_TOWER.get(part.model_type, part.model_type)
    rule = RULES.get(kind)
    if rule is None:
        why = f"nobody here has read what {part.model_type!r} computes" if kind else "it is missing"
        reading.missing.append(f"field '{part.where}model_type': {why}, so the {role} tower's attention is unknown")
        return
    named = Part(part.source, part.where, part.raw, kind)
    before = len(reading.found)
    rule(named, reading)
    reading.found[before:] = [scaled(named, found) for found in reading.found[before:]]
    named.finish()


def _up_to_features(whole: Part, tower: list[LayerKind | OtherLayers]) -> list[LayerKind | OtherLayers]:
    """A tower of one kind without the layers behind those whose states are taken (`vision_feature_layer`): none needs them."""
    taken = whole.get("vision_feature_layer")[1]
    layers = taken if isinstance(taken, list) else [] if taken is None else [taken]
    if not all(type(layer) is int for layer in layers):
        whole.wrong("vision_feature_layer", "a layer's number, or a list of them")
    if not layers or len(tower) != 1:
        return tower
    count = tower[0].count
    deepest = max(count + layer + 1 if layer < 0 else layer for layer in layers)
    return [replace(tower[0], count=max(0, min(count, deepest)))]


def _leftover_parts(whole: Part, *read: str) -> None:
    """No part with attention in it is passed over.

    Raises:
        NotUnderstoodError: naming the part.
    """
    known = {*TEXT_NAMES, *TOWER_NAMES.values(), *IGNORED_PARTS, *read}
    for name, value in whole.raw.items():
        if name in known or not isinstance(value, dict) or not name.endswith(("_config", "_model", "encoder", "decoder")):
            continue
        if any(bears_on_attention(inner) and setting for inner, setting in value.items()) and name not in _READ_BY_RULES:
            whole.not_understood(name, f"model type {whole.model_type!r} holds attention there that nothing here reads")


_READ_BY_RULES = frozenset({"attn_config", "linear_attn_config", "dual_chunk_attention_config"})
