"""From a model's config.json (Hugging Face) to what its attention needs: plain JSON reading, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

from attnkit.errors import UsageError, did_you_mean, unknown_name
from attnkit.jsonio import parse_json, read_text, shorten
from attnkit.spec import DTYPES, AttentionSpec, Dtype, Feature, Op

_TEXT = ("text_config", "llm_config", "language_config")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "embed_dim")
_DTYPE = ("dtype", "torch_dtype")

_KINDS: dict[str, tuple[type, ...]] = {
    "sliding_window": (int,),
    "use_sliding_window": (bool,),
    "layer_types": (list,),
    "model_type": (str,),
    "torch_dtype": (str,),
    "dtype": (str,),
    "attn_logit_softcapping": (int, float),
    "alibi": (bool,),
    "dual_chunk_attention_config": (dict,),
    "vision_config": (dict,),
    **dict.fromkeys(_TEXT, (dict,)),
}
"""What optional fields hold where they hold anything: one of another kind would be read as something else."""
_KIND_WORDS = {int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "an object", str: "text"}
_LAYER_KINDS = ("full_attention", "sliding_attention")
MOST = 2**24
"""The most that a count or a size can be."""
MOST_LAYERS = 10_000

_NOT_ATTENTION = ("mamba", "linear_attention", "conv", "recurrent")
"""Kinds in `layer_types` that hold no softmax attention."""


@dataclass(frozen=True)
class ModelNeed:
    """What a model's attention needs.

    Args:
        specs: one per distinct kind of decoder layer; whoever serves the model must serve all of them.
        notes: what a person should know.
        vision: the vision tower's need (no causal mask, no cache), None where there is none. It may be served by another
            backend than the decoder.
        source: where it was read.
    """

    specs: tuple[AttentionSpec, ...]
    notes: tuple[str, ...] = ()
    vision: AttentionSpec | None = None
    source: str = ""


def presets() -> tuple[str, ...]:
    """Names of the built-in presets, sorted."""
    folder = resources.files("attnkit").joinpath("data/models")
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")))


def need_from_config(model: str, *, dtype: str | None = None, block_size: int = 16) -> ModelNeed:
    """Read what a model needs.

    Args:
        model: a config.json, a folder with one, or a preset's name.
        dtype: the dtype it is going to run in; None or "auto" takes the config's.
        block_size: tokens a cache block.

    Raises:
        UsageError: no such file or preset, not JSON (file and line), a field missing or wrong (file and field).
    """
    source, text = _read(model)
    config = parse_json(text, source)
    if not isinstance(config, dict):
        raise UsageError(f"{source}: is not a JSON object")
    return _Reader(source, config, dtype, block_size).need()


def _read(model: str) -> tuple[str, str]:
    path = Path(model)
    try:
        if path.is_dir():
            path = path / "config.json"
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


class _Reader:
    """One config being read."""

    def __init__(self, source: str, config: dict[str, Any], dtype: str | None, block_size: int) -> None:
        self.source = source
        self.whole = config
        self.text = next((config[k] for k in _TEXT if isinstance(config.get(k), dict) and _first(config[k], _HEADS)), config)
        self.where = next((f"{k}." for k in _TEXT if config.get(k) is self.text), "")
        self.block_size = block_size
        self.notes: list[str] = []
        self._check_kinds(config, "")
        self._check_kinds(self.text, self.where)
        self.dtype = self._dtype(dtype)

    def _check_kinds(self, part: Mapping[str, Any], where: str) -> None:
        for name, kinds in _KINDS.items():
            value = part.get(name)
            if value is None or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))):
                continue
            words = " or ".join(_KIND_WORDS[kind] for kind in kinds)
            raise UsageError(f"{self.source}: field '{where}{name}' is {shorten(repr(value))}; it must be {words}")

    def need(self) -> ModelNeed:
        """The whole need."""
        specs = (self._mla(),) if self.text.get("kv_lora_rank") else self._layers()
        vision = self._vision()
        return ModelNeed(specs, tuple(self.notes), vision, self.source)

    def _dtype(self, asked: str | None) -> Dtype:
        stated = _first(self.text, _DTYPE) or _first(self.whole, _DTYPE)
        if stated is not None:
            stated = str(stated).removeprefix("torch.")
            if stated not in DTYPES:
                raise UsageError(f"{self.source}: field 'torch_dtype' is {stated!r}; allowed: {', '.join(DTYPES)}")
        if asked not in (None, "auto"):
            if asked not in DTYPES:
                raise UsageError(f"dtype {asked!r} is not allowed; allowed: auto, {', '.join(DTYPES)}")
            if stated not in (None, asked):
                self.notes.append(f"runs in {asked}, though the model's weights are {stated}")
            return asked
        if stated is None:
            self.notes.append("the config states no dtype; bfloat16 is assumed")
        return cast(Dtype, stated or "bfloat16")

    def _positive(
        self, names: tuple[str, ...], part: Mapping[str, Any], where: str, default: int | None = None, most: int = MOST
    ) -> int:
        """A positive integer under the first of `names` that is there."""
        name = next((n for n in names if part.get(n) is not None), None)
        if name is None:
            if default is not None:
                return default
            raise UsageError(
                f"{self.source}: field '{where}{names[0]}' is missing: without it the attention's shape is unknown"
            )
        value = part[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise UsageError(
                f"{self.source}: field '{where}{name}' is {shorten(repr(value))}; it must be a positive whole number"
                + (f" up to {most}" if isinstance(value, int) and value > most else "")
            )
        return value

    def _base(self, part: Mapping[str, Any], where: str) -> AttentionSpec:
        """Heads and sizes of one part, as plain paged attention."""
        heads = self._positive(_HEADS, part, where)
        kv_heads = self._positive(_KV_HEADS, part, where, default=heads)
        if heads % kv_heads:
            raise UsageError(
                f"{self.source}: field '{where}num_key_value_heads' is {kv_heads}; it must divide the {heads} attention heads"
            )
        head_dim = part.get("head_dim")
        if head_dim is None:
            hidden = self._positive(_HIDDEN, part, where)
            if hidden % heads:
                raise UsageError(
                    f"{self.source}: field '{where}hidden_size' is {hidden}; it must be a multiple of {heads} heads"
                )
            head_dim = hidden // heads
        else:
            head_dim = self._positive(("head_dim",), part, where)
        return AttentionSpec(
            dtype=self.dtype, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, block_size=self.block_size
        )

    def _mla(self) -> AttentionSpec:
        rank = self._positive(("kv_lora_rank",), self.text, self.where)
        rope = self._positive(("qk_rope_head_dim",), self.text, self.where)
        self.notes.append(
            "decode runs absorbed, over the compressed cache; the engine runs prefill expanded, on its own choice"
        )
        return AttentionSpec(
            op="mla_decode",
            dtype=self.dtype,
            num_heads=self._positive(_HEADS, self.text, self.where),
            num_kv_heads=1,
            head_dim=rank + rope,
            head_dim_v=rank,
            block_size=self.block_size,
            phases=frozenset({"decode"}),
        )

    def _layers(self) -> tuple[AttentionSpec, ...]:
        base = replace(self._base(self.text, self.where), op=self._op(), features=self._features())
        kinds = dict.fromkeys(self._windowed())
        if not kinds:
            raise UsageError(f"{self.source}: field '{self.where}layer_types' names no attention layer")
        return tuple(replace(base, features=base.features | {"window"}) if windowed else base for windowed in kinds)

    def _op(self) -> Op:
        if self.text.get("dual_chunk_attention_config"):
            return "dual_chunk"
        return "differential" if self.text.get("model_type") == "phi4flash" else "paged"

    def _features(self) -> frozenset[Feature]:
        """Features of every layer alike."""
        model_type = self.text.get("model_type")
        asked: dict[Feature, bool] = {
            "softcap": bool(self.text.get("attn_logit_softcapping")),
            "sinks": model_type == "gpt_oss",
            "alibi": bool(self.text.get("alibi")) or model_type == "bloom",
        }
        return frozenset(name for name, wanted in asked.items() if wanted)

    def _windowed(self) -> Iterator[bool]:
        """For every attention layer, whether it slides."""
        window = self.text.get("sliding_window")
        slides = isinstance(window, int) and window > 0 and self.text.get("use_sliding_window", True)
        count = self._positive(("num_hidden_layers", "n_layer"), self.text, self.where, default=1, most=MOST_LAYERS)
        types = self.text.get("layer_types")
        model_type = str(self.text.get("model_type", ""))
        if isinstance(types, list) and types:
            for kind in types:
                if not str(kind).startswith(_NOT_ATTENTION):
                    if kind not in _LAYER_KINDS:
                        known = ", ".join((*_LAYER_KINDS, *(f"{name}…" for name in _NOT_ATTENTION)))
                        raise UsageError(
                            f"{self.source}: field '{self.where}layer_types' has {shorten(repr(kind))}."
                            f"{did_you_mean(str(kind), _LAYER_KINDS)} Known: {known}"
                        )
                    yield kind == "sliding_attention"
        elif not slides:
            yield False
        elif model_type == "phi4flash":
            # Attention in every second layer; it slides in the first half, and is full from the middle on.
            yield from (
                layer < count // 2 for layer in range(1, count, self._positive(("mb_per_layer",), self.text, self.where, 2))
            )
        elif model_type == "gemma2":
            yield from (layer % 2 == 0 for layer in range(count))
        elif model_type.startswith("gemma3"):
            pattern = self._positive(("sliding_window_pattern",), self.text, self.where, default=6)
            yield from ((layer + 1) % pattern != 0 for layer in range(count))
        else:
            yield True

    def _vision(self) -> AttentionSpec | None:
        part = self.whole.get("vision_config")
        if not isinstance(part, dict) or _first(part, _HEADS) is None:
            return None
        self.notes.append("the vision tower is a need of its own: no causal mask, no cache; choose for it separately")
        # Qwen2-VL calls the tower's width embed_dim; its hidden_size there is the decoder's.
        width = {"hidden_size": part["embed_dim"]} if "embed_dim" in part else {}
        spec = self._base({**part, **width, "num_key_value_heads": None, "num_kv_heads": None}, "vision_config.")
        return replace(spec, op="varlen", block_size=None, phases=frozenset({"prefill"}), features=frozenset({"non_causal"}))


def _first(part: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((part[n] for n in names if part.get(n) is not None), None)
