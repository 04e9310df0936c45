"""One random call as plain data: a `Draw` says everything, so that a failing one prints as a test of a few lines."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from attnkit.backends.base import Capability
from attnkit.hardware.device import Device
from attnkit.spec import NO_WINDOW, AttentionSpec, Dtype, KvCacheDtype, Op, features_of

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOAT8: dict[str, KvCacheDtype] = {
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
    "float8_e4m3fnuz": "fp8_e4m3",
    "float8_e5m2fnuz": "fp8_e5m2",
}
WIDTHS = (8, 16, 20, 24, 32, 40, 64, 72, 80, 96, 120, 128, 192, 256)
PAIRS = ((192, 128), (576, 512), (80, 64), (160, 128))
"""Widths of keys and values, where they differ."""
BLOCK_SIZES = (1, 2, 3, 5, 8, 16, 17, 24, 32, 48, 64, 100, 128, 256, 1056)
GROUPS = (1, 1, 2, 3, 4, 5, 7, 8, 16)
JUNK = {"nan": math.nan, "inf": math.inf, "huge": 3e4}
PADDINGS = (0, 0, 0, 1, 5)


@dataclass(frozen=True)
class Draw:
    """A call.

    Args:
        seed: of its tensors' contents.
        op, dtype, kv_heads, head_dim, head_dim_v, block_size: as in `AttentionSpec`; group: query heads a key head.
        cache: "" for `dtype`, or the float8 dtype of the caches.
        seqs: new tokens and keys of each sequence.
        causal, window, softcap, alibi, sinks, lse, mods: what the softmax has; mods: a score_mod and a mask_mod.
        query: "" rows one after another, "fused" beside keys and values in one tensor, "turned" heads outermost in memory.
        caches: "" apart, "stacked" keys and values of a block side by side, "turned" heads before tokens in memory.
        out: "" given by nobody, "inside" a larger tensor, "turned" heads outermost.
        views: index tensors, slopes and sinks are views with strides.
        junk: what unused slots hold: "nan", "inf" or "huge"; unused table entries name blocks that do not exist.
        shared: sequences share the blocks of their common length.
        padding: rows of query and keys past the last sequence.
        far: block numbers past 2^31 elements of the cache (needs the memory).
    """

    seed: int = 0
    op: Op = "paged"
    dtype: Dtype = "float32"
    kv_heads: int = 1
    group: int = 1
    head_dim: int = 64
    head_dim_v: int = 64
    block_size: int = 16
    cache: str = ""
    seqs: tuple[tuple[int, int], ...] = ((1, 5),)
    causal: bool = True
    window: tuple[int, int] = NO_WINDOW
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    lse: bool = False
    mods: bool = False
    query: str = ""
    caches: str = ""
    out: str = ""
    views: bool = False
    junk: str = "nan"
    shared: bool = False
    padding: int = 0
    far: bool = False

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group

    def spec(self) -> AttentionSpec:
        """What a backend must claim to compute it, all phases at once."""
        return AttentionSpec(
            op=self.op,
            dtype=self.dtype,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            head_dim_v=self.head_dim_v,
            kv_cache_dtype=FLOAT8[self.cache] if self.cache else "auto",
            block_size=None if self.op == "varlen" else self.block_size,
            phases=frozenset({"prefill"} if self.op == "varlen" else {"decode"} if self.op == "mla_decode" else {"mixed"}),
            features=features_of(
                causal=self.causal,
                window=self.window,
                softcap=self.softcap,
                alibi=self.alibi,
                sinks=self.sinks,
                lse=self.lse,
                score_mod=self.mods,
                mask_mod=self.mods,
            ),
            fnuz=self.cache.endswith("fnuz"),
        )

    def __str__(self) -> str:
        """The call that makes it, with what is not the default."""
        said = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"Draw({', '.join(said)})"


def draws(capability: Capability, device: Device, seed: int, *, small: bool = True, alike: int = 1) -> Iterator[Draw]:
    """Calls that `capability` claims on `device`, without end; the same for the same seed.

    Args:
        small: lengths and heads for an interpreter or a CPU.
        alike: draws in a row that a compiler is asked once for: other lengths, contents and padding of one kind of call.
    """
    chance = random.Random(seed)
    while True:
        draw = _draw(chance, capability, small)
        if capability.reject(draw.spec(), device):
            continue
        yield draw
        for _ in range(alike - 1):
            yield replace(
                draw,
                seed=chance.randrange(1 << 30),
                seqs=_sequences(chance, draw.block_size, draw.op, small),
                junk=chance.choice(tuple(JUNK)),
                shared=chance.random() < 0.25,
                padding=chance.choice(PADDINGS),
            )


def _draw(chance: random.Random, capability: Capability, small: bool) -> Draw:
    def maybe(name: str, share: float = 0.25) -> bool:
        return name in capability.features and chance.random() < share

    op = chance.choice(sorted(capability.ops))
    width, values = chance.choice([*((w, w) for w in WIDTHS), *PAIRS])
    latent = op == "mla_decode"
    causal = latent or not maybe("non_causal")
    window = NO_WINDOW
    if not latent and maybe("window", 0.3):
        window = (chance.choice((-1, 0, 1, 7, 33, 1 << 40)), 0 if causal else chance.choice((-1, 0, 2, 40, (1 << 31) - 1)))
    size = 1 if op == "varlen" else chance.choice(BLOCK_SIZES)
    float8 = [name for name, kind in FLOAT8.items() if kind in capability.kv_cache_dtypes]
    kv_heads = 1 if latent else chance.choice((1, 2, 3))
    plain = latent or op in ("dual_chunk", "differential")
    return Draw(
        seed=chance.randrange(1 << 30),
        op=op,
        dtype=chance.choice(sorted(capability.dtypes)),
        kv_heads=2 * kv_heads if op == "differential" else kv_heads,
        group=chance.choice(GROUPS),
        head_dim=width,
        head_dim_v=values,
        block_size=size,
        cache=chance.choice(float8) if float8 and op != "varlen" and chance.random() < 0.25 else "",
        seqs=_sequences(chance, size, op, small),
        causal=causal,
        window=window if not plain or op == "differential" else NO_WINDOW,
        softcap=chance.choice((0.5, 5.0, 50.0)) if not latent and op != "dual_chunk" and maybe("softcap") else 0.0,
        alibi=not plain and maybe("alibi"),
        sinks=not plain and maybe("sinks"),
        lse=op != "differential" and maybe("lse", 0.5),
        mods=not plain and "mask_mod" in capability.features and chance.random() < 0.15,
        query=chance.choice(("", "fused", "turned")),
        caches=chance.choice(("", "stacked", "turned")) if op != "differential" else chance.choice(("", "stacked")),
        out=chance.choice(("", "inside", "turned")),
        views=chance.random() < 0.4,
        junk=chance.choice(tuple(JUNK)),
        shared=chance.random() < 0.25,
        padding=chance.choice(PADDINGS),
    )


def _sequences(chance: random.Random, size: int, op: Op, small: bool) -> tuple[tuple[int, int], ...]:
    return tuple(_lengths(chance, size, op, small) for _ in range(chance.choice((1, 2, 3, 5))))


def _lengths(chance: random.Random, size: int, op: Op, small: bool) -> tuple[int, int]:
    """New tokens and keys of a sequence, near the borders of blocks and tiles."""
    border = chance.choice((1, 16, 32, 64, size, 2 * size) if small else (1, 64, 128, 256, 1000, size, 3 * size))
    total = max(0, min(border + chance.choice((-1, 0, 1)), 130 if small else 1100))
    if op == "tree":
        return min(chance.choice((1, 3, 8)), max(total, 1)), max(total, 1)
    if op == "mla_decode":
        return chance.choice((1, 1, 2)), total
    some = chance.randrange(1, min(total, 300) + 2)
    kinds = {
        "decode": (1, total),
        "some": (some, total),
        "all": (max(min(total, 300), 1), total),
        "more": (min(total, 300) + some, min(total, 300)),
        "no keys": (some, 0),
        "no queries": (0, total),
    }
    return kinds[chance.choice(("decode", *kinds))]
