"""TRITON_MLA: multi-head latent attention on the compressed cache, our own Triton kernel."""

from __future__ import annotations

from typing import ClassVar

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.backends.triton_common import BF16_ARCHS, GPU_ARCHS, check, kernel_name, providers
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Call, MlaDecode

LATENTS: tuple[int, ...] = (64, 128, 256, 512)
ROPES: tuple[int, ...] = (16, 32, 64)

CAPABILITY = Capability(
    ops=frozenset({"mla_decode"}),
    archs=GPU_ARCHS,
    dtypes=frozenset({"float16", "bfloat16"}),
    bf16_needs=BF16_ARCHS,
    head_dims=HeadDims.of(*((latent + rope, latent) for latent in LATENTS for rope in ROPES)),
    min_block_size=16,
    block_multiple=16,
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    features=frozenset({"lse"}),
    graphs=True,
    deterministic=True,
)


class TritonMla(Backend):
    """Absorbed MLA decode: scores on latent and rope parts, values are the latent rows themselves; split-KV."""

    name: ClassVar[str] = "TRITON_MLA"
    aliases: ClassVar[tuple[str, ...]] = ("TRITON_MLA_VLLM_V1", "triton_mla")
    summary: ClassVar[str] = "MLA decode on the compressed cache, every GPU"
    providers: ClassVar[tuple[Provider, ...]] = providers(CAPABILITY, "our Triton kernel on the compressed cache")

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        """Compute an `MlaDecode`; see `Backend.run`."""
        if not isinstance(call, MlaDecode):
            raise UnsupportedError(f"{self.name} does not implement {call.op}; implements mla_decode")
        code = check(self, call, call.query, provider)
        from attnkit.kernels.triton.mla import plan as mla_plan

        out, lse, kernel = mla_plan.run(call, arch=code)
        return AttentionOutput(out, lse, kernel_name(code, kernel))


BACKENDS: tuple[Backend, ...] = (TritonMla(),)
