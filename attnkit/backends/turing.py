"""TURING_ATTN: our Triton kernels with the tensor cores of Turing (RTX 20xx, T4, Quadro RTX; sm_75).

Stock Triton compiles `tl.dot` for sm_75 to scalar multiply-adds. `attnkit.kernels.turing` brings the tensor cores back; this
backend turns that on and runs our paged and varlen kernels with configurations made for 64 KB of shared memory.
"""

from __future__ import annotations

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Call

CAPABILITY = Capability(
    ops=frozenset({"paged", "varlen"}),
    archs={"nvidia": ("sm_75",)},
    dtypes=frozenset({"float16"}),
    head_dims=HeadDims(low=32, high=256, multiple_of=8),
    min_block_size=16,
    block_multiple=16,
    features=frozenset({"non_causal", "window", "softcap", "alibi", "sinks", "lse"}),
    graphs=True,
    deterministic=True,
)


class TuringAttn(Backend):
    """Paged and varlen attention on sm_75, float16, float32 accumulation on the tensor cores."""

    name = "TURING_ATTN"
    aliases = ("turing",)
    summary = "our Triton kernels with Turing's tensor cores (float16)"
    providers = (
        Provider(
            name="attnkit",
            capability=CAPABILITY,
            requires=("torch>=2.8", "triton>=3.6,<3.10"),
            why="our Triton kernels, compiled to Turing's m16n8k8 tensor-core instruction",
        ),
    )

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        """Compute `call` on an sm_75 device (or under `attnkit.kernels.turing.emulate()`).

        Raises:
            UnsupportedError: outside the capability.
        """
        from attnkit.kernels import turing

        reasons = CAPABILITY.reject(call.spec(), turing.current_device())
        if reasons:
            raise UnsupportedError("TURING_ATTN: " + "; ".join(r.message for r in reasons))
        turing.enable()
        return turing.attention(call)


BACKENDS: tuple[Backend, ...] = (TuringAttn(),)
