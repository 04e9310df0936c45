"""DUAL_CHUNK_FLASH_ATTN: Qwen2.5-1M's dual chunk attention, our own Triton kernel."""

from __future__ import annotations

from typing import ClassVar

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.backends.triton_common import BF16_ARCHS, GPU_ARCHS, check, kernel_name, providers
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Call, DualChunkAttention

CAPABILITY = Capability(
    ops=frozenset({"dual_chunk"}),
    archs=GPU_ARCHS,
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    bf16_needs=BF16_ARCHS,
    head_dims=HeadDims.of(32, 64, 128, 256),
    min_block_size=16,
    block_multiple=16,
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    features=frozenset({"lse"}),
    graphs=True,
    deterministic=True,
)


class DualChunk(Backend):
    """Keys are rotated by their position inside the chunk as they are loaded; three query rotations, one softmax."""

    name: ClassVar[str] = "DUAL_CHUNK_FLASH_ATTN"
    aliases: ClassVar[tuple[str, ...]] = ("DUAL_CHUNK_FLASH_ATTN_VLLM_V1", "dual_chunk", "dual_chunk_flash_attn")
    summary: ClassVar[str] = "dual chunk attention for contexts past the trained length (Qwen2.5-1M)"
    providers: ClassVar[tuple[Provider, ...]] = providers(CAPABILITY, "our Triton kernel; rotates keys on load")

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        """Compute a `DualChunkAttention`; see `Backend.run`."""
        if not isinstance(call, DualChunkAttention):
            raise UnsupportedError(f"{self.name} does not implement {call.op}; implements dual_chunk")
        code = check(self, call, call.paged.query, provider)
        from attnkit.kernels.triton.dual_chunk import plan as dual_chunk

        out, lse, kernel = dual_chunk.run(call, arch=code)
        return AttentionOutput(out, lse, kernel_name(code, kernel))


BACKENDS: tuple[Backend, ...] = (DualChunk(),)
