"""TORCH_SDPA: torch.nn.functional.scaled_dot_product_attention over a gathered cache; runs wherever torch runs."""

from __future__ import annotations

from typing import ClassVar

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Call

CAPABILITY = Capability(
    ops=frozenset({"paged", "varlen", "tree", "mla_decode"}),
    archs={"nvidia": ("*",), "amd": ("*",), "intel": ("*",), "cpu": ("*",)},
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    bf16_needs={"nvidia": ("sm_8*", "sm_9*", "sm_1*"), "amd": ("*",), "intel": ("*",), "cpu": ("*",)},
    head_dims=HeadDims(low=1, high=512, extra=frozenset({(576, 512)})),
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    features=frozenset({"non_causal", "window", "alibi", "sinks", "lse"}),
    deterministic=True,
)


class TorchSdpa(Backend):
    """Attention by torch's own scaled_dot_product_attention."""

    name: ClassVar[str] = "TORCH_SDPA"
    aliases: ClassVar[tuple[str, ...]] = ("TORCH_SDPA_VLLM_V1", "torch", "sdpa")
    summary: ClassVar[str] = "paged, varlen, tree and MLA attention through torch's scaled_dot_product_attention, everywhere"
    providers: ClassVar[tuple[Provider, ...]] = (
        Provider("torch", CAPABILITY, ("torch>=2.8",), "torch.nn.functional.scaled_dot_product_attention"),
    )

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        """See `Backend.run`."""
        raise UnsupportedError("TORCH_SDPA: run is not wired up")


BACKENDS: tuple[Backend, ...] = (TorchSdpa(),)
