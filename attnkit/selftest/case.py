"""One case of the self-test, as data: what is asked, and which part of the work it guards. `tensors.py` makes the tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from attnkit.spec import NO_WINDOW, AttentionSpec, Dtype, Feature, KvCacheDtype, Op, Phase, features_of

Content: TypeAlias = Literal["random", "sharp", "large", "dominant", "equal", "balanced"]
"""What the tensors hold. random: N(0, 1). sharp: scores with a deviation of 3. large: |q.k| in the hundreds. dominant: one key
takes nearly all. equal: all keys the same and large values, so that a sum in float16 overflows. balanced: two kinds of keys,
scores +2 and -2, whose shares cancel: the output moves visibly with a scale that is 2 % off even in bfloat16 (float32 needs no
such help, and there the cancellation would leave nothing but rounding)."""

TREE_PARENTS = (-1, 0, 0, 1, 1, 2, 3, 3)
"""Parent of each node of the usual test tree; -1 is the root."""


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
        alibi_by: factor on ALiBi's geometric slopes; less than 1 lets distant keys count.
        tree: parent of each node, -1 for the root; tree attention only.
        chunk: (chunk_size, local_size), stretched: with the length factor; dual chunk attention only.
        weighted: with a weight in the norm; differential attention only.
        apart: rows of the value cache lie farther apart than those of the key cache; a provider may want both alike.
        far: the cache has more than 2**31 elements, and the blocks in use lie at its end.
        edge: a batch that a provider may refuse (`UnsupportedError`): more queries than keys, unlike numbers of new tokens. It
            is then skipped, with the reason.
        seed: another draw of the contents; 0 for the one that every boot asks.
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
    alibi_by: float = 1.0
    tree: tuple[int, ...] = TREE_PARENTS
    chunk: tuple[int, int] = (64, 16)
    stretched: bool = True
    weighted: bool = True
    apart: bool = False
    far: bool = False
    edge: bool = False
    seed: int = 0

    def features(self) -> frozenset[Feature]:
        """The features a backend must claim."""
        names = ("causal", "window", "softcap", "alibi", "sinks", "lse", "score_mod", "mask_mod")
        return features_of(**{name: getattr(self, name) for name in names})

    def phase(self) -> Phase:
        """As `PagedAttention.phase` will find it."""
        new, total = zip(*self.seqs, strict=True)
        if self.op == "tree":
            return "mixed"
        if self.op == "varlen" or (max(new) > 1 and set(new) == set(total) == {max(total)}):
            return "prefill"
        return "decode" if self.op == "mla_decode" or max(new) <= 1 else "mixed"

    def spec(self) -> AttentionSpec:
        """The need of this case; equals `call.spec()` of what `tensors.build` makes (a test holds it to that)."""
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
