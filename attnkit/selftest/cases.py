"""The self-test's cases, as data: what is asked, and which part of the work it guards. `building.py` makes the tensors.

A case is offered to a backend only if the backend claims everything in it; what a model's need asks for and the backend does
not claim is reported as skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from attnkit.backends.base import Capability
from attnkit.hardware.device import Device
from attnkit.selftest.results import Level
from attnkit.spec import (
    DTYPES,
    KV_CACHE_DTYPES,
    NO_WINDOW,
    AttentionSpec,
    Dtype,
    Feature,
    KvCacheDtype,
    Op,
    Phase,
    features_of,
)

Content: TypeAlias = Literal["random", "sharp", "large", "dominant", "equal", "balanced"]
"""What the tensors hold. random: N(0, 1). sharp: scores with a deviation of 3. large: |q.k| in the hundreds. dominant: one key
takes nearly all. equal: all keys the same and large values, so that a sum in float16 overflows. balanced: two kinds of keys,
scores +2 and -2, whose shares cancel: the output moves visibly with a scale that is 2 % off even in bfloat16 (float32 needs no
such help, and there the cancellation would leave nothing but rounding)."""

SPECIAL_BLOCKS = (16, 32, 64, 128)
SPECIAL_DIMS = (64, 80, 96, 128, 256)
WINDOW = 24


@dataclass(frozen=True)
class Case:
    """One question.

    Args:
        name: unique within a level and dtype. guards: which part of the work it guards.
        op, dtype, kv_cache_dtype, heads, kv_heads, head_dim, head_dim_v, block_size: as in `AttentionSpec`.
        seqs: (new tokens, total length) of each sequence.
        causal, window, softcap, alibi, sinks, lse, score_mod, mask_mod: the softmax asked for.
        cross: queries and keys are of different sequences, so a query may see more keys, or fewer, than there are queries.
        content: see `Content`.
        soak: runs under load, each judged, after the first; 0 for none.
    """

    name: str
    guards: str
    op: Op
    dtype: Dtype
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_v: int
    block_size: int | None
    seqs: tuple[tuple[int, int], ...]
    kv_cache_dtype: KvCacheDtype = "auto"
    causal: bool = True
    window: tuple[int, int] = NO_WINDOW
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    lse: bool = False
    score_mod: bool = False
    mask_mod: bool = False
    cross: bool = False
    content: Content = "random"
    soak: int = 0

    def features(self) -> frozenset[Feature]:
        """The features a backend must claim."""
        names = ("causal", "window", "softcap", "alibi", "sinks", "lse", "score_mod", "mask_mod")
        return features_of(**{name: getattr(self, name) for name in names})

    def phase(self) -> Phase:
        """As `PagedAttention.phase` will find it."""
        new, total = zip(*self.seqs, strict=True)
        if self.op == "varlen" or (max(new) > 1 and set(new) == set(total) == {max(total)}):
            return "prefill"
        if self.op == "mla_decode" or (max(new) <= 1 and self.op != "tree"):
            return "decode"
        return "mixed"

    def spec(self) -> AttentionSpec:
        """The need of this case; equals `call.spec()` of what `building.build` makes (a test holds it to that)."""
        return AttentionSpec(
            op=self.op,
            dtype=self.dtype,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            head_dim_v=self.head_dim_v,
            kv_cache_dtype=self.kv_cache_dtype,
            block_size=None if self.op == "varlen" else self.block_size,
            phases=frozenset({self.phase()}),
            features=self.features(),
        )


def cases(level: Level, capability: Capability, device: Device, need: AttentionSpec | None) -> tuple[Case, ...]:
    """The cases of a level that `capability` claims on `device`.

    Args:
        need: a model's need: its geometry and features are tested at every level. None takes a small geometry of our own and
            every operation that is claimed.
    """
    found: list[Case] = []
    for op in [need.op] if need is not None else sorted(capability.ops):
        for dtype in [need.dtype] if need is not None and level == "quick" else DTYPES:
            geometry = own_geometry(op, dtype, capability, device, need)
            if geometry is None:
                continue
            candidates = [*_quick(geometry)]
            if level != "quick" and not geometry.cross:
                candidates += _standard(geometry)
            if level == "extended" and not geometry.cross:
                candidates += _extended(geometry)
            found += [
                case
                for case in candidates
                if not capability.reject(case.spec(), device) and not (case.content == "balanced" and dtype == "float32")
            ]
    return tuple({(case.name, case.dtype, case.op): case for case in found}.values())


def own_geometry(op: Op, dtype: Dtype, capability: Capability, device: Device, need: AttentionSpec | None) -> Case | None:
    """A case that carries the heads, sizes and features to vary: the need's, else the first small geometry that is claimed."""
    if need is not None:
        asked = need.features
        return Case(
            name="need",
            guards="",
            op=op,
            dtype=dtype,
            heads=need.num_heads,
            kv_heads=need.num_kv_heads,
            head_dim=need.head_dim,
            head_dim_v=need.value_dim,
            block_size=need.block_size,
            seqs=((1, 1),),
            kv_cache_dtype=need.kv_cache_dtype,
            causal="non_causal" not in asked,
            window=(WINDOW, WINDOW if "non_causal" in asked else 0) if "window" in asked else NO_WINDOW,
            softcap=20.0 if "softcap" in asked else 0.0,
            alibi="alibi" in asked,
            sinks="sinks" in asked,
            lse="lse" in asked,
            score_mod="score_mod" in asked,
            mask_mod="mask_mod" in asked,
            cross="cross" in asked,
        )
    dims = [(576, 512)] if op == "mla_decode" else [(64, 64), (128, 128), (96, 96), (256, 256)]
    for heads, kv_heads in ((4, 2), (8, 1), (8, 8), (16, 1), (64, 1), (128, 1)):
        if (op == "mla_decode") != (kv_heads == 1 and heads >= 8):
            continue
        for block_size in (16, 32, 64, 128, 256, 1):
            for head_dim, head_dim_v in dims:
                case = Case("own", "", op, dtype, heads, kv_heads, head_dim, head_dim_v, block_size, ((1, 1),))
                if not capability.reject(replace(case.spec(), phases=frozenset()), device):
                    return case
    return None


def _quick(g: Case) -> Iterator[Case]:
    """Small cases, one a phase, and those that make wrong scales, lost rescaling and narrow sums visible."""

    def case(name: str, guards: str, *seqs: tuple[int, int], **changes: object) -> Case:
        return replace(g, name=name, guards=guards, seqs=seqs, **changes)  # type: ignore[arg-type]

    if g.cross:
        yield case("cross", "queries over another sequence's keys", (7, 33), (1, 20), (19, 12))
        yield case("cross-balanced", "the softmax scale", (33, 97), content="balanced")
        yield case("cross-equal-keys", "the stable softmax and the width of the accumulator", (5, 130), content="equal")
        return
    if g.op == "varlen":
        yield case("prefill", "attention of whole prompts", (37, 37), (1, 1), (20, 20))
        yield case("prefill-balanced", "the softmax scale", (97, 97), content="balanced")
        yield case("prefill-equal-keys", "the stable softmax and the width of the accumulator", (130, 130), content="equal")
        yield case("encoder", "attention without a causal mask", (33, 33), (20, 20), causal=False, window=NO_WINDOW)
        return
    if g.op == "mla_decode":
        yield case("decode", "decode on the compressed cache", (1, 129), (1, 64), (1, 5))
        yield case("decode-balanced", "the softmax scale", (1, 127), (1, 97), content="balanced")
        yield case("decode-equal-keys", "the width of the accumulator", (1, 130), content="equal")
        return
    if g.op == "tree":
        yield case("tree", "a node sees the context, itself and its ancestors", (8, 40), (8, 8), (8, 75))
        yield case("tree-balanced", "the softmax scale", (8, 97), content="balanced")
        yield case("tree-equal-keys", "the width of the accumulator", (8, 130), content="equal")
        return
    if g.op == "dual_chunk":
        yield case("one-chunk", "plain rotary attention within one chunk", (30, 30), (1, 37))
        yield case("chunks", "positions across chunk borders", (70, 150), (1, 133), (0, 0), content="sharp")
        yield case("chunks-balanced", "the softmax scale", (1, 133), (1, 60), content="balanced")
        return
    if g.op == "differential":
        yield case("prefill", "the difference of two softmaxes", (37, 37), (1, 1), content="sharp")
        yield case("decode", "the difference of two softmaxes over a cache", (1, 97), (1, 33), content="sharp")
        yield case("decode-balanced", "the softmax scale", (1, 97), (1, 127), content="balanced")
        return
    yield case("prefill", "prefill, causal, several sequences", (37, 37), (37, 37))
    yield case("prefill-ragged", "sequences of different lengths in one batch", (33, 33), (1, 1), (18, 18))
    yield case("decode", "decode over a permuted block table, partial last blocks", (1, 129), (1, 64), (1, 5))
    yield case("chunked", "new tokens over cached context", (19, 60), (7, 39))
    yield case("mixed", "decodes and prefill chunks in one batch, one sequence empty", (1, 70), (19, 60), (0, 0), (3, 40))
    yield case("prefill-balanced", "the softmax scale", (97, 97), content="balanced")
    yield case("decode-balanced", "the softmax scale in decode", (1, 127), (1, 97), content="balanced")
    yield case("decode-large-scores", "the stable softmax where |q.k| is in the hundreds", (1, 127), content="large")
    yield case("decode-equal-keys", "constant rows and the width of the accumulator", (1, 130), content="equal")


def _standard(g: Case) -> Iterator[Case]:
    """Every case of the rule: lengths, heads, sizes, blocks, features, float8 caches, one long context."""

    def case(name: str, guards: str, *seqs: tuple[int, int], **changes: object) -> Case:
        return replace(g, name=name, guards=guards, seqs=seqs, **changes)  # type: ignore[arg-type]

    pair = ((1, 77), (23, 50)) if g.op == "paged" else _pair(g)
    if g.op in ("paged", "varlen"):
        for length in (1, 63, 127, 1023):
            yield case(f"prefill-{length}", "odd lengths, partial last tiles", (length, length))
        yield case("prefill-large-scores", "the stable softmax", (130, 130), content="large")
        yield case("prefill-dominant-key", "one key dominating", (130, 130), content="dominant")
        yield case("non-causal", "attention without a causal mask", (63, 63), (20, 20), causal=False, window=NO_WINDOW)
    if g.op in ("paged", "mla_decode"):
        decode_only = ((1, 1), (1, 16), (1, 63), (1, 127), (1, 1023))
        yield case("decode-lengths", "contexts of every kind of length in one batch", *decode_only)
        yield case("decode-dominant-key", "one key dominating", (1, 300), content="dominant")
        few = {"heads": 2, "kv_heads": 1} if g.op == "paged" else {}
        yield case("decode-64k", "a long context", (1, 65537), **few)
    if g.op == "paged":
        yield case("varlen-0-and-1", "empty and one-token sequences between others", (0, 0), (1, 1), (40, 40), (0, 0), (5, 90))
        for ratio, heads, kv_heads in (("mha", 4, 4), ("gqa4", 8, 2), ("gqa8", 8, 1), ("gqa5", 10, 2), ("mqa16", 16, 1)):
            yield case(f"heads-{ratio}", "the mapping of query heads to key heads", *pair, heads=heads, kv_heads=kv_heads)
        for dim in SPECIAL_DIMS:
            yield case(f"head-dim-{dim}", "head sizes, padded ones included", *pair, head_dim=dim, head_dim_v=dim)
        for block in SPECIAL_BLOCKS:
            yield case(f"block-{block}", "cache block sizes", (1, 77), (23, 150), block_size=block)
        for kv in KV_CACHE_DTYPES[1:]:
            yield case(f"cache-{kv}", "dequantisation of the cache", *pair, kv_cache_dtype=kv)
            yield case(f"decode-cache-{kv}", "dequantisation in decode", (1, 129), (1, 40), kv_cache_dtype=kv)
    if g.op in ("paged", "varlen"):
        long_pair = ((1, 77), (40, 90)) if g.op == "paged" else ((70, 70), (33, 33))
        yield case("window", "the left edge of a sliding window", *long_pair, window=(WINDOW, 0), content="sharp")
        yield case("window-symmetric", "both edges of a window", *long_pair, window=(9, 5), causal=False)
        yield case("softcap", "soft capping of scores", *long_pair, softcap=5.0, content="sharp")
        yield case("alibi", "the linear bias", *long_pair, alibi=True)
        yield case("sinks", "a sink in the denominator", *long_pair, sinks=True)
        yield case("window-sinks", "window and sink together", *long_pair, window=(WINDOW, 0), sinks=True)
        yield case("score-mod", "the user's function on the scores", *long_pair, score_mod=True)
        yield case("mask-mod", "the user's mask", *long_pair, mask_mod=True)
        yield case("lse-sinks", "the log-sum-exp with a sink", *long_pair, sinks=True, lse=True)
    yield case("lse", "the log-sum-exp", *pair, lse=True)


SOAK = 8
"""Runs under load of each drawn shape."""


def _extended(g: Case) -> Iterator[Case]:
    """More of the same: shapes drawn from a fixed seed, each run again while the device is busy, and longer contexts."""
    import random

    draw = random.Random(20240117)
    for index in range(24):
        if g.op == "paged":
            seqs = tuple(
                (new, new + draw.randrange(0, 700)) for new in (draw.randrange(1, 90) for _ in range(draw.randrange(1, 7)))
            )
        elif g.op == "mla_decode":
            seqs = tuple((1, draw.randrange(1, 3000)) for _ in range(draw.randrange(1, 9)))
        elif g.op == "tree":
            seqs = tuple((8, 8 + draw.randrange(0, 900)) for _ in range(draw.randrange(1, 5)))
        else:
            seqs = tuple((n, n) for n in (draw.randrange(1, 400) for _ in range(draw.randrange(1, 5))))
        yield replace(g, name=f"drawn-{index}", guards="shapes nobody thought of, and errors under load", seqs=seqs, soak=SOAK)
    if g.op == "paged":
        yield replace(g, name="decode-128k", guards="a very long context", seqs=((1, 131071),), heads=2, kv_heads=1)


def _pair(g: Case) -> tuple[tuple[int, int], ...]:
    """A small mixed batch that suits the operation."""
    if g.op == "mla_decode":
        return ((1, 77), (1, 50))
    if g.op == "tree":
        return ((8, 77), (8, 50))
    return ((77, 77), (50, 50)) if g.op == "varlen" else ((23, 77), (1, 50))
