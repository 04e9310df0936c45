"""The self-test's cases by level: a fixed list of small ones (quick), and every claimed value beside every other (standard).

A case is offered to a backend only if the backend claims everything in it; what a model's need asks for and the backend does
not claim is reported as skipped with the reason.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from attnkit.backends.base import Capability
from attnkit.hardware.device import Device
from attnkit.selftest.case import Case
from attnkit.selftest.results import Level
from attnkit.selftest.standard import WINDOW, drawn_tree, standard
from attnkit.spec import DTYPES, NO_WINDOW, AttentionSpec, Dtype, Op

__all__ = ["Case", "cases", "drawn_anew", "own_geometry"]


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
                candidates += standard(geometry, capability, device, few=need is not None)
            if level == "extended" and not geometry.cross:
                candidates += _extended(geometry)
            found += [
                case
                for case in (_of_engine(candidates) if capability.of_engine else candidates)
                if not capability.reject(case.spec(), device) and not (case.content == "balanced" and dtype == "float32")
            ]
    return tuple({(case.name, case.dtype, case.op): case for case in found}.values())


def _of_engine(candidates: Sequence[Case]) -> Iterator[Case]:
    """What an engine asks its own backend: no sequence with a row without a key, and no case of nothing else.

    Its encoders attend to their own tokens.
    Several new tokens in MLA's decode it may refuse: an engine whose decode takes one token gives the others to its prefill.
    """
    for case in candidates:
        seqs = tuple((new, total) for new, total in case.seqs if total == new or (total > new and case.op != "varlen"))
        if any(new for new, _ in seqs):
            several = case.op == "mla_decode" and any(new > 1 for new, _ in seqs)
            yield replace(case, seqs=seqs, edge=case.edge or several)


def drawn_anew(asked: Sequence[Case], seed: int) -> Case:
    """One of `asked` with other contents and lengths, all decided by `seed`.

    What a kernel is compiled for and how its work is cut stay as they are: the longest context, and how many sequences there
    are with how many new tokens. So nothing has to be compiled for it that was not compiled ahead.
    Some cases have one answer whatever is drawn: no keys, or contents that are made for one fault. None of those is chosen.
    """
    draw = random.Random(seed)
    other = [c for c in asked if not c.far and not c.edge and c.content in ("random", "sharp")]
    chosen = draw.choice([c for c in other if 1 < max(total for _, total in c.seqs) <= 2048] or asked)
    longest = max(total for _, total in chosen.seqs)
    seqs = list(chosen.seqs)
    if chosen.phase() != "prefill":
        seqs = [(new, draw.randint(min(new, longest), longest) if 0 < total < longest else total) for new, total in seqs]
        draw.shuffle(seqs)
    return replace(chosen, name=f"{chosen.name}-anew", seqs=tuple(seqs), seed=seed)


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
    """Small cases, one a phase, and those that make wrong scales, lost rescaling, narrow sums and unwritten rows visible."""

    def case(name: str, guards: str, *seqs: tuple[int, int], **changes: object) -> Case:
        return replace(g, name=name, guards=guards, seqs=seqs, **changes)  # type: ignore[arg-type]

    size = g.block_size or 1
    borders = tuple((1, n) for n in sorted({size, size + 1, 5, 16, 33, 64, 129}))
    keyless = "rows without a key, as a captured batch is padded with"
    if g.cross:
        yield case("cross", "queries over another sequence's keys", (7, 33), (1, 20), (19, 12))
        yield case("cross-balanced", "the softmax scale", (33, 97), content="balanced")
        yield case("cross-equal-keys", "the stable softmax and the width of the accumulator", (5, 130), content="equal")
        return
    if g.op == "varlen":
        yield case("prefill", "attention of whole prompts", (37, 37), (1, 1), (20, 20))
        yield case("cross", "keys that are more than queries", (5, 33), (40, 65), (0, 7), (1, 0), content="sharp")
        yield case("prefill-balanced", "the softmax scale", (97, 97), content="balanced")
        yield case("prefill-equal-keys", "the stable softmax and the width of the accumulator", (130, 130), content="equal")
        yield case("encoder", "attention without a causal mask", (33, 33), (20, 20), causal=False, window=NO_WINDOW)
        return
    if g.op == "mla_decode":
        yield case("decode", "decode on the compressed cache", *borders, content="sharp")
        yield case("decode-split", "a context that is cut into splits", (1, 300), content="sharp")
        yield case("decode-padded", keyless, (1, 0), (1, 33), (1, 0))
        yield case("few-new", "a few new tokens over a context", (2, 66), (2, 2), (2, size + 1))
        yield case("decode-balanced", "the softmax scale", (1, 127), (1, 97), content="balanced")
        yield case("decode-equal-keys", "the width of the accumulator", (1, 130), content="equal")
        return
    if g.op == "tree":
        yield case("tree", "a node sees the context, itself and its ancestors", (8, 40), (8, 8), (8, 75))
        yield case("tree-wide", "another tree", (17, 17 + size), (17, 50), tree=drawn_tree(17), content="sharp")
        yield case("tree-small", "a tree over a long context", (3, 300), tree=(-1, 0, 0), content="sharp")
        yield case("tree-balanced", "the softmax scale", (8, 97), content="balanced")
        yield case("tree-equal-keys", "the width of the accumulator", (8, 130), content="equal")
        return
    if g.op == "dual_chunk":
        yield case("one-chunk", "plain rotary attention within one chunk", (30, 30), (1, 37))
        yield case("chunks", "positions across chunk borders", (70, 150), (1, 133), (0, 0), content="sharp")
        yield case("decode", "decode, at the borders of chunks", (1, 47), (1, 48), (1, 49), (1, 97), (1, 145), content="sharp")
        yield case("decode-split", "a context that is cut into splits", (1, 300), chunk=(48, 8), content="sharp")
        yield case("decode-padded", keyless, (1, 0), (1, 33), (1, 0))
        yield case("few-new", "a few new tokens over a context", (4, 98), (2, 49), (4, 60), stretched=False)
        yield case("prefill", "a long prompt", (130, 180))
        yield case("chunks-balanced", "the softmax scale", (1, 133), (1, 60), content="balanced")
        return
    if g.op == "differential":
        yield case("prefill", "the difference of two softmaxes", (37, 37), (1, 1), content="sharp")
        yield case("decode", "the difference of two softmaxes over a cache", *borders, content="sharp")
        yield case("decode-split", "a context that is cut into splits", (1, 300), content="sharp")
        yield case("decode-padded", keyless, (1, 0), (1, 33), (1, 0))
        yield case("few-new", "a few new tokens over a context", (2, 66), (2, 2), (2, size + 1), weighted=False)
        yield case("decode-balanced", "the softmax scale", (1, 97), (1, 127), content="balanced")
        return
    yield case("prefill", "prefill, causal, several sequences", (37, 37), (37, 37))
    yield case("prefill-ragged", "sequences of different lengths in one batch", (33, 33), (1, 1), (18, 18))
    yield case("decode", "decode over a permuted block table, lengths about a block's end", *borders, content="sharp")
    yield case("decode-split", "a context that is cut into splits", (1, 300), content="sharp")
    yield case("decode-padded", keyless, (1, 0), (1, 33), (1, 0))
    yield case("few-new", "a few new tokens over a context", (2, 66), (4, 4), (3, size + 1), content="sharp")
    yield case("chunked", "new tokens over cached context", (19, 60), (7, 39), (64, 128))
    yield case("mixed", "decodes and prefill chunks in one batch, one sequence empty", (1, 70), (19, 60), (0, 0), (3, 40))
    yield case("prefill-balanced", "the softmax scale", (97, 97), content="balanced")
    yield case("decode-balanced", "the softmax scale in decode", (1, 127), (1, 97), content="balanced")
    yield case("decode-large-scores", "the stable softmax where |q.k| is in the hundreds", (1, 127), content="large")
    yield case("decode-equal-keys", "constant rows and the width of the accumulator", (1, 130), content="equal")


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
            seqs = tuple((len(g.tree), len(g.tree) + draw.randrange(0, 900)) for _ in range(draw.randrange(1, 5)))
        else:
            seqs = tuple((n, n) for n in (draw.randrange(1, 400) for _ in range(draw.randrange(1, 5))))
        yield replace(g, name=f"drawn-{index}", guards="shapes nobody thought of, and errors under load", seqs=seqs, soak=SOAK)
    if g.op == "paged":
        yield replace(g, name="decode-128k", guards="a very long context", seqs=((1, 131071),), heads=2, kv_heads=1)
