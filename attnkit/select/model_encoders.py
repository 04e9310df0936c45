"""Rules for encoders, encoders with decoders, and towers; see `model_reading.py`."""

from __future__ import annotations

from dataclasses import replace

from attnkit.select.model_fields import Part
from attnkit.select.model_reading import (
    COUNT,
    HEADS,
    HIDDEN,
    KV_HEADS,
    Reading,
    Rule,
    by_word,
    layer_count,
    shape,
    uncached,
    with_features,
    words_of,
)
from attnkit.spec import LayerKind, LayerRole

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
