"""The standard level: every claimed value of every factor beside every value of every other, and what no such array holds.

The rows of a covering array (`covering.py`) are batches of the shapes that serving makes (lengths at the ends of tiles and
blocks, and one to either side) with heads, sizes, cache formats and features drawn so that every pair of claimed values is
asked in every dtype. Long contexts, contents that only some faults show in, and caches past 2**31 elements are cases of their
own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from attnkit.backends.base import Capability
from attnkit.hardware.device import Device
from attnkit.selftest.case import TREE_PARENTS, Case
from attnkit.selftest.covering import covering
from attnkit.spec import KV_CACHE_DTYPES, NO_WINDOW, Op

Seqs: TypeAlias = tuple[tuple[int, int], ...]

WINDOW = 24
BLOCKS = (16, 32, 48, 64, 128, 1)
HEADS = ((4, 2), (4, 4), (8, 1), (10, 2), (14, 2), (16, 1))
"""Query and key heads: 2, 1, 8, 5, 7 and 16 query heads a key head."""
PAIRED_HEADS = ((8, 4), (4, 4), (20, 4), (14, 2), (16, 2))
LATENT_HEADS = ((16, 1), (8, 1), (20, 1), (128, 1))
WIDTHS = ((64, 64), (128, 128), (96, 96), (80, 80), (256, 256), (72, 72), (40, 40), (33, 33))
"""Head sizes: powers of two and others, multiples of 16 and others."""
MASKS: tuple[Mapping[str, Any], ...] = (
    {"causal": True, "window": NO_WINDOW},
    {"causal": True, "window": (WINDOW, 0)},
    {"causal": False, "window": NO_WINDOW},
    {"causal": False, "window": (0, 5)},
    {"causal": False, "window": (-1, 0)},
    {"causal": False, "window": (WINDOW, -1)},
)
FEW_WIDTHS = 6
FEW = {"width": 3, "heads": 4, "block": 3, "mask": 4, "softcap": 1, "tree": 4, "chunk": 2}
"""Values of a factor, a model's own among them: where a model is known, each value costs kernels that are compiled ahead."""
FEATURES_OF: Mapping[Op, tuple[str, ...]] = {"mla_decode": ("lse",), "dual_chunk": ("lse",), "differential": ()}
"""Features, beside masks and softcap, of operations that do not have them all."""


def standard(g: Case, capability: Capability, device: Device, *, few: bool) -> Iterator[Case]:
    """The cases of the standard level beyond the quick ones, with the heads and sizes of `g` where they are not varied.

    Args:
        few: not more values of a factor than `FEW` says; `g` is then what a model needs.
    """
    yield from _singular(g)
    if not (few and capability.of_engine):
        yield from _covering(g, capability, device, few=few)


def drawn_tree(nodes: int) -> tuple[int, ...]:
    """Parents of a tree of so many nodes, in topological order: always the same, neither a chain nor a star."""
    draw = random.Random(nodes)
    return (-1, *(draw.randrange(node) for node in range(1, nodes)))


TREES = (TREE_PARENTS, (-1,), (-1, 0, 1), drawn_tree(17), drawn_tree(33), (-1, *[0] * 15))
"""The usual one, a root alone, a chain, two drawn ones, a star."""


def _singular(g: Case) -> Iterator[Case]:
    """What stands alone: long and odd lengths, contents that some faults show in only, distances, offsets."""

    def case(name: str, guards: str, *seqs: tuple[int, int], **changes: object) -> Case:
        return replace(g, name=name, guards=guards, seqs=seqs, **changes)  # type: ignore[arg-type]

    few = {"heads": 2, "kv_heads": 1} if g.op in ("paged", "varlen") else {}
    if g.op in ("paged", "varlen"):
        for length in (1, 63, 127, 1023):
            yield case(f"prefill-{length}", "odd lengths, partial last tiles", (length, length))
        yield case("prefill-large-scores", "the stable softmax", (130, 130), content="large")
        yield case("prefill-dominant-key", "one key dominating", (130, 130), content="dominant")
        distant = ((1, 3000), (5, 2500)) if g.op == "paged" else ((3, 3000), (5, 2500))
        yield case(
            "alibi-far", "ALiBi's distances", *distant, alibi=True, alibi_by=1 / 64, causal=True, window=NO_WINDOW, **few
        )
        yield case("keyless", "a batch without any key", (1, 0), (2, 0), edge=True)
    if g.op == "varlen":
        yield case("surplus", "more queries than keys", (9, 3), (70, 20), (1, 0), (33, 64), edge=True)
        return
    if g.op == "tree":
        yield case("tree-long", "a tree over a long context", (8, 2056))
        yield case("tree-dominant-key", "one key dominating", (8, 300), content="dominant")
    elif g.op == "dual_chunk":
        yield case("chunks-long", "a long prompt over many chunks", (300, 1000), (1, 1023), (130, 130), (1, 63))
        yield case("chunks-large-scores", "the stable softmax", (70, 150), (1, 133), content="large")
        yield case("prefill-mixed", "long prompts, a decode and a row without keys", (150, 400), (1, 96), (130, 130), (1, 0))
    else:
        lengths = ((1, 1), (1, 16), (1, 63), (1, 127), (1, 1023))
        yield case("decode-lengths", "contexts of every kind of length in one batch", *lengths)
    if g.op in ("paged", "mla_decode"):
        yield case("decode-dominant-key", "one key dominating", (1, 300), content="dominant")
        yield case("decode-64k", "a long context", (1, 65537), **few)
        yield case("surplus", "more queries than keys", (5, 3), (40, 10), (1, 0), (17, 64), edge=True)
        yield case("decode-split-lse", "the log-sum-exp of a context that is cut into splits", (1, 1500), (1, 700), lse=True)
    if g.op == "mla_decode":
        yield case("few-new-ragged", "unlike numbers of new tokens", (1, 70), (3, 40), (0, 0), (2, 2), edge=True)
    yield case("apart", "values that lie otherwise than keys", (1, 70), (19, 60), apart=True, edge=True)
    if g.dtype != "float32":
        yield case("far", "offsets past 2**31 elements", (1, 70), (1, 129), (3, 40), far=True, edge=g.op == "mla_decode", **few)


def _covering(g: Case, capability: Capability, device: Device, *, few: bool) -> Iterator[Case]:
    """The rows of the covering array of what `capability` claims, each a case."""

    def serves(**changes: Any) -> bool:
        return not capability.reject(replace(replace(g, **changes).spec(), phases=frozenset()), device)

    def claimed(plain: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [plain, *(one for one in others if one != plain and serves(**one))]

    def either(name: str) -> list[Mapping[str, Any]]:
        return [{name: value} for value in ((True,) if getattr(g, name) else (False, True)) if serves(**{name: value})]

    factors: dict[str, list[Mapping[str, Any]]] = {"shape": [{"shape": name} for name in SHAPES[g.op]]}
    widths = _widths(g, capability)
    factors["width"] = claimed(
        {"head_dim": g.head_dim, "head_dim_v": g.head_dim_v}, [{"head_dim": d, "head_dim_v": v} for d, v in widths]
    )[:FEW_WIDTHS]
    heads = {"mla_decode": LATENT_HEADS, "differential": PAIRED_HEADS}.get(g.op, HEADS)
    factors["heads"] = claimed(
        {"heads": g.heads, "kv_heads": g.kv_heads}, [{"heads": query, "kv_heads": key} for query, key in heads]
    )
    if g.op != "varlen":
        factors["block"] = claimed({"block_size": g.block_size}, [{"block_size": size} for size in BLOCKS])
        factors["cache"] = claimed({"kv_cache_dtype": g.kv_cache_dtype}, [{"kv_cache_dtype": kind} for kind in KV_CACHE_DTYPES])
    if g.op in ("paged", "varlen", "differential"):
        factors["mask"] = claimed({"causal": g.causal, "window": g.window}, MASKS)
    if g.op in ("paged", "varlen", "tree", "differential"):
        factors["softcap"] = claimed({"softcap": g.softcap}, [{"softcap": cap} for cap in (0.0, 5.0, 50.0)])
    for feature in FEATURES_OF.get(g.op, ("lse", "alibi", "sinks", "score_mod", "mask_mod")):
        factors[feature] = either(feature)
    factors["content"] = [{"content": "random"}, {"content": "sharp"}]
    if g.op == "tree":
        factors["tree"] = [{"tree": parents} for parents in TREES]
    if g.op == "dual_chunk":
        factors["chunk"] = [{"chunk": sizes} for sizes in ((64, 16), (48, 8), (96, 32), (64, 0))]
        factors["stretched"] = [{"stretched": True}, {"stretched": False}]
    if g.op == "differential":
        factors["weighted"] = [{"weighted": True}, {"weighted": False}]

    def case_of(row: Mapping[str, Mapping[str, Any]], number: int = 0) -> Case:
        changes = {name: value for part in row.values() for name, value in part.items()}
        shape = changes.pop("shape")
        case = replace(g, **changes)
        name, words = f"cover-{number:02}-{shape}", ", ".join(_words(case))
        return replace(case, name=name, guards=f"{shape}, {words}" if words else shape, seqs=SHAPES[g.op][shape](case))

    if few:
        factors = {name: values[: FEW.get(name)] for name, values in factors.items()}
    rows = covering(factors, lambda row: not capability.reject(case_of(row).spec(), device))
    for number, row in enumerate(rows):
        yield case_of(row, number)


def _widths(g: Case, capability: Capability) -> list[tuple[int, int]]:
    """Head sizes (keys, values) to be asked, as far as they are claimed."""
    listed = capability.head_dims.values
    if listed is not None:
        found = sorted(listed, key=lambda pair: (pair[0] != g.head_dim, pair[0] % 2 == 0, pair))
        return found[:: max(1, len(found) // FEW_WIDTHS)]
    if g.op == "mla_decode":
        return [pair for pair in sorted(capability.head_dims.extra) if pair[0] > pair[1]]
    return [*(pair for pair in sorted(capability.head_dims.extra) if pair[0] < 2 * pair[1] and pair[0] < 300), *WIDTHS]


def _words(case: Case) -> Iterator[str]:
    """What is asked beyond plain causal attention."""
    if case.kv_cache_dtype != "auto":
        yield f"{case.kv_cache_dtype} cache"
    if not case.causal:
        yield "no causal mask"
    if case.window != NO_WINDOW:
        yield f"window {case.window[0]}, {case.window[1]}"
    if case.softcap:
        yield f"softcap {case.softcap:g}"
    for name in ("alibi", "sinks", "lse", "score_mod", "mask_mod"):
        if getattr(case, name):
            yield name
    if case.op == "tree":
        yield f"{len(case.tree)} nodes"
    if case.op == "dual_chunk":
        yield f"chunks of {case.chunk[0]}"


def _decodes(case: Case, new: int = 1) -> Seqs:
    """Contexts that end at a tile's or a block's end, and one to either side."""
    size = case.block_size or 1
    about = {size - 1, size, size + 1, 16, 33, 64, 65, 127, 128, 129}
    return tuple((new, total) for total in sorted(about) if new <= total <= 129)


def _padded(case: Case) -> Seqs:
    return (1, 0), (1, case.block_size or 1), (1, 0), (1, 129), (0, 0)


def _same_few(new: int) -> Any:
    def seqs(case: Case) -> Seqs:
        size = case.block_size or 1
        return (new, new), (new, max(new, size)), (new, 64 + new), (new, 129)

    return seqs


def _over_context(case: Case) -> Seqs:
    return (19, 60), (7, 39), (0, 0), (64, 64 + (case.block_size or 1))


def _of(*seqs: tuple[int, int]) -> Any:
    return lambda case: seqs


def _nodes(*contexts: int) -> Any:
    return lambda case: tuple((len(case.tree), len(case.tree) + context) for context in contexts)


def _nodes_at_borders(case: Case) -> Seqs:
    nodes, size = len(case.tree), case.block_size or 1
    return tuple((nodes, max(nodes, total)) for total in (size, size + 1, 64, 65, 129))


_DECODE = {
    "decode": _decodes,
    "padded": _padded,
    "split": _of((1, 300)),
    "two-new": _same_few(2),
    "four-new": _same_few(4),
}
SHAPES: Mapping[Op, Mapping[str, Any]] = {
    "paged": {
        "prefill": _of((65, 65), (65, 65)),
        **_DECODE,
        "eight-new": _of((8, 8), (8, 72), (8, 200)),
        "over-context": _over_context,
        "mixed": _of((1, 70), (33, 97), (0, 0), (3, 40), (1, 0)),
    },
    "varlen": {
        "prefill": _of((64, 64), (33, 33), (1, 1), (16, 16)),
        "cross": _of((5, 33), (40, 129), (0, 7), (1, 0), (1, 64), (17, 65)),
        "long": _of((130, 130), (127, 127)),
        "few": _of((2, 96), (4, 300), (0, 0), (8, 128)),
    },
    "mla_decode": _DECODE,
    "tree": {"no-context": _nodes(0, 0), "context": _nodes(32, 63, 0, 130), "borders": _nodes_at_borders, "split": _nodes(300)},
    "dual_chunk": {
        "prefill": _of((65, 65), (65, 65)),
        "decode": _of((1, 47), (1, 48), (1, 49), (1, 96), (1, 129)),
        "padded": _padded,
        "split": _of((1, 300)),
        "few-new": _of((2, 50), (4, 97), (8, 129), (0, 0)),
        "over-context": _of((70, 150), (5, 64), (19, 49)),
        "long": _of((140, 300), (1, 97)),
    },
    "differential": {
        "prefill": _of((65, 65), (65, 65)),
        **_DECODE,
        "over-context": _over_context,
        "mixed": _of((1, 70), (33, 97), (0, 0), (3, 40), (1, 0)),
    },
}
"""Batches by operation and name: (new tokens, total length) of each sequence, from the case that is to have them."""
