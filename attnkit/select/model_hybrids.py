"""Rules for latent attention, for models that mix attention with other layers or have none; see `model_reading.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from attnkit.select.model_fields import Part
from attnkit.select.model_reading import (
    COUNT,
    HEADS,
    HOLDS_NONE,
    KV_HEADS,
    Reading,
    Rule,
    layer_count,
    plain_layers,
    words_of,
)
from attnkit.select.model_scales import mla_scale
from attnkit.spec import AttentionSpec, LayerKind, OtherLayers

# Multi-head latent attention


def mla(part: Part, reading: Reading) -> None:
    """DeepSeek's, absorbed, over the compressed cache; with an indexer (`index_topk`) over the keys that it picks."""
    count = layer_count(part) * (2 if part.model_type == "longcat_flash" else 1)  # its layers hold two attentions each
    reading.add([_latent(part, reading, count)])


def _latent(part: Part, reading: Reading, count: int) -> LayerKind:
    rank, rope = part.needed("kv_lora_rank"), part.needed("qk_rope_head_dim")
    part.integer("q_lora_rank"), part.integer("v_head_dim")
    part.get("num_key_value_heads"), part.get("head_dim"), part.get("qk_head_dim")
    sparse = part.integer("index_topk") is not None
    words = part.layer_words("layer_types")
    if words is not None and not set(words) <= {"full_attention", "indexed_attention"}:
        part.not_understood("layer_types", f"layers other than full and indexed attention in model type {part.model_type!r}")
    if words is not None and ("indexed_attention" in words) != sparse:
        part.not_understood("layer_types", "indexed attention without index_topk, or the other way round")
    if sparse:
        part.integer("index_n_heads"), part.integer("index_head_dim"), part.get("indexer_types"), part.get("index_topk_freq")
        reading.notes.append(
            "sparse MLA: an indexer picks the keys, which only an engine's own *_SPARSE backends compute; dense MLA backends "
            "compute something else, and attnkit has no test for the sparse ones"
        )
    else:
        reading.notes.append(
            "decode runs absorbed, over the compressed cache; the engine runs prefill expanded, on its own choice"
        )
    spec = AttentionSpec(
        op="sparse_mla" if sparse else "mla_decode",
        dtype=reading.dtype,
        num_heads=part.needed(*HEADS),
        num_kv_heads=1,
        head_dim=rank + rope,
        head_dim_v=rank,
        block_size=reading.block_size,
        phases=frozenset({"decode"}),
    )
    return LayerKind("decoder", count, spec, softmax_scale=mla_scale(part))


# Hybrids: some layers hold softmax attention


def hybrid(
    otherwise: Callable[[Part, int, int], str], *fields: str, attention: tuple[str, ...] = ("full_attention", "attention")
) -> Rule:
    """Layers by `layer_types` or `layers_block_type`, else by `otherwise(part, layer, count)`; the rest is outside attention.

    Args:
        fields: further fields that `otherwise` reads.
        attention: words whose layers hold attention (beside whatever else).
    """

    def rule(part: Part, reading: Reading) -> None:
        for name in fields:
            part.get(name)
        stated = part.raw.get("layer_types") or part.raw.get("layers_block_type")
        count = part.integer(*COUNT) or (len(stated) if isinstance(stated, list) else 0) or layer_count(part)
        words = words_of(part, count, lambda i: otherwise(part, i, count))
        words = ["full_attention" if word in attention else word for word in words]
        window = part.window("sliding_window") if "sliding_attention" in words else None
        reading.add(plain_layers(part, reading, words, window))

    return rule


def missing_words(part: Part, layer: int, count: int) -> str:
    """For types whose configuration always states its layers."""
    part.not_understood("layer_types", "it is missing, and the layers of this model type follow no rule")


def interval(name: str, default: int) -> Callable[[Part, int, int], str]:
    """Every n-th layer is full attention, the others linear."""
    return lambda part, i, _: "linear_attention" if (i + 1) % (part.integer(name) or default) else "full_attention"


def jamba(part: Part, layer: int, _: int) -> str:
    """`attn_layer_period` and `attn_layer_offset`."""
    period, offset = part.integer("attn_layer_period") or 8, part.window("attn_layer_offset") or 0
    return "full_attention" if layer % period == offset else "mamba"


def bamba(part: Part, layer: int, _: int) -> str:
    """`attn_layer_indices`."""
    return "full_attention" if layer in (part.indices("attn_layer_indices") or []) else "mamba2"


def lfm2(part: Part, layer: int, count: int) -> str:
    """`full_attn_idxs`; all where it is not stated."""
    chosen = part.indices("full_attn_idxs")
    return "full_attention" if chosen is None or layer in chosen else "conv"


def nemotron_h(part: Part, reading: Reading) -> None:
    """`hybrid_override_pattern`: M is Mamba 2, * attention, - and E feed-forward."""
    pattern = part.get("hybrid_override_pattern")[1]
    if isinstance(pattern, str) and part.raw.get("layer_types") is None and part.raw.get("layers_block_type") is None:
        letters = {"M": "mamba2", "*": "full_attention", "-": "mlp", "E": "moe"}
        if not pattern or not set(pattern) <= set(letters):
            part.wrong("hybrid_override_pattern", "a text of the letters M, *, - and E")
        words = [letters[letter] for letter in pattern]
    else:
        words = part.layer_words("layers_block_type", "layer_types") or []
        if not words:
            missing_words(part, 0, 0)
        words = ["full_attention" if word == "attention" else word for word in words]
    part.integer(*COUNT)
    window = part.window("sliding_window")
    reading.add(plain_layers(part, reading, words, window))


def zamba2(part: Part, reading: Reading) -> None:
    """Every layer is Mamba 2; hybrid ones share attention before it, over twice the hidden size: the head size is
    `attention_head_dim`."""
    count = layer_count(part)
    shared = part.indices("hybrid_layer_ids")
    words = words_of(part, count, lambda i: "hybrid" if shared and i in shared else "mamba2")
    if shared is None and part.raw.get("layers_block_type") is None and part.raw.get("layer_types") is None:
        missing_words(part, 0, count)
    heads = part.needed(*HEADS)
    kv_heads = part.integer(*KV_HEADS) or heads
    dim = part.integer("attention_head_dim") or 2 * part.needed("hidden_size") // heads
    part.get("attention_hidden_size"), part.get("kv_channels"), part.get("num_query_groups")
    part.get("use_shared_attention_adapter")
    kind = LayerKind("decoder", 1, reading.spec(heads, kv_heads, dim), softmax_scale=(dim / 2) ** -0.5)
    reading.add([kind] * words.count("hybrid") + [OtherLayers(count, HOLDS_NONE["mamba2"])])


def both_in_every_layer(part: Part, reading: Reading) -> None:
    """Falcon-H1: attention and Mamba 2 side by side in every layer."""
    count = layer_count(part)
    reading.add(plain_layers(part, reading, ["full_attention"] * count, None))
    reading.add([OtherLayers(count, HOLDS_NONE["mamba2"])])
    part.layer_words("layers_block_type", "layer_types")


def kimi_linear(part: Part, reading: Reading) -> None:
    """Full layers are MLA; the others linear attention."""
    count = layer_count(part)
    linear = part.inner("linear_attn_config")
    full = linear.indices("full_attn_layers") if linear else None
    stated = part.layer_words("layer_types")
    if full is None and stated is None:
        missing_words(part, 0, count)
    number = sum(word == "full_attention" for word in stated) if stated else len(full or [])
    reading.add(
        [replace(_latent(Part(part.source, part.where, _without(part.raw, "layer_types"), part.model_type), reading, number))]
    )
    reading.add([OtherLayers(count - number, HOLDS_NONE["linear_attention"])])
    for name in (
        "kv_lora_rank",
        "q_lora_rank",
        "qk_rope_head_dim",
        "qk_nope_head_dim",
        "v_head_dim",
        "head_dim",
        *HEADS,
        *KV_HEADS,
    ):
        part.get(name) if name in part.raw else None


def _without(raw: Any, *names: str) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if name not in names}


def attention_free(what: str) -> Rule:
    """No softmax attention in any layer; their heads are not attention's."""

    def rule(part: Part, reading: Reading) -> None:
        reading.add([OtherLayers(layer_count(part), what)])
        for name in part.raw:
            part.get(name)

    return rule
