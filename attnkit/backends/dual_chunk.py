"""DUAL_CHUNK_FLASH_ATTN: Qwen2.5-1M's dual chunk attention, our own Triton kernel."""

from __future__ import annotations

from attnkit.backends.base import Backend, Capability, HeadDims
from attnkit.backends.triton_common import BF16_ARCHS, GPU_ARCHS, Result, triton_backend
from attnkit.spec import DualChunkAttention

CAPABILITY = Capability(
    ops=frozenset({"dual_chunk"}),
    archs=GPU_ARCHS,
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    bf16_needs=BF16_ARCHS,
    head_dims=HeadDims.of(32, 64, 128, 256),
    min_block_size=16,
    block_multiple=16,
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    fnuz=True,
    features=frozenset({"lse"}),
    graphs=True,
    deterministic=True,
)


def _kernels(call: DualChunkAttention, code: str | None) -> Result:
    """Keys are rotated by their position inside the chunk as they are loaded; three query rotations, one softmax."""
    from attnkit.kernels.triton.dual_chunk import plan

    return plan.run(call, arch=code)


BACKENDS: tuple[Backend, ...] = (
    triton_backend(
        "DUAL_CHUNK_FLASH_ATTN",
        CAPABILITY,
        _kernels,
        aliases=("DUAL_CHUNK_FLASH_ATTN_VLLM_V1", "dual_chunk", "dual_chunk_flash_attn"),
        summary="dual chunk attention for contexts past the trained length (Qwen2.5-1M)",
        why="our Triton kernel; rotates keys on load",
        names=("triton_dual_chunk*", "turing:triton_dual_chunk*"),
    ),
)
