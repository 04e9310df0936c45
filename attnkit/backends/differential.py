"""DIFFERENTIAL_FLASH_ATTN: the Differential Transformer's attention on our Triton kernels."""

from __future__ import annotations

from typing import ClassVar

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.backends.triton_common import BF16_ARCHS, GPU_ARCHS, check, kernel_name, providers
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Call, DifferentialAttention

CAPABILITY = Capability(
    ops=frozenset({"differential"}),
    archs=GPU_ARCHS,
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    bf16_needs=BF16_ARCHS,
    head_dims=HeadDims(low=16, high=128, multiple_of=8),
    min_block_size=16,
    block_multiple=16,
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    features=frozenset({"non_causal", "window", "softcap"}),
    graphs=True,
    deterministic=True,
)


class Differential(Backend):
    """Two paged passes that share the value pairs, then difference, head-wise RMSNorm and scale in one kernel."""

    name: ClassVar[str] = "DIFFERENTIAL_FLASH_ATTN"
    aliases: ClassVar[tuple[str, ...]] = ("DIFFERENTIAL_FLASH_ATTN_VLLM_V1", "differential", "differential_flash_attn")
    summary: ClassVar[str] = "Differential Transformer: the difference of two softmaxes"
    providers: ClassVar[tuple[Provider, ...]] = providers(CAPABILITY, "our Triton kernels: two passes and a combine")

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        """Compute a `DifferentialAttention`; see `Backend.run`."""
        if not isinstance(call, DifferentialAttention):
            raise UnsupportedError(f"{self.name} does not implement {call.op}; implements differential")
        code = check(self, call, call.paged.query, provider)
        from attnkit.kernels.triton import differential

        out, kernel = differential.run(call, arch=code)
        return AttentionOutput(out, None, kernel_name(code, kernel))


BACKENDS: tuple[Backend, ...] = (Differential(),)
