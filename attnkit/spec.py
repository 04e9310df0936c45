"""What an attention call needs, as plain data.

Two layers:

* `AttentionSpec` describes a *need* (shapes, dtypes, features) without any tensor. The selector works on it, so it imports
  neither torch nor jax.
* The call classes (`PagedAttention`, `VarlenAttention`, `MlaDecode`, `TreeAttention`, `DualChunkAttention`,
  `DifferentialAttention`) hold the tensors of one call. Every backend takes a call and returns an `AttentionOutput`;
  `call.spec()` derives the need, so that the check before a run and the check at selection are the same code;
  `call.batch` is what holds query, keys and values, and `call.with_batch(...)` the call with fields of it changed.

Shapes use the field's names: query [num_tokens, num_heads, head_dim]; key_cache, value_cache
[num_blocks, block_size, num_kv_heads, head_dim]; block_table [num_seqs, max_blocks] int32; seq_lens [num_seqs] int32
(cached context plus this step's new tokens); query_start_loc [num_seqs + 1] int32, a prefix sum of the new tokens.
num_heads is any multiple of num_kv_heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import index
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self
else:
    Tensor = Any

Op: TypeAlias = Literal["paged", "varlen", "mla_decode", "tree", "dual_chunk", "differential", "sparse_mla"]
OPS: tuple[Op, ...] = ("paged", "varlen", "mla_decode", "tree", "dual_chunk", "differential")
"""Operations that have a call class. `sparse_mla` (MLA over the keys that an indexer picks) has a word only: no backend here
computes it, so a need for it is refused."""

Dtype: TypeAlias = Literal["float16", "bfloat16", "float32"]
DTYPES: tuple[Dtype, ...] = ("float16", "bfloat16", "float32")

KvCacheDtype: TypeAlias = Literal["auto", "fp8_e4m3", "fp8_e5m2"]
KV_CACHE_DTYPES: tuple[KvCacheDtype, ...] = ("auto", "fp8_e4m3", "fp8_e5m2")

Phase: TypeAlias = Literal["prefill", "decode", "mixed"]
PHASES: tuple[Phase, ...] = ("prefill", "decode", "mixed")

Feature: TypeAlias = Literal[
    "non_causal",
    "window",
    "softcap",
    "alibi",
    "sinks",
    "lse",
    "score_mod",
    "mask_mod",
    "cross",
    "chunked",
    "prefix_lm",
    "relative_bias",
]
FEATURES: tuple[Feature, ...] = ("non_causal", "window", "softcap", "alibi", "sinks", "lse", "score_mod", "mask_mod")
"""Features that a call can ask for. A model's layer can need more, which no argument of a call carries: `cross` (keys of
another sequence, an encoder's), `chunked` (a token sees its own chunk only), `prefix_lm` (no causal mask among the prompt's
tokens) and `relative_bias` (a learned bias on the scores, by distance)."""

ENGINE_MADE: frozenset[Feature] = frozenset({"chunked"})
"""Features that the engine makes out of plain causal calls, so that a backend of paged attention need not know them: for
chunked local attention it hands over every chunk as a sequence of its own (vLLM's chunked_local_attention.py)."""

LayerRole: TypeAlias = Literal["decoder", "encoder", "cross", "vision", "audio"]
TOWERS: tuple[LayerRole, ...] = ("vision", "audio")
"""Roles whose backend may differ from the language model's."""

NO_WINDOW: tuple[int, int] = (-1, -1)

UNLIMITED_FROM = 1 << 30
"""A side of a window of this many tokens or more is unlimited: no sequence is as long, and sums of positions stay in int32."""


@dataclass(frozen=True)
class AttentionSpec:
    """What is needed of an attention backend.

    Args:
        op: the operation; see `OPS`.
        dtype: dtype of query and output.
        num_heads, num_kv_heads: query and key/value heads; num_heads % num_kv_heads == 0.
        head_dim: width of query and key rows (MLA: latent + rope width, 576).
        head_dim_v: width of value rows and of the output (MLA: 512); None means head_dim.
        kv_cache_dtype: "auto" stores the cache in `dtype`.
        block_size: tokens a cache block; None where no paged cache is used.
        phases: phases that must be served.
        features: features that must be honoured, exactly.
        fnuz: a float8 cache is in AMD's "fnuz" formats (of gfx942), whose bits mean other numbers than those of OCP's.
    """

    op: Op = "paged"
    dtype: Dtype = "bfloat16"
    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    head_dim_v: int | None = None
    kv_cache_dtype: KvCacheDtype = "auto"
    block_size: int | None = 16
    phases: frozenset[Phase] = frozenset(PHASES)
    features: frozenset[Feature] = frozenset()
    fnuz: bool = False

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a positive multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim < 1:
            raise ValueError(f"head_dim={self.head_dim} must be positive")

    @property
    def value_dim(self) -> int:
        """Width of a value row and of an output row."""
        return self.head_dim if self.head_dim_v is None else self.head_dim_v


@dataclass(frozen=True)
class LayerKind:
    """One distinct kind of attention layer in a model, and how many layers are of it.

    Args:
        role: whose layers: decoder (causal, cached), encoder, cross (decoder over an encoder's states), or a tower.
        count: layers of this kind.
        spec: what a backend must support; `window`, `chunked` and `softcap` stand in its features without their sizes.
        window: keys visible on the left, the own included, as model configurations count; None: all.
        two_sided: `window` keys are visible on either side of the own.
        chunk: width of a chunk of chunked local attention, None where there is none.
        softcap: cap on the scores, None where there is none.
        softmax_scale: factor on q.k where it is not 1/sqrt(head_dim).
    """

    role: LayerRole
    count: int
    spec: AttentionSpec
    window: int | None = None
    two_sided: bool = False
    chunk: int | None = None
    softcap: float | None = None
    softmax_scale: float | None = None


@dataclass(frozen=True)
class OtherLayers:
    """Layers that hold no softmax attention: state-space, linear attention, convolution; nothing here covers them."""

    count: int
    what: str


@dataclass(frozen=True)
class AttentionOutput:
    """What a backend returns.

    Args:
        out: [num_tokens, num_heads, head_dim_v], dtype of the query.
        lse: [num_tokens, num_heads] float32, natural log of the softmax denominator (sinks included), or None where the
            call did not ask for it.
        kernel: name of the kernel or library function that ran. Tests assert it.
    """

    out: Tensor
    lse: Tensor | None
    kernel: str


@dataclass(frozen=True)
class Softmax:
    """Everything that shapes the scores: s = softmax_scale * q.k, then softcap, ALiBi, mask, sinks.

    Args:
        softmax_scale: factor on q.k.
        causal: key position <= query position; the last query token of a sequence sits at seq_len - 1.
        window: (left, right) tokens visible beside the own position, -1 for unlimited, which `UNLIMITED_FROM` tokens are too.
        softcap: s <- softcap * tanh(s / softcap) where > 0.
        alibi_slopes: [num_heads] float32; adds slope * (key position - query position).
        sinks: [num_heads] float32; one extra logit a head in the denominator that carries no value.
        score_mod: (score, seq, head, q_pos, k_pos) -> score, torch-traceable; FLEX_ATTENTION only.
        mask_mod: (seq, head, q_pos, k_pos) -> bool, True = visible; FLEX_ATTENTION only.
    """

    softmax_scale: float
    causal: bool = True
    window: tuple[int, int] = NO_WINDOW
    softcap: float = 0.0
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
    score_mod: Callable[..., Any] | None = None
    mask_mod: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        try:
            left, right = (-1 if side >= UNLIMITED_FROM else side for side in map(index, self.window))
        except (TypeError, ValueError):
            return  # no pair of integers: `attnkit.contract.check` says so
        object.__setattr__(self, "window", (left, right))

    def features(self, return_lse: bool) -> frozenset[Feature]:
        """The features a backend must claim to run this."""
        return features_of(
            causal=self.causal,
            window=self.window,
            softcap=self.softcap,
            alibi=self.alibi_slopes is not None,
            sinks=self.sinks is not None,
            lse=return_lse,
            score_mod=self.score_mod is not None,
            mask_mod=self.mask_mod is not None,
        )


def features_of(
    *,
    causal: bool,
    window: tuple[int, int],
    softcap: float,
    alibi: bool,
    sinks: bool,
    lse: bool,
    score_mod: bool,
    mask_mod: bool,
) -> frozenset[Feature]:
    """The features a backend must claim where a call has these; the last five: whether it has them at all."""
    asked = (not causal, window != NO_WINDOW, softcap > 0.0, alibi, sinks, lse, score_mod, mask_mod)
    return frozenset(name for name, wanted in zip(FEATURES, asked, strict=True) if wanted)


def dtype_name(tensor: Tensor) -> str:
    """'float16' for torch.float16, and so on."""
    return str(tensor.dtype).removeprefix("torch.")


_FP8 = {"float8_e4m3fn": "fp8_e4m3", "float8_e4m3fnuz": "fp8_e4m3", "float8_e5m2": "fp8_e5m2", "float8_e5m2fnuz": "fp8_e5m2"}


def _is_fnuz(cache: Tensor) -> bool:
    return dtype_name(cache).endswith("fnuz")


def _cache_dtype(cache: Tensor) -> KvCacheDtype:
    return _FP8.get(dtype_name(cache), "auto")  # type: ignore[return-value]


class _Batch:
    """A call that is its own batch."""

    @property
    def batch(self) -> Self:
        """What holds query, keys and values: the call itself."""
        return self

    def with_batch(self, **changes: Any) -> Self:
        """The call with fields of its batch changed."""
        return replace(self, **changes)  # type: ignore[type-var]

    def with_softmax(self, **changes: Any) -> Self:
        """The call with fields of its `Softmax` changed."""
        return self.with_batch(softmax=replace(self.batch.softmax, **changes))  # type: ignore[attr-defined]

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Shape of the output: [num_tokens, num_heads, head_dim_v]."""
        spec = self.spec()  # type: ignore[attr-defined]
        return self.batch.query.shape[0], spec.num_heads, spec.value_dim  # type: ignore[attr-defined]


class _OverBatch(_Batch):
    """A call that adds something to a paged batch."""

    paged: PagedAttention

    @property
    def batch(self) -> PagedAttention:  # type: ignore[override]
        """What holds query, keys and values: the paged batch."""
        return self.paged

    def with_batch(self, **changes: Any) -> Self:
        """The call with fields of its batch changed."""
        return replace(self, paged=replace(self.paged, **changes))  # type: ignore[type-var]


@dataclass(frozen=True)
class PagedAttention(_Batch):
    """Attention of new tokens over a paged cache that already holds their keys and values.

    Prefill, chunked prefill, decode and mixed batches are all this call.

    Args:
        query: [num_tokens, num_heads, head_dim].
        key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim (value: head_dim_v)], dtype of the query or
            float8 with `k_scale` / `v_scale`. Slots past seq_len may hold anything, NaN included.
        block_table: [num_seqs, max_blocks] int32.
        seq_lens: [num_seqs] int32, context + new tokens; 0 is allowed.
        query_start_loc: [num_seqs + 1] int32.
        max_query_len, max_seq_len: host integers >= the largest entry, so that no backend needs a device sync.
        k_scale, v_scale: value = scale * stored, for float8 caches.
        out: where to write; allocated where None.
    """

    op: ClassVar[Op] = "paged"
    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor
    query_start_loc: Tensor
    max_query_len: int
    max_seq_len: int
    softmax: Softmax
    k_scale: float = 1.0
    v_scale: float = 1.0
    return_lse: bool = False
    out: Tensor | None = None

    def phase(self) -> Phase:
        """decode: one new token a sequence at most; prefill: no cached context; else mixed."""
        if self.max_query_len <= 1:
            return "decode"
        if self.max_query_len == self.max_seq_len and self.query.shape[0] == self.seq_lens.shape[0] * self.max_seq_len:
            return "prefill"
        return "mixed"

    def spec(self) -> AttentionSpec:
        """What a backend must support to compute this call."""
        return AttentionSpec(
            op=self.op,
            dtype=dtype_name(self.query),  # type: ignore[arg-type]
            num_heads=self.query.shape[1],
            num_kv_heads=self.key_cache.shape[2],
            head_dim=self.query.shape[2],
            head_dim_v=self.value_cache.shape[3],
            kv_cache_dtype=_cache_dtype(self.key_cache),
            block_size=self.key_cache.shape[1],
            phases=frozenset({self.phase()}),
            features=self.softmax.features(self.return_lse),
            fnuz=_is_fnuz(self.key_cache),
        )


@dataclass(frozen=True)
class VarlenAttention(_Batch):
    """Attention over contiguous, packed sequences without a cache (prefill, encoders, vision towers).

    Args:
        query: [num_tokens, num_heads, head_dim]; key, value: [num_kv_tokens, num_kv_heads, head_dim (head_dim_v)].
        query_start_loc, key_start_loc: [num_seqs + 1] int32 prefix sums. With causal, the last query of a sequence is
            aligned with its last key.
    """

    op: ClassVar[Op] = "varlen"
    query: Tensor
    key: Tensor
    value: Tensor
    query_start_loc: Tensor
    key_start_loc: Tensor
    max_query_len: int
    max_seq_len: int
    softmax: Softmax
    return_lse: bool = False
    out: Tensor | None = None

    def spec(self) -> AttentionSpec:
        """What a backend must support to compute this call."""
        return AttentionSpec(
            op=self.op,
            dtype=dtype_name(self.query),  # type: ignore[arg-type]
            num_heads=self.query.shape[1],
            num_kv_heads=self.key.shape[1],
            head_dim=self.query.shape[2],
            head_dim_v=self.value.shape[2],
            block_size=None,
            phases=frozenset({"prefill"}),
            features=self.softmax.features(self.return_lse),
        )


@dataclass(frozen=True)
class MlaDecode(_Batch):
    """Multi-head latent attention over the compressed cache, absorbed form.

    out = softmax(softmax_scale * (q_latent.c + q_pe.k_pe)) c, per head; W_UV is applied by the caller.

    Args:
        query: [num_tokens, num_heads, kv_lora_rank + rope_dim], latent part first (512 + 64).
        kv_cache: [num_blocks, block_size, kv_lora_rank + rope_dim]; one "head", shared by all.
        block_table, seq_lens, query_start_loc, max_query_len, max_seq_len: as in `PagedAttention`; causal.
        kv_lora_rank: width of the latent and of the output (512).
        softmax_scale: 1/sqrt(128 + 64) times YaRN's mscale squared, *not* 1/sqrt(576).
    """

    op: ClassVar[Op] = "mla_decode"
    query: Tensor
    kv_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor
    query_start_loc: Tensor
    max_query_len: int
    max_seq_len: int
    kv_lora_rank: int
    softmax_scale: float
    kv_scale: float = 1.0
    return_lse: bool = False
    out: Tensor | None = None

    @property
    def softmax(self) -> Softmax:
        """How the scores are shaped: plain and causal."""
        return Softmax(self.softmax_scale)

    def with_softmax(self, **changes: Any) -> Self:
        """The call with another `softmax_scale`; there is nothing else to change."""
        return replace(self, **changes)

    def spec(self) -> AttentionSpec:
        """What a backend must support to compute this call."""
        return AttentionSpec(
            op=self.op,
            dtype=dtype_name(self.query),  # type: ignore[arg-type]
            num_heads=self.query.shape[1],
            num_kv_heads=1,
            head_dim=self.query.shape[2],
            head_dim_v=self.kv_lora_rank,
            kv_cache_dtype=_cache_dtype(self.kv_cache),
            block_size=self.kv_cache.shape[1],
            phases=frozenset({"decode"}),
            features=frozenset({"lse"}) if self.return_lse else frozenset(),
            fnuz=_is_fnuz(self.kv_cache),
        )


@dataclass(frozen=True)
class TreeAttention(_OverBatch):
    """Verification of a speculative tree: every node sees the context, the root, itself and its ancestors.

    The new tokens of a sequence are the tree's nodes in topological order; their keys and values are already in the cache at
    positions context .. context + num_nodes - 1.

    Args:
        paged: the batch; its `softmax.causal` is ignored, the tree decides among the new tokens. A window counts positions in
            the cache, as without a tree.
        tree_mask: [num_nodes, num_nodes] bool, the same for every sequence; tree_mask[i, j]: node i sees node j. The diagonal
            is True.
    """

    op: ClassVar[Op] = "tree"
    paged: PagedAttention
    tree_mask: Tensor

    def spec(self) -> AttentionSpec:
        """What a backend must support to compute this call."""
        return replace(self.paged.spec(), op=self.op, phases=frozenset({"mixed"}))


@dataclass(frozen=True)
class DualChunkAttention(_OverBatch):
    """Qwen2.5-1M's dual chunk attention over a paged cache of *unrotated* keys (arXiv 2402.17463, 2501.15383).

    Args:
        paged: the batch; query and keys carry no rotary embedding yet.
        chunk_size, local_size: s = chunk_size - local_size.
        rope_cos, rope_sin: [max_position, head_dim / 2] float32, neox style; max_position >= max(2 s, chunk_size + 1).
        original_max_position: turns on the length factor max(1, 0.1 ln(L / original_max_position) + 1) where not None.
    """

    op: ClassVar[Op] = "dual_chunk"
    paged: PagedAttention
    chunk_size: int
    local_size: int
    rope_cos: Tensor
    rope_sin: Tensor
    original_max_position: int | None = None

    def spec(self) -> AttentionSpec:
        """What a backend must support to compute this call."""
        return replace(self.paged.spec(), op=self.op)


@dataclass(frozen=True)
class DifferentialAttention(_OverBatch):
    """Differential Transformer attention: (softmax1 - lambda softmax2) V, head-wise RMSNorm, times 1 - lambda_init.

    Heads come in pairs: query head pair h is (2h, 2h + 1), key head pair likewise, and V of the pair is [v1; v2] of width
    2 * head_dim. arXiv 2410.05258.

    Args:
        paged: query [num_tokens, 2 * pairs, head_dim]; caches with 2 * kv_pairs heads.
        lambda_full: exp(lq1.lk1) - exp(lq2.lk2) + lambda_init, a host float.
        lambda_init: 0.8 - 0.6 exp(-0.3 depth).
        norm_weight: [2 * head_dim] RMSNorm weight, or None for ones.
        eps: RMSNorm epsilon.

    The output has shape [num_tokens, pairs, 2 * head_dim].
    """

    op: ClassVar[Op] = "differential"
    paged: PagedAttention
    lambda_full: float
    lambda_init: float
    norm_weight: Tensor | None = None
    eps: float = 1e-5

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Shape of the output: [num_tokens, pairs, 2 * head_dim]."""
        tokens, heads, width = super().out_shape
        return tokens, heads // 2, 2 * width

    def spec(self) -> AttentionSpec:
        """What a backend must support to compute this call."""
        return replace(self.paged.spec(), op=self.op)


Batch: TypeAlias = PagedAttention | VarlenAttention | MlaDecode
Call: TypeAlias = PagedAttention | VarlenAttention | MlaDecode | TreeAttention | DualChunkAttention | DifferentialAttention
