"""TRITON_MLA: multi-head latent attention on the compressed cache, our own Triton kernel."""

from __future__ import annotations

from attnkit.backends.base import Backend, Capability, HeadDims
from attnkit.backends.triton_common import BF16_ARCHS, GPU_ARCHS, Result, triton_backend
from attnkit.spec import MlaDecode

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
    fnuz=True,
    features=frozenset({"lse"}),
    graphs=True,
    deterministic=True,
)


def _kernels(call: MlaDecode, code: str | None) -> Result:
    """Absorbed MLA decode: scores on latent and rope parts, values are the latent rows themselves; split-KV."""
    from attnkit.kernels.triton.mla import plan

    return plan.run(call, arch=code)


BACKENDS: tuple[Backend, ...] = (
    triton_backend(
        "TRITON_MLA",
        CAPABILITY,
        _kernels,
        aliases=("TRITON_MLA_VLLM_V1", "triton_mla"),
        summary="MLA decode on the compressed cache, every GPU",
        why="our Triton kernel on the compressed cache",
        names=("triton_mla_*", "gluon_hopper_mla_*", "turing:triton_mla_*"),
    ),
)
