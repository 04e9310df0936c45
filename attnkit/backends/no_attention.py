"""NO_ATTENTION: computes nothing. For finding out whether the rest of a pipeline works; never chosen automatically."""

from __future__ import annotations

from typing import ClassVar

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.spec import (
    DTYPES,
    FEATURES,
    KV_CACHE_DTYPES,
    OPS,
    AttentionOutput,
    Call,
    DifferentialAttention,
    DualChunkAttention,
    TreeAttention,
)

CAPABILITY = Capability(
    ops=frozenset(OPS),
    archs={"nvidia": ("*",), "amd": ("*",), "intel": ("*",), "cpu": ("*",)},
    dtypes=frozenset(DTYPES),
    head_dims=HeadDims(low=1, high=1024, extra=frozenset({(576, 512)})),
    kv_cache_dtypes=frozenset(KV_CACHE_DTYPES),
    features=frozenset(FEATURES),
    graphs=True,
    deterministic=True,
)


class NoAttention(Backend):
    """Returns zeros of the right shape (log-sum-exp: -inf, nothing was seen). The self-test never passes it."""

    name: ClassVar[str] = "NO_ATTENTION"
    summary: ClassVar[str] = "skips attention and returns zeros; for debugging a pipeline, never ready"
    automatic: ClassVar[bool] = False
    providers: ClassVar[tuple[Provider, ...]] = (
        Provider("attnkit", CAPABILITY, ("torch>=2.8",), "zeros of the right shape, no attention"),
    )

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        """See `Backend.run`."""
        import torch

        spec = call.spec()
        paged = call.paged if isinstance(call, TreeAttention | DualChunkAttention | DifferentialAttention) else call
        tokens = paged.query.shape[0]
        shape = (tokens, spec.num_heads, spec.value_dim)
        if isinstance(call, DifferentialAttention):
            shape = (tokens, spec.num_heads // 2, 2 * spec.value_dim)
        out = paged.query.new_empty(shape) if paged.out is None else paged.out
        out.zero_()
        lse = None
        if paged.return_lse:
            lse = torch.full(shape[:2], float("-inf"), dtype=torch.float32, device=out.device)
        return AttentionOutput(out, lse, "no_attention")


BACKENDS: tuple[Backend, ...] = (NoAttention(),)
