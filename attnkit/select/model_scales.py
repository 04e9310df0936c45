"""The factor on q.k of model types whose softmax scale is not 1/sqrt(head size), read where vLLM's model code reads it."""

from __future__ import annotations

import math
from dataclasses import replace

from attnkit.select.model_fields import Part
from attnkit.spec import LayerKind, OtherLayers

_MULTIPLIED = frozenset(
    (
        "granite",
        "granite4_vision_text",
        "granite_swa",
        "granitemoe",
        "granitemoe_swa",
        "granitemoehybrid",
        "granitemoeshared",
        "hyperclovax",
    )
)
_BY_QUERY = frozenset(["gemma2", "gemma3_text", "rnj1", "t5gemma", "t5gemma2_text", "vaultgemma"])
_UNSCALED = frozenset(["gemma3n_text", "gemma4_vision"])


def scaled(part: Part, kind: LayerKind | OtherLayers) -> LayerKind | OtherLayers:
    """`kind` with its type's softmax scale; one that has a scale keeps it."""
    if not isinstance(kind, LayerKind) or kind.softmax_scale is not None:
        return kind
    scale = None
    if part.model_type in _UNSCALED:
        scale = 1.0
    elif part.model_type in _MULTIPLIED:
        scale = part.number("attention_multiplier")
    elif part.model_type in _BY_QUERY and (scalar := part.number("query_pre_attn_scalar")) is not None:
        scale = scalar**-0.5
    usual = scale is None or math.isclose(scale, kind.spec.head_dim**-0.5, rel_tol=1e-6)
    return kind if usual else replace(kind, softmax_scale=scale)


def mla_scale(part: Part) -> float:
    """1/sqrt of a query's width before absorption, times YaRN's mscale (`mscale_all_dim`) squared (DeepSeek-V2's own code)."""
    scale = 1.0 / math.sqrt(part.needed("qk_nope_head_dim") + part.needed("qk_rope_head_dim"))
    rope = next((found for name in ("rope_parameters", "rope_scaling") if isinstance(found := part.raw.get(name), dict)), {})
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        return scale
    inner = Part(part.source, f"{part.where}rope_parameters.", rope, "")
    factor, mscale = inner.number("factor") or 1.0, inner.number("mscale_all_dim") or 0.0
    return scale * (0.1 * mscale * math.log(max(factor, 1.0)) + 1.0) ** 2
