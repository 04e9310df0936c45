"""Tensor parallelism: the attention that one rank computes."""

from __future__ import annotations

from dataclasses import replace

from attnkit.errors import UsageError
from attnkit.spec import AttentionSpec


def per_rank(spec: AttentionSpec, ranks: int) -> AttentionSpec:
    """What one of `ranks` ranks computes of a layer, as vLLM splits it.

    Query heads are split evenly. KV heads are too, and where there are fewer than ranks each rank holds a copy of one:
    max(1, num_kv_heads / ranks) (vllm/model_executor/layers/linear.py, QKVParallelLinear). MLA's latent cache, one KV head for
    all query heads, is on every rank.

    Raises:
        UsageError: the heads cannot be split so; the message says which numbers can.
    """
    if ranks == 1:
        return spec
    heads, kv_heads = spec.num_heads, spec.num_kv_heads
    if heads % ranks:
        fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise UsageError(f"{heads} attention heads cannot be split over {ranks} tensor-parallel ranks; allowed: {fitting}")
    if kv_heads % ranks and ranks % kv_heads:
        raise UsageError(
            f"{kv_heads} KV heads can be neither split over nor copied to {ranks} tensor-parallel ranks: one number must be a "
            "multiple of the other"
        )
    return replace(spec, num_heads=heads // ranks, num_kv_heads=max(1, kv_heads // ranks))
