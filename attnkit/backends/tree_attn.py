"""TREE_ATTN: verification of speculative trees, our own Triton kernels."""

from __future__ import annotations

from attnkit.backends.base import Backend, Capability
from attnkit.backends.triton_common import BF16_ARCHS, GPU_ARCHS, HEAD_DIMS, Result, triton_backend
from attnkit.spec import TreeAttention

CAPABILITY = Capability(
    ops=frozenset({"tree"}),
    archs=GPU_ARCHS,
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    bf16_needs=BF16_ARCHS,
    head_dims=HEAD_DIMS,
    min_block_size=16,
    block_multiple=16,
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    fnuz=True,
    features=frozenset({"non_causal", "softcap", "sinks", "lse"}),
    graphs=True,
    deterministic=True,
)


def _kernels(call: TreeAttention, code: str | None) -> Result:
    """A node sees the whole context, itself and its ancestors: the paged kernels with the tree mask among the new tokens."""
    from attnkit.kernels.triton.paged import plan

    return plan.paged(call.paged.with_softmax(causal=False), tree_mask=call.tree_mask, arch=code)


BACKENDS: tuple[Backend, ...] = (
    triton_backend(
        "TREE_ATTN",
        CAPABILITY,
        _kernels,
        aliases=("tree_attn", "tree"),
        summary="speculative decoding over a tree of drafts",
        why="our Triton kernels with a tree mask",
        names=("triton_tree:*", "turing:triton_tree:*"),
    ),
)
