"""TRITON_ATTN: paged and varlen attention on every GPU, our own Triton kernels."""

from __future__ import annotations

from attnkit.backends.base import Backend, Capability
from attnkit.backends.triton_common import BF16_ARCHS, GPU_ARCHS, HEAD_DIMS, paged_or_varlen, triton_backend

CAPABILITY = Capability(
    ops=frozenset({"paged", "varlen"}),
    archs=GPU_ARCHS,
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    bf16_needs=BF16_ARCHS,
    head_dims=HEAD_DIMS,
    min_block_size=16,
    block_multiple=16,
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    fnuz=True,
    features=frozenset({"non_causal", "window", "softcap", "alibi", "sinks", "lse"}),
    graphs=True,
    deterministic=True,
)


# Paged prefill, chunked prefill, mixed batches and split-KV decode in Triton; also packed varlen prefill.
BACKENDS: tuple[Backend, ...] = (
    triton_backend(
        "TRITON_ATTN",
        CAPABILITY,
        paged_or_varlen,
        aliases=("TRITON_ATTN_VLLM_V1", "triton", "triton_attn"),
        summary="paged / varlen attention on every GPU",
        why="our Triton kernels; no vendor library needed",
        names=("triton_*", "gluon_hopper_prefill*"),
    ),
)
