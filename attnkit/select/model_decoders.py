"""Rules for decoders: what each family computes; see `model_reading.py`."""

from __future__ import annotations

from dataclasses import replace

from attnkit.select.model_fields import Part
from attnkit.select.model_reading import (
    HEADS,
    HOLDS_NONE,
    KV_HEADS,
    Reading,
    Rule,
    by_word,
    head_dim,
    layer_count,
    plain_layers,
    shape,
    uncached,
    with_features,
    words_of,
)
from attnkit.spec import Feature, LayerKind, OtherLayers

HEEDS_IS_CAUSAL = frozenset(["apertus", "ernie4_5", "gemma3_text", "llama", "qwen2", "qwen3"])
"""Types for which vLLM takes the causal mask away where `is_causal` is false; for others it does not look."""


def causal(part: Part, reading: Reading, kinds: list[LayerKind | OtherLayers]) -> None:
    """Add decoder layers; a checkpoint of a decoder made bidirectional for embeddings says so in two ways, of which vLLM
    heeds `is_causal` for some types alone."""
    architectures = part.items("architectures") or []
    stated = part.model_type in HEEDS_IS_CAUSAL and part.raw.get("is_causal") is False
    if stated or any("Bidirectional" in str(name) for name in architectures):
        part.get("is_causal")
        kinds = [
            uncached(replace(k, role="encoder", window=k.window and k.window - 1, two_sided=k.window is not None))
            if isinstance(k, LayerKind)
            else k
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


def granite(swa: bool) -> Rule:
    """As `layer_types` says, and then with sinks; `swa`: types whose layers all slide but the first of each four."""

    def rule(part: Part, reading: Reading) -> None:
        count = layer_count(part)
        words = words_of(part, count, lambda i: "sliding_attention" if swa and i % 4 else "full_attention")
        window = part.window("sliding_window") if "sliding_attention" in words else None
        kinds = plain_layers(part, reading, words, window)
        if part.flag("attention_sinks", default=swa or bool(part.raw.get("layer_types"))):
            kinds = [with_features(k, "sinks") if isinstance(k, LayerKind) else k for k in kinds]
        causal(part, reading, kinds)

    return rule


def all_slide(part: Part, reading: Reading) -> None:
    """`sliding_window` holds for every layer, unless `layer_types` says for which."""
    window = part.window("sliding_window")
    count = layer_count(part)
    if not part.flag("use_sliding_window", default=True):
        window = None
    words = words_of(part, count, lambda i: "sliding_attention" if window else "full_attention")
    _uniform(part, words)
    causal(part, reading, plain_layers(part, reading, words, window))


def _uniform(part: Part, words: list[str]) -> None:
    """For types where vLLM builds every layer alike, whatever `layer_types` says."""
    if part.model_type in ("mixtral", "phimoe", "qwen2_moe", "qwen3_moe") and len(set(words)) > 1:
        part.not_understood("layer_types", f"vLLM builds the layers of model type {part.model_type!r} all alike")


def from_max_window_layers(part: Part, reading: Reading) -> None:
    """Qwen: layers from `max_window_layers` on slide, where `use_sliding_window` turns it on."""
    count = layer_count(part)
    window = part.window("sliding_window")
    first = part.window("max_window_layers") or 0
    if part.raw.get("max_window_layers") is None and part.get("max_window_layers")[1] is None:
        first = count
    if part.model_type == "mimo" and window and part.raw.get("use_sliding_window") is not False:
        part.not_understood("sliding_window", "vLLM has every layer of model type 'mimo' slide then, its own code some")
    if not part.flag("use_sliding_window", default=part.model_type == "dots1"):
        window = None
    words = words_of(part, count, lambda i: "sliding_attention" if window and i >= first else "full_attention")
    if window is None:  # the class drops the window then, whatever layer_types says
        words = ["full_attention" if word == "sliding_attention" else word for word in words]
    _uniform(part, words)
    kinds = plain_layers(part, reading, words, window)
    if part.get("dual_chunk_attention_config")[1]:
        kinds = [replace(k, spec=replace(k.spec, op="dual_chunk")) if isinstance(k, LayerKind) else k for k in kinds]
    causal(part, reading, kinds)


def every(
    period: int, *fields: str, full_at: int = -1, sinks: bool = False, last_full: bool = False, own_beside: bool = False
) -> Rule:
    """All but one layer in `period` slide: the one at `full_at` of each period sees everything.

    Args:
        fields: names that may state the period.
        sinks: every layer has a sink.
        last_full: the last layer sees everything, whatever the period says.
        own_beside: `sliding_window` does not count the own token.
    """

    def rule(part: Part, reading: Reading) -> None:
        count = layer_count(part)
        window = part.window("sliding_window") if period > 1 else None
        if own_beside and window is not None:
            window += 1
            reading.notes.append(
                f"the window is {window} with the own token, as these models were trained and vLLM computes; transformers "
                "counts the own among field 'sliding_window'"
            )
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
            kinds.append(OtherLayers(1, HOLDS_NONE["mamba"]))
        else:
            kinds.append(by_word(part, base, "sliding_attention" if window and i < count // 2 else "full_attention", window))
    reading.add(sorted(kinds, key=lambda k: isinstance(k, OtherLayers)))
