"""NO_ATTENTION: computes nothing. For finding out whether the rest of a pipeline works; never chosen automatically."""

from __future__ import annotations

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.spec import DTYPES, FEATURES, KV_CACHE_DTYPES, OPS, AttentionOutput, Call

CAPABILITY = Capability(
    ops=frozenset(OPS),
    archs={"nvidia": ("*",), "amd": ("*",), "intel": ("*",), "cpu": ("*",)},
    dtypes=frozenset(DTYPES),
    head_dims=HeadDims(low=1, high=1024, extra=frozenset({(576, 512)})),
    kv_cache_dtypes=frozenset(KV_CACHE_DTYPES),
    fnuz=True,
    features=frozenset(FEATURES),
    graphs=True,
    deterministic=True,
)


def _zeros(call: Call) -> AttentionOutput:
    """Zeros of the right shape (log-sum-exp: -inf, nothing was seen). The self-test never passes it."""
    import torch

    batch = call.batch
    out = batch.query.new_empty(call.out_shape) if batch.out is None else batch.out
    out.zero_()
    lse = torch.full(call.out_shape[:2], float("-inf"), device=out.device) if batch.return_lse else None
    return AttentionOutput(out, lse, "no_attention")


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "NO_ATTENTION",
        (Provider("attnkit", CAPABILITY, _zeros, ("torch>=2.8",), "zeros of the right shape, no attention"),),
        summary="skips attention and returns zeros; for debugging a pipeline, never ready",
        automatic=False,
    ),
)
