"""TREE_ATTN: verification of speculative trees, our own Triton kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from attnkit.backends.base import Backend, Capability, Provider
from attnkit.backends.triton_common import BF16_ARCHS, GPU_ARCHS, HEAD_DIMS, check, kernel_name, providers
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Call, TreeAttention

CAPABILITY = Capability(
    ops=frozenset({"tree"}),
    archs=GPU_ARCHS,
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    bf16_needs=BF16_ARCHS,
    head_dims=HEAD_DIMS,
    min_block_size=16,
    block_multiple=16,
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    features=frozenset({"non_causal", "softcap", "sinks", "lse"}),
    graphs=True,
    deterministic=True,
)


class TreeAttn(Backend):
    """A node sees the whole context, itself and its ancestors: the paged kernels with the tree mask among the new tokens."""

    name: ClassVar[str] = "TREE_ATTN"
    aliases: ClassVar[tuple[str, ...]] = ("tree_attn", "tree")
    summary: ClassVar[str] = "speculative decoding over a tree of drafts"
    providers: ClassVar[tuple[Provider, ...]] = providers(CAPABILITY, "our Triton kernels with a tree mask")

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        """Compute a `TreeAttention`; see `Backend.run`."""
        if not isinstance(call, TreeAttention):
            raise UnsupportedError(f"{self.name} does not implement {call.op}; implements tree")
        code = check(self, call, call.paged.query, provider)
        from attnkit.kernels.triton.paged import plan as paged_plan

        paged = replace(call.paged, softmax=replace(call.paged.softmax, causal=False))
        out, lse, kernel = paged_plan.paged(paged, tree_mask=call.tree_mask, arch=code)
        return AttentionOutput(out, lse, kernel_name(code, kernel))


BACKENDS: tuple[Backend, ...] = (TreeAttn(),)
