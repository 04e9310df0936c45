"""DIFFERENTIAL_FLASH_ATTN: the Differential Transformer's attention on our Triton kernels."""

from __future__ import annotations

from attnkit.backends.base import Backend, Capability, HeadDims
from attnkit.backends.triton_common import BF16_ARCHS, GPU_ARCHS, Result, triton_backend
from attnkit.spec import DifferentialAttention

CAPABILITY = Capability(
    ops=frozenset({"differential"}),
    archs=GPU_ARCHS,
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    bf16_needs=BF16_ARCHS,
    head_dims=HeadDims(low=16, high=128, multiple_of=8),
    min_block_size=16,
    block_multiple=16,
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    fnuz=True,
    features=frozenset({"non_causal", "window", "softcap"}),
    graphs=True,
    deterministic=True,
)


def _kernels(call: DifferentialAttention, code: str | None) -> Result:
    """Two paged passes that share the value pairs, then difference, head-wise RMSNorm and scale in one kernel."""
    from attnkit.kernels.triton import differential

    out, kernel = differential.run(call, arch=code)
    return out, None, kernel


BACKENDS: tuple[Backend, ...] = (
    triton_backend(
        "DIFFERENTIAL_FLASH_ATTN",
        CAPABILITY,
        _kernels,
        aliases=("DIFFERENTIAL_FLASH_ATTN_VLLM_V1", "differential", "differential_flash_attn"),
        summary="Differential Transformer: the difference of two softmaxes",
        why="our Triton kernels: two passes and a combine",
        names=("*+triton_differential_combine",),
    ),
)
