"""What a rule for a family of models reads with: a configuration's part, the layers found so far, and layers in words.

A rule takes a `Part` and yields `LayerKind`s, one per distinct kind, and `OtherLayers`. `model_types.py` says which model type
follows which rule; the rules are in `model_decoders.py`, `model_hybrids.py` and `model_encoders.py`. Sources: the
configuration and modeling code of transformers 5.24, vLLM 0.33's model_executor and the remote code of the models' own
repositories.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from attnkit.errors import UsageError
from attnkit.select.model_fields import Part
from attnkit.spec import AttentionSpec, Dtype, Feature, LayerKind, OtherLayers

HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads")
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "model_dim")
COUNT = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
MOST_LAYERS = 10_000

HOLDS_NONE = {
    "linear_attention": "linear attention",
    "mamba": "state-space (Mamba)",
    "mamba2": "state-space (Mamba 2)",
    "conv": "short convolution",
    "recurrent": "recurrent",
    "moe": "experts alone",
    "mlp": "feed-forward alone",
}


@dataclass
class Reading:
    """What is the same for a whole model while it is read, and what is found.

    Args:
        dtype, block_size: of the specs.
        found: kinds and other layers, in order.
        notes: what a person should know.
        missing: what is not understood, of towers: the language model's layers are known nevertheless.
    """

    dtype: Dtype
    block_size: int
    found: list[LayerKind | OtherLayers] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def spec(self, heads: int, kv_heads: int, dim: int, dim_v: int | None = None, *features: Feature) -> AttentionSpec:
        """Causal attention over a paged cache."""
        return AttentionSpec(
            dtype=self.dtype,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            head_dim_v=None if dim_v in (None, dim) else dim_v,
            block_size=self.block_size,
            features=frozenset(features),
        )

    def add(self, kinds: Iterable[LayerKind | OtherLayers]) -> None:
        """Add layers one by one; equal ones are counted together."""
        counted: Counter[LayerKind | OtherLayers] = Counter()
        for kind in kinds:
            counted[replace(kind, count=1)] += kind.count
        self.found += [replace(kind, count=count) for kind, count in counted.items()]


Rule: TypeAlias = Callable[[Part, Reading], None]


def uncached(kind: LayerKind, *features: Feature) -> LayerKind:
    """The same without a cache: packed sequences, no causal mask, and `features`."""
    spec = replace(
        kind.spec,
        op="varlen",
        block_size=None,
        phases=frozenset({"prefill"}),
        features=kind.spec.features | {"non_causal", *features},
    )
    return replace(kind, spec=spec)


def shape(part: Part, heads: tuple[str, ...] = HEADS, kv_heads: tuple[str, ...] = KV_HEADS, *dims: str) -> tuple[int, int, int]:
    """(query heads, key heads, head size) of a part; `dims`: names under which the head size may stand."""
    num_heads = part.needed(*heads)
    num_kv_heads = part.integer(*kv_heads) or num_heads
    if num_heads % num_kv_heads:
        part.wrong(part.get(*kv_heads)[0], f"a divisor of the {num_heads} attention heads")
    return num_heads, num_kv_heads, head_dim(part, num_heads, *dims)


def layer_count(part: Part, *names: str) -> int:
    """How many layers there are; `names`: more names under which that may stand."""
    count = part.needed(*names, *COUNT)
    if count > MOST_LAYERS:
        part.wrong(part.get(*names, *COUNT)[0], f"at most {MOST_LAYERS}")
    return count


NO_HEAD_DIM = frozenset(
    (
        "bloom",
        "dbrx",
        "deepseek",
        "falcon",
        "gptj",
        "granitemoe",
        "granitemoeshared",
        "granitemoe_swa",
        "internlm2",
        "jamba",
        "lfm2",
        "mimo",
        "minicpm",
        "olmoe",
        "orion",
        "qwen2",
        "qwen2_moe",
        "stablelm",
    )
)
"""Types for which vLLM takes the hidden size over the heads, without a look at `head_dim`."""


def head_dim(part: Part, heads: int, *dims: str) -> int:
    """The stated head size, else hidden size over heads."""
    stated = part.integer(*(dims or ("head_dim",)))
    unheeded = stated is not None and part.model_type in NO_HEAD_DIM
    if stated is not None and not unheeded:
        return stated
    hidden = part.needed(*HIDDEN)
    if unheeded and stated != hidden // heads:
        part.not_understood("head_dim", f"model type {part.model_type!r} computes with {hidden // heads}, whatever it says")
    if hidden % heads:
        part.wrong(part.get(*HIDDEN)[0], f"a multiple of {heads} heads")
    return hidden // heads


def words_of(part: Part, count: int, otherwise: Callable[[int], str], *, extra: tuple[str, ...] = ()) -> list[str]:
    """One word a layer: as stated, else by the type's own pattern.

    Raises:
        UsageError: as many words as layers are needed.
    """
    stated = part.layer_words("layer_types", "layers_block_type", extra=extra)
    if stated is None:
        return [otherwise(i) for i in range(count)]
    if len(stated) != count:
        raise UsageError(f"{part.source}: field '{part.where}layer_types' has {len(stated)} entries for {count} layers")
    return stated


SOFTCAPPED = frozenset({"gemma2", "vaultgemma"})
"""Types whose code caps the scores; in a file of another type nobody reads `attn_logit_softcapping`."""


def plain_layers(
    part: Part, reading: Reading, words: list[str], window: int | None, **changes: Any
) -> list[LayerKind | OtherLayers]:
    """Decoder layers by their words, with one geometry; `changes`: what else a LayerKind holds."""
    heads, kv_heads, dim = shape(part)
    cap = part.number("attn_logit_softcapping") if part.model_type in SOFTCAPPED else None
    base = LayerKind("decoder", 1, reading.spec(heads, kv_heads, dim), softcap=cap, **changes)
    if cap:
        base = with_features(base, "softcap")
    return [by_word(part, base, word, window) for word in words]


def by_word(part: Part, base: LayerKind, word: str, window: int | None) -> LayerKind | OtherLayers:
    """`base` as a layer of this word."""
    if word in HOLDS_NONE:
        return OtherLayers(1, HOLDS_NONE[word])
    if word in ("full_attention", "attention"):
        return base
    if word == "sliding_attention":
        if window is None:
            raise UsageError(
                f"{part.source}: field '{part.where}layer_types' names sliding_attention, but field "
                f"'{part.where}sliding_window' is missing"
            )
        return replace(with_features(base, "window"), window=window)
    if word == "chunked_attention":
        return replace(with_features(base, "chunked"), chunk=part.needed("attention_chunk_size"))
    part.not_understood("layer_types", f"what {word!r} computes in model type {part.model_type!r}")


def with_features(kind: LayerKind, *features: Feature) -> LayerKind:
    """`kind` with more features in its spec."""
    return replace(kind, spec=replace(kind.spec, features=kind.spec.features | {*features}))


# Decoders
