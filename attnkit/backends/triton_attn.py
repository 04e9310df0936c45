"""TRITON_ATTN: paged and varlen attention on every GPU, our own Triton kernels."""

from __future__ import annotations

from typing import ClassVar

from attnkit.backends.base import Backend, Capability, Provider
from attnkit.backends.triton_common import BF16_ARCHS, GPU_ARCHS, HEAD_DIMS, check, providers
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Call, PagedAttention, VarlenAttention

CAPABILITY = Capability(
    ops=frozenset({"paged", "varlen"}),
    archs=GPU_ARCHS,
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    bf16_needs=BF16_ARCHS,
    head_dims=HEAD_DIMS,
    min_block_size=16,
    block_multiple=16,
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    features=frozenset({"non_causal", "window", "softcap", "alibi", "sinks", "lse"}),
    graphs=True,
    deterministic=True,
)


class TritonAttn(Backend):
    """Paged prefill, chunked prefill, mixed batches and split-KV decode in Triton; also packed varlen prefill."""

    name: ClassVar[str] = "TRITON_ATTN"
    aliases: ClassVar[tuple[str, ...]] = ("TRITON_ATTN_VLLM_V1", "triton", "triton_attn")
    summary: ClassVar[str] = "paged / varlen attention on every GPU"
    providers: ClassVar[tuple[Provider, ...]] = providers(CAPABILITY, "our Triton kernels; no vendor library needed")

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        """Compute a `PagedAttention` or `VarlenAttention`; see `Backend.run`."""
        if not isinstance(call, PagedAttention | VarlenAttention):
            raise UnsupportedError(f"{self.name} does not implement {call.op}; implements paged, varlen")
        check(self, call, call.query, provider)
        from attnkit.kernels.triton.paged import plan as paged_plan

        out, lse, kernel = paged_plan.paged(call) if isinstance(call, PagedAttention) else paged_plan.varlen(call)
        return AttentionOutput(out, lse, kernel)


BACKENDS: tuple[Backend, ...] = (TritonAttn(),)
