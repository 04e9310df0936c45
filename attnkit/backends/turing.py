"""TURING_ATTN: our Triton kernels with the tensor cores of Turing (RTX 20xx, T4, Quadro RTX; sm_75).

Stock Triton compiles `tl.dot` for sm_75 to scalar multiply-adds. `attnkit.kernels.turing` brings the tensor cores back; this
backend turns that on and runs our paged and varlen kernels with configurations made for 64 KB of shared memory.
"""

from __future__ import annotations

from attnkit.backends.base import Backend, Capability
from attnkit.backends.triton_common import HEAD_DIMS, paged_or_varlen, triton_backend

CAPABILITY = Capability(
    ops=frozenset({"paged", "varlen"}),
    archs={"nvidia": ("sm_75",)},
    dtypes=frozenset({"float16"}),
    head_dims=HEAD_DIMS,
    min_block_size=16,
    block_multiple=16,
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    fnuz=True,
    features=frozenset({"non_causal", "window", "softcap", "alibi", "sinks", "lse"}),
    graphs=True,
    deterministic=True,
    tensor_cores=True,
)


# On sm_75, or under `attnkit.kernels.turing.emulate.emulate()`; float32 accumulation on the tensor cores.
BACKENDS: tuple[Backend, ...] = (
    triton_backend(
        "TURING_ATTN",
        CAPABILITY,
        paged_or_varlen,
        aliases=("turing",),
        summary="our Triton kernels with Turing's tensor cores (float16)",
        why="our Triton kernels, compiled to Turing's own matrix instructions",
        names=("turing:triton_*",),
        interpreted=False,
    ),
)
