"""What the layers of each family of models compute, read from a configuration's fields.

A rule takes a `Part` and yields `LayerKind`s, one per distinct kind, and `OtherLayers`. `model_types.py` says which model type
follows which rule. Sources: the configuration and modeling code of transformers 5.24, vLLM 0.33's model_executor and the remote
code of the models' own repositories.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from attnkit.errors import UsageError
from attnkit.select.model_fields import Part
from attnkit.spec import AttentionSpec, Dtype, Feature, LayerKind, LayerRole, OtherLayers

HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads")
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "model_dim")
COUNT = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
MOST_LAYERS = 10_000

_HOLDS_NONE = {
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


def head_dim(part: Part, heads: int, *dims: str) -> int:
    """The stated head size, else hidden size over heads."""
    stated = part.integer(*(dims or ("head_dim",)))
    if stated is not None:
        return stated
    hidden = part.needed(*HIDDEN)
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


def plain_layers(
    part: Part, reading: Reading, words: list[str], window: int | None, **changes: Any
) -> list[LayerKind | OtherLayers]:
    """Decoder layers by their words, with one geometry; `changes`: what else a LayerKind holds."""
    heads, kv_heads, dim = shape(part)
    cap = part.number("attn_logit_softcapping")
    base = LayerKind("decoder", 1, reading.spec(heads, kv_heads, dim), softcap=cap, **changes)
    if cap:
        base = with_features(base, "softcap")
    return [by_word(part, base, word, window) for word in words]


def by_word(part: Part, base: LayerKind, word: str, window: int | None) -> LayerKind | OtherLayers:
    """`base` as a layer of this word."""
    if word in _HOLDS_NONE:
        return OtherLayers(1, _HOLDS_NONE[word])
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


def causal(part: Part, reading: Reading, kinds: list[LayerKind | OtherLayers]) -> None:
    """Add decoder layers; a checkpoint of a decoder made bidirectional for embeddings says so in two ways."""
    architectures = part.items("architectures") or []
    if part.raw.get("is_causal") is False or any("Bidirectional" in str(name) for name in architectures):
        part.get("is_causal")
        kinds = [
            uncached(replace(k, role="encoder", two_sided=k.window is not None)) if isinstance(k, LayerKind) else k
            for k in kinds
        ]
    else:
        part.flag("is_causal", default=True)
    reading.add(kinds)


def decoder(part: Part, reading: Reading) -> None:
    """Every layer alike, or as `layer_types` says; `sliding_window` alone means nothing to these types."""
    count = layer_count(part)
    words = words_of(part, count, lambda i: "full_attention")
    window = part.window("sliding_window") if "sliding_attention" in words else None
    causal(part, reading, plain_layers(part, reading, words, window))


def all_slide(part: Part, reading: Reading) -> None:
    """`sliding_window` holds for every layer, unless `layer_types` says for which."""
    window = part.window("sliding_window")
    count = layer_count(part)
    if not part.flag("use_sliding_window", default=True):
        window = None
    words = words_of(part, count, lambda i: "sliding_attention" if window else "full_attention")
    causal(part, reading, plain_layers(part, reading, words, window))


def from_max_window_layers(part: Part, reading: Reading) -> None:
    """Qwen: layers from `max_window_layers` on slide, where `use_sliding_window` turns it on."""
    count = layer_count(part)
    window = part.window("sliding_window")
    first = part.window("max_window_layers") or 0
    if part.raw.get("max_window_layers") is None and part.get("max_window_layers")[1] is None:
        first = count
    if not part.flag("use_sliding_window", default=part.model_type == "dots1"):
        window = None
    words = words_of(part, count, lambda i: "sliding_attention" if window and i >= first else "full_attention")
    if window is None:  # the class drops the window then, whatever layer_types says
        words = ["full_attention" if word == "sliding_attention" else word for word in words]
    kinds = plain_layers(part, reading, words, window)
    if part.get("dual_chunk_attention_config")[1]:
        kinds = [replace(k, spec=replace(k.spec, op="dual_chunk")) if isinstance(k, LayerKind) else k for k in kinds]
    causal(part, reading, kinds)


def every(period: int, *fields: str, full_at: int = -1, sinks: bool = False, last_full: bool = False) -> Rule:
    """All but one layer in `period` slide: the one at `full_at` of each period sees everything.

    Args:
        fields: names that may state the period.
        sinks: every layer has a sink.
        last_full: the last layer sees everything, whatever the period says.
    """

    def rule(part: Part, reading: Reading) -> None:
        count = layer_count(part)
        window = part.window("sliding_window")
        stated = bool(part.raw.get("layer_types"))
        step = (part.integer(*fields) if fields and not stated else None) or period
        part.get(*fields) if fields else None
        bidirectional = _bidirectional(part, reading)

        def word(i: int) -> str:
            full = i % step == full_at % step or (last_full and i == count - 1)
            return "full_attention" if full or window is None else "sliding_attention"

        kinds = plain_layers(part, reading, words_of(part, count, word), window)
        if sinks:
            kinds = [with_features(k, "sinks") if isinstance(k, LayerKind) else k for k in kinds]
        if bidirectional:
            kinds = [_embedding(k) if isinstance(k, LayerKind) else k for k in kinds]
        causal(part, reading, kinds)

    return rule


def _embedding(kind: LayerKind) -> LayerKind:
    """EmbeddingGemma: no causal mask, and half the window on each side."""
    half = None if kind.window is None else kind.window // 2
    return uncached(replace(kind, role="encoder", window=half, two_sided=half is not None))


def _bidirectional(part: Part, reading: Reading) -> bool:
    """Gemma's `use_bidirectional_attention`: true makes an encoder; "vision" concerns the tokens of an image alone."""
    name, value = part.get("use_bidirectional_attention")
    if value == "vision":
        reading.notes.append("tokens of one image see one another without a causal mask; the engine's choice must honour that")
        return False
    if value not in (None, False, True):
        part.not_understood(name, f"what {value!r} means for the causal mask")
    return bool(value)


def gemma4(part: Part, reading: Reading) -> None:
    """Full layers have heads of their own size and number."""
    count = layer_count(part)
    words = words_of(part, count, lambda i: "sliding_attention" if (i + 1) % 6 and i < count - 1 else "full_attention")
    if _bidirectional(part, reading):
        part.not_understood("use_bidirectional_attention", "what Gemma 4 computes without a causal mask")
    window = part.window("sliding_window")
    heads, kv_heads, dim = shape(part)
    words[-1] = "full_attention"  # forced by the class
    # attention_k_eq_v: full layers share keys and values, and only then have key heads of their own number.
    shared = part.flag("attention_k_eq_v")
    wide, few = part.integer("global_head_dim") or 512, part.integer("num_global_key_value_heads")
    few = few if shared else None
    overrides = per_layer(part, words, "full_attention", "head_dim", "num_key_value_heads")
    if overrides is not None:
        wide, few = overrides.get("head_dim", dim), overrides.get("num_key_value_heads")
    sliding = LayerKind("decoder", 1, reading.spec(heads, kv_heads, dim), softmax_scale=1.0)
    full = LayerKind("decoder", 1, reading.spec(heads, few or kv_heads, wide), softmax_scale=1.0)
    causal(part, reading, [by_word(part, full if word == "full_attention" else sliding, word, window) for word in words])


def per_layer(part: Part, words: list[str], word: str, *names: str) -> dict[str, int] | None:
    """What `per_layer_config` changes in the layers of one word; None where it is not there.

    Raises:
        NotUnderstoodError: it changes other fields, other layers, or not all of them alike.
    """
    overrides = part.get("per_layer_config")[1]
    if overrides is None:
        return None
    if not isinstance(overrides, dict) or not all(str(key).isdigit() for key in overrides):
        part.wrong("per_layer_config", "an object with a layer's number for each key")
    changed = list(overrides.values())
    layers = {int(key) for key in overrides}
    concerned = {index for index, own in enumerate(words) if own == word}
    if layers != concerned or any(other != changed[0] for other in changed) or not set(changed[0]) <= set(names):
        part.not_understood("per_layer_config", f"only {', '.join(names)} of every {word} layer, all alike, are")
    inner = Part(part.source, f"{part.where}per_layer_config.", changed[0], "")
    return {name: inner.needed(name) for name in changed[0]}


def llama4(part: Part, reading: Reading) -> None:
    """Chunked local attention wherever there is rotary embedding."""
    count = layer_count(part)
    interval = part.integer("no_rope_layer_interval") or 4
    rope = part.items("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(count)]
    chunk = part.integer("attention_chunk_size")
    words = words_of(part, count, lambda i: "chunked_attention" if rope[i] and chunk else "full_attention")
    causal(part, reading, plain_layers(part, reading, words, None))


def smollm3(part: Part, reading: Reading) -> None:
    """Layers without rotary embedding slide, where `use_sliding_window` turns it on."""
    count = layer_count(part)
    interval = part.integer("no_rope_layer_interval") or 4
    rope = part.items("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(count)]
    window = part.window("sliding_window") if part.flag("use_sliding_window") else None
    words = words_of(part, count, lambda i: "sliding_attention" if window and not rope[i] else "full_attention")
    causal(part, reading, plain_layers(part, reading, words, window))


def mimo_v2(part: Part, reading: Reading) -> None:
    """Sliding layers have heads of their own; which of the two kinds has sinks is stated."""
    count = layer_count(part)
    pattern = part.items("hybrid_layer_pattern")
    if pattern is not None and (len(pattern) != count or not set(pattern) <= {0, 1}):
        part.wrong("hybrid_layer_pattern", f"a list of {count} zeros and ones")
    words = words_of(
        part,
        count,
        lambda i: (
            ("sliding_attention" if pattern[i] else "full_attention")
            if pattern
            else ("full_attention" if i == 0 or not (i + 1) % 6 else "sliding_attention")
        ),
    )
    part.get("attention_chunk_size")  # written beside the window, and read by nobody
    window = part.window("sliding_window_size") or part.window("sliding_window")
    part.get("sliding_window")
    heads, kv_heads, dim = shape(part)
    full = LayerKind("decoder", 1, reading.spec(heads, kv_heads, dim, part.integer("v_head_dim")))
    swa_heads = part.integer("swa_num_attention_heads") or heads
    native = part.integer("swa_num_key_value_heads") is None  # transformers' own format leaves to its code what differs
    swa_kv = part.integer("swa_num_key_value_heads") or 2 * kv_heads
    swa_dim = part.integer("swa_head_dim") or dim
    sliding = LayerKind("decoder", 1, reading.spec(swa_heads, swa_kv, swa_dim, part.integer("swa_v_head_dim", "v_head_dim")))
    if part.flag("add_full_attention_sink_bias"):
        full = with_features(full, "sinks")
    if part.flag("add_swa_attention_sink_bias", default=native):
        sliding = with_features(sliding, "sinks")
    causal(part, reading, [by_word(part, sliding if word == "sliding_attention" else full, word, window) for word in words])


def gpt_neo(part: Part, reading: Reading) -> None:
    """Layers are global or local by `attention_layers` (or the run lengths in `attention_types`); the softmax is unscaled."""
    count = layer_count(part)
    words = part.items("attention_layers")
    if words is None:
        types = part.items("attention_types") or [[["global", "local"], 12]]
        words = [word for group, times in types for _ in range(times) for word in group]
    else:
        part.get("attention_types")
    if len(words) != count or not set(words) <= {"global", "local"}:
        part.wrong("attention_layers", f"a list of {count} words, global or local")
    window = part.window("window_size") or 256
    named = ["sliding_attention" if word == "local" else "full_attention" for word in words]
    reading.add(plain_layers(part, reading, named, window, softmax_scale=1.0))


def alibi(part: Part, reading: Reading) -> None:
    """BLOOM: ALiBi in every layer."""
    heads, kv_heads, dim = shape(part)
    kind = LayerKind("decoder", layer_count(part), reading.spec(heads, kv_heads, dim, None, "alibi"))
    reading.add([kind])


def mpt(part: Part, reading: Reading) -> None:
    """ALiBi and key heads stand in `attn_config`."""
    inner = part.inner("attn_config") or Part(part.source, "attn_config.", {}, "")
    heads = part.needed("n_heads", *HEADS)
    kv_heads = inner.integer("kv_n_heads") or (1 if inner.get("attn_type")[1] == "multiquery_attention" else heads)
    window = inner.window("sliding_window_size")
    features: list[Feature] = ["alibi"] if inner.flag("alibi", default=True) else []
    features += ["prefix_lm"] if inner.flag("prefix_lm") else []
    inner.finish("attn_type", "attn_uses_sequence_id", "alibi_bias_max", "qk_ln", "qk_gn")
    spec = reading.spec(heads, kv_heads, head_dim(part, heads), None, *features)
    kind = LayerKind("decoder", layer_count(part), spec, softmax_scale=inner.number("softmax_scale"))
    reading.add([kind if window is None else replace(with_features(kind, "window"), window=window)])


def dbrx(part: Part, reading: Reading) -> None:
    """Key heads stand in `attn_config`."""
    inner = part.inner("attn_config") or Part(part.source, "attn_config.", {}, "dbrx_attention")
    heads = part.needed("n_heads", *HEADS)
    kv_heads = inner.integer("kv_n_heads") or 1
    inner.finish("clip_qkv")
    part.get("num_key_value_heads")
    reading.add([LayerKind("decoder", layer_count(part), reading.spec(heads, kv_heads, head_dim(part, heads)))])


def falcon(part: Part, reading: Reading) -> None:
    """One key head with `multi_query`, unless it is the new architecture, which states how many."""
    heads = part.needed(*HEADS)
    stated = part.integer(*KV_HEADS)
    if part.flag("new_decoder_architecture"):
        kv_heads = stated or heads
        part.get("multi_query")
    else:
        kv_heads = 1 if part.flag("multi_query", default=True) else heads
    features: tuple[Feature, ...] = ("alibi",) if part.flag("alibi") else ()
    part.flag("parallel_attn", default=True)
    part.get("num_ln_in_parallel_attn")
    reading.add(
        [LayerKind("decoder", layer_count(part), reading.spec(heads, kv_heads, head_dim(part, heads), None, *features))]
    )


def gpt_bigcode(part: Part, reading: Reading) -> None:
    """`multi_query`: one key head."""
    heads = part.needed(*HEADS)
    kv_heads = 1 if part.flag("multi_query", default=True) else heads
    part.get("num_key_value_heads"), part.get("pre_allocate_kv_cache"), part.get("pad_key_length")
    reading.add([LayerKind("decoder", layer_count(part), reading.spec(heads, kv_heads, head_dim(part, heads)))])


def chatglm(part: Part, reading: Reading) -> None:
    """`multi_query_group_num` key heads where `multi_query_attention` is on."""
    heads = part.needed(*HEADS)
    kv_heads = part.needed("multi_query_group_num") if part.flag("multi_query_attention") else heads
    part.get("multi_query_group_num")
    dim = part.integer("kv_channels") or head_dim(part, heads)
    reading.add([LayerKind("decoder", layer_count(part), reading.spec(heads, kv_heads, dim))])


def nemotron_nas(part: Part, reading: Reading) -> None:
    """`block_configs`: key heads a layer, and layers whose attention was taken out."""
    heads = part.needed(*HEADS)
    dim = head_dim(part, heads)
    blocks = part.items("block_configs")
    count = layer_count(part)
    if blocks is None or len(blocks) != count:
        part.wrong("block_configs", f"a list with one object for each of {count} layers")
    kinds: list[LayerKind | OtherLayers] = []
    for index, block in enumerate(blocks):
        attention = block.get("attention") if isinstance(block, dict) else None
        if not isinstance(attention, dict):
            part.wrong("block_configs", f"a list of objects, each with an object 'attention'; entry {index} is not")
        inner = Part(part.source, f"{part.where}block_configs[{index}].attention.", attention, "")
        without, linear = inner.flag("no_op"), inner.flag("replace_with_linear")
        group = inner.integer("n_heads_in_group")
        inner.finish("unshifted_sink", "use_prefill_window_in_sink_attention")
        if without or linear:
            kinds.append(OtherLayers(1, "attention replaced by a linear layer" if linear else "no attention (block removed)"))
        elif group is None or heads % group:
            inner.wrong("n_heads_in_group", f"a divisor of the {heads} attention heads")
        else:
            kinds.append(LayerKind("decoder", 1, reading.spec(heads, heads // group, dim)))
    part.get("num_key_value_heads")
    reading.add(kinds)


def openelm(part: Part, reading: Reading) -> None:
    """Heads are lists, one number a layer."""
    count = layer_count(part, "num_transformer_layers")
    heads, kv_heads = part.items("num_query_heads"), part.items("num_kv_heads")
    dim = part.needed("head_dim")
    for name, numbers in (("num_query_heads", heads), ("num_kv_heads", kv_heads)):
        if numbers is None or len(numbers) != count or not all(type(n) is int and n > 0 for n in numbers):
            part.wrong(name, f"a list of {count} positive whole numbers")
    part.get("num_gqa_groups")
    pairs = list(zip(heads or [], kv_heads or [], strict=True))
    if any(h % k for h, k in pairs):
        part.wrong("num_kv_heads", "for each layer a divisor of its query heads")
    reading.add([LayerKind("decoder", 1, reading.spec(h, k, dim)) for h, k in pairs])


def differential(part: Part, reading: Reading) -> None:
    """DiffLlama: pairs of heads, the difference of two softmaxes."""
    heads, kv_heads, dim = shape(part)
    spec = replace(reading.spec(heads, kv_heads, dim), op="differential")
    part.get("lambda_std_dev")
    reading.add([LayerKind("decoder", layer_count(part), spec)])


def phi4flash(part: Part, reading: Reading) -> None:
    """Differential attention in every second layer: it slides in the first half, and is full from the middle on."""
    count = layer_count(part)
    step = part.integer("mb_per_layer") or 2
    window = part.window("sliding_window")
    heads, kv_heads, dim = shape(part)
    base = LayerKind("decoder", 1, replace(reading.spec(heads, kv_heads, dim), op="differential"))
    kinds: list[LayerKind | OtherLayers] = []
    for i in range(count):
        if i % step == 0:
            kinds.append(OtherLayers(1, _HOLDS_NONE["mamba"]))
        else:
            kinds.append(by_word(part, base, "sliding_attention" if window and i < count // 2 else "full_attention", window))
    reading.add(sorted(kinds, key=lambda k: isinstance(k, OtherLayers)))


# Multi-head latent attention


def mla(part: Part, reading: Reading) -> None:
    """DeepSeek's, absorbed, over the compressed cache; with an indexer (`index_topk`) over the keys that it picks."""
    count = layer_count(part) * (2 if part.model_type == "longcat_flash" else 1)  # its layers hold two attentions each
    reading.add([_latent(part, reading, count)])


def _latent(part: Part, reading: Reading, count: int) -> LayerKind:
    rank, rope = part.needed("kv_lora_rank"), part.needed("qk_rope_head_dim")
    part.integer("q_lora_rank"), part.integer("qk_nope_head_dim"), part.integer("v_head_dim")
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
    return LayerKind("decoder", count, spec)


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
    """Hybrid layers share attention over twice the hidden size: the head size is `attention_head_dim`."""
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
    outside = OtherLayers(1, _HOLDS_NONE["mamba2"])
    reading.add([kind if word == "hybrid" else outside for word in words])


def both_in_every_layer(part: Part, reading: Reading) -> None:
    """Falcon-H1: attention and Mamba 2 side by side in every layer."""
    count = layer_count(part)
    reading.add(plain_layers(part, reading, ["full_attention"] * count, None))
    reading.add([OtherLayers(count, _HOLDS_NONE["mamba2"])])
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
    reading.add([OtherLayers(count - number, _HOLDS_NONE["linear_attention"])])
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


# Encoders, and encoders with decoders


def encoder(part: Part, reading: Reading) -> None:
    """BERT and its kind: every token sees every other; with `is_decoder`, a decoder."""
    heads, kv_heads, dim = shape(part)
    position = part.get("position_embedding_type")[1]
    if position not in (None, "absolute", "rope", "rotary"):
        part.not_understood("position_embedding_type", f"{position!r} adds a term to the scores that no kernel here computes")
    kind = LayerKind("encoder", layer_count(part), reading.spec(heads, kv_heads, dim))
    if part.flag("is_decoder"):
        reading.add([replace(kind, role="decoder")])
    else:
        reading.add([uncached(kind)])
    if part.flag("add_cross_attention"):
        reading.add([uncached(replace(kind, role="cross"), "cross")])


def modernbert(part: Part, reading: Reading) -> None:
    """All layers but one in `global_attn_every_n_layers` see `local_attention` / 2 tokens on each side."""
    count = layer_count(part)
    step = part.integer("global_attn_every_n_layers") or 3
    words = words_of(part, count, lambda i: "sliding_attention" if i % step else "full_attention")
    local = part.needed("local_attention")
    heads, kv_heads, dim = shape(part)
    base = LayerKind("encoder", 1, reading.spec(heads, kv_heads, dim))
    kinds = [by_word(part, base, word, local // 2) for word in words]
    reading.add([uncached(replace(k, two_sided=k.window is not None)) for k in kinds if isinstance(k, LayerKind)])


def encoder_decoder(part: Part, reading: Reading) -> None:
    """BART, Whisper and their kind."""
    enc = part.needed("encoder_attention_heads", "num_attention_heads")
    dec = part.needed("decoder_attention_heads", "num_attention_heads")
    hidden = part.needed(*HIDDEN)
    for name, heads in (("encoder_attention_heads", enc), ("decoder_attention_heads", dec)):
        if hidden % heads:
            part.wrong(name, f"a divisor of the hidden size {hidden}")
    layers = part.needed("decoder_layers", "num_hidden_layers")
    encoder_kind = LayerKind(
        "encoder", part.needed("encoder_layers", "num_hidden_layers"), reading.spec(enc, enc, hidden // enc)
    )
    decoder_kind = LayerKind("decoder", layers, reading.spec(dec, dec, hidden // dec))
    part.get("is_encoder_decoder"), part.get("is_decoder"), part.get("num_hidden_layers"), part.get("add_cross_attention")
    reading.add([uncached(encoder_kind), decoder_kind, uncached(replace(decoder_kind, role="cross"), "cross")])


def t5(part: Part, reading: Reading) -> None:
    """A learned bias by distance in every self-attention, and no softmax scale."""
    heads, dim = part.needed(*HEADS), part.needed("d_kv")
    layers = layer_count(part)
    kind = LayerKind("encoder", layers, reading.spec(heads, heads, dim), softmax_scale=1.0)
    part.get("relative_attention_num_buckets"), part.get("relative_attention_max_distance"), part.get("is_encoder_decoder")
    reading.add([uncached(with_features(kind, "relative_bias"))])
    if part.flag("is_encoder_decoder", default=True):
        later = part.integer("num_decoder_layers") or layers
        below = replace(kind, role="decoder", count=later)
        reading.add([with_features(below, "relative_bias"), uncached(replace(below, role="cross"), "cross")])


def mllama(part: Part, reading: Reading) -> None:
    """Layers in `cross_attention_layers` attend to the image's states instead."""
    count = layer_count(part)
    crossing = part.indices("cross_attention_layers") or []
    heads, kv_heads, dim = shape(part)
    kind = LayerKind("decoder", count - len(crossing), reading.spec(heads, kv_heads, dim))
    reading.add([kind, uncached(replace(kind, role="cross", count=len(crossing)), "cross")])


# Towers


def tower(
    role: LayerRole,
    *,
    heads: tuple[str, ...] = HEADS,
    hidden: tuple[str, ...] = HIDDEN,
    more: tuple[str, ...] = (),
    note: str = "",
) -> Rule:
    """An encoder of images or sound beside the language model.

    Args:
        heads, hidden: names under which heads and width stand there.
        more: names of further layer counts.
        note: what else it does.
    """

    def rule(part: Part, reading: Reading) -> None:
        num_heads = part.needed(*heads)
        dim = part.integer("head_dim")
        part.get(*KV_HEADS)
        if dim is None:
            width = part.needed(*hidden)
            if width % num_heads:
                part.wrong(part.get(*hidden)[0], f"a multiple of {num_heads} heads")
            dim = width // num_heads
        count = part.integer("encoder_layers", *COUNT) or 1
        count += sum(part.integer(name) or 0 for name in more)
        for name in ("window_size", "fullatt_block_indexes", "global_head_dim", "n_window", "max_source_positions"):
            part.get(name)
        reading.add([uncached(LayerKind(role, count, reading.spec(num_heads, num_heads, dim)))])
        if note and note not in reading.notes:
            reading.notes.append(note)

    return rule
