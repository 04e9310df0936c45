"""FLEX_ATTENTION: torch.nn.attention.flex_attention, the programmable one (score_mod, mask_mod)."""

from __future__ import annotations

from typing import ClassVar

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Call

CAPABILITY = Capability(
    ops=frozenset({"paged", "varlen", "tree"}),
    archs={"nvidia": ("*",), "amd": ("gfx9*", "gfx11*", "gfx12*"), "intel": ("*",), "cpu": ("*",)},
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    bf16_needs={"nvidia": ("sm_8*", "sm_9*", "sm_1*"), "amd": ("*",), "intel": ("*",), "cpu": ("*",)},
    head_dims=HeadDims(low=16, high=256, multiple_of=8),
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    features=frozenset({"non_causal", "window", "softcap", "alibi", "sinks", "lse", "score_mod", "mask_mod"}),
    deterministic=True,
)


class FlexAttention(Backend):
    """Attention by torch's flex_attention: compiled on accelerators, eager on the CPU (and its kernel name says so)."""

    name: ClassVar[str] = "FLEX_ATTENTION"
    aliases: ClassVar[tuple[str, ...]] = ("flex",)
    summary: ClassVar[str] = "programmable score_mod / mask_mod attention through torch's flex_attention"
    providers: ClassVar[tuple[Provider, ...]] = (
        Provider("torch", CAPABILITY, ("torch>=2.8",), "torch.nn.attention.flex_attention"),
    )

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        """See `Backend.run`."""
        raise UnsupportedError("FLEX_ATTENTION: run is not wired up")


BACKENDS: tuple[Backend, ...] = (FlexAttention(),)
