"""TURING_ATTN: our Triton kernels with the tensor cores of Turing (RTX 20xx, T4, Quadro RTX; sm_75).

Stock Triton compiles `tl.dot` for sm_75 to scalar multiply-adds. `attnkit.kernels.turing` brings the tensor cores back; this
backend turns that on and runs our paged and varlen kernels with configurations made for 64 KB of shared memory.
"""

from __future__ import annotations

from typing import ClassVar

from attnkit.backends.base import Backend, Capability, Provider
from attnkit.backends.triton_common import HEAD_DIMS, check, kernel_name
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Call, PagedAttention, VarlenAttention

CAPABILITY = Capability(
    ops=frozenset({"paged", "varlen"}),
    archs={"nvidia": ("sm_75",)},
    dtypes=frozenset({"float16"}),
    head_dims=HEAD_DIMS,
    min_block_size=16,
    block_multiple=16,
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    features=frozenset({"non_causal", "window", "softcap", "alibi", "sinks", "lse"}),
    graphs=True,
    deterministic=True,
    tensor_cores=True,
)


class TuringAttn(Backend):
    """Paged and varlen attention on sm_75, float16, float32 accumulation on the tensor cores."""

    name: ClassVar[str] = "TURING_ATTN"
    aliases: ClassVar[tuple[str, ...]] = ("turing",)
    summary: ClassVar[str] = "our Triton kernels with Turing's tensor cores (float16)"
    providers: ClassVar[tuple[Provider, ...]] = (
        Provider(
            name="attnkit",
            capability=CAPABILITY,
            requires=("torch>=2.8", "triton>=3.6,<3.10"),
            why="our Triton kernels, compiled to Turing's own matrix instructions",
            kind="kernel",
        ),
    )

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        """Compute a `PagedAttention` or `VarlenAttention` on sm_75, or under `attnkit.kernels.turing.emulate.emulate()`.

        The kernel's name gets the prefix "turing:", so that a result says which code computed it.
        """
        if not isinstance(call, PagedAttention | VarlenAttention):
            raise UnsupportedError(f"{self.name} does not implement {call.op}; implements paged, varlen")
        code = check(self, call, call.query, provider)
        from attnkit.kernels.triton.paged import plan as paged_plan

        if isinstance(call, PagedAttention):
            out, lse, kernel = paged_plan.paged(call, arch=code)
        else:
            out, lse, kernel = paged_plan.varlen(call, arch=code)
        return AttentionOutput(out, lse, kernel_name(code, kernel))


BACKENDS: tuple[Backend, ...] = (TuringAttn(),)
