"""IPEX: attention on Intel CPUs and GPUs.

On a Xeon: intel-extension-for-pytorch 2.8.0, the last release, which goes with torch 2.8. On Intel GPUs that library has no
successor of its name; vllm-xpu-kernels and torch's own XPU path took its place and are the providers here.

Sources: intel_extension_for_pytorch/transformers/models/cpu/fusions/mha_fusion.py (2.8.0);
vllm_xpu_kernels/flash_attn_interface.py; torch.nn.functional.scaled_dot_product_attention.
"""

from __future__ import annotations

from typing import Any

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.spec import AttentionOutput, PagedAttention, VarlenAttention

_CPU = Capability(
    ops=frozenset({"paged"}),
    archs={"cpu": ("x86_64",)},
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    head_dims=HeadDims(low=32, high=256, multiple_of=16),
    min_block_size=16,
    block_multiple=16,
    # The signature has more than the kernel does: it refuses ALiBi, leaves out a float8 cache's scales, and takes such a cache
    # with float32 and bfloat16 queries only.
    features=frozenset({"non_causal", "window", "softcap"}),
    deterministic=True,
)
_XPU_KERNELS = Capability(
    ops=frozenset({"paged", "varlen"}),
    archs={"intel": ("*",)},
    dtypes=frozenset({"float16", "bfloat16"}),
    head_dims=HeadDims.of(64, 96, 128, 192, 256),
    min_block_size=16,
    block_multiple=16,
    features=frozenset({"non_causal", "window", "sinks"}),
)
_TORCH_XPU = Capability(
    ops=frozenset({"paged", "varlen"}),
    archs={"intel": ("*",)},
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    head_dims=HeadDims(low=1, high=256),
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    features=frozenset({"non_causal", "window"}),
)


def _ipex(call: PagedAttention) -> AttentionOutput:
    from intel_extension_for_pytorch.transformers.models.cpu.fusions.mha_fusion import _IPEXPagedAttentionCPU

    from attnkit.backends.torch_device import finish, prefix_sum

    out = call.query.new_zeros(*call.query.shape[:2], call.value_cache.shape[-1])
    key_cache, value_cache, block_table = _heads_outside(call)
    if key_cache.shape[0]:
        left, right = call.softmax.window
        _IPEXPagedAttentionCPU.flash_attn_varlen_func(
            output=out,
            query=call.query.contiguous(),
            k_cache=key_cache,
            v_cache=value_cache,
            cu_seq_lens_q=call.query_start_loc,
            cu_seq_lens_kv=prefix_sum(call.seq_lens),
            max_seq_len_q=call.max_query_len,
            max_seq_len_kv=call.max_seq_len,
            scale=call.softmax.softmax_scale,
            is_causal=call.softmax.causal,
            block_table=block_table,
            window_size_left=left,
            window_size_right=min(right, 0) if call.softmax.causal else right,
            softcap=call.softmax.softcap or -1.0,
        )
    return finish(call, out, None, "torch_ipex.flash_attn_varlen_func")


def _heads_outside(call: PagedAttention) -> tuple[Any, Any, Any]:
    """The blocks in use in IPEX's layout, which keeps a block's heads outside its tokens, and the block table into them.

    Copied, because IPEX reads its own layout whatever the strides say; in use only, because a cache fills most of the memory.

    Returns:
        keys and values [blocks in use, num_kv_heads, block_size, head_dim]; block table [num_seqs, max_blocks] int32.
    """
    import torch

    block_size = call.key_cache.shape[1]
    counts = (call.seq_lens + block_size - 1) // block_size
    in_use = torch.arange(call.block_table.shape[1])[None, :] < counts[:, None]
    blocks = call.block_table[in_use].long()
    table = torch.zeros_like(call.block_table)
    table[in_use] = torch.arange(blocks.shape[0], dtype=table.dtype)
    key, value = (cache[blocks].transpose(1, 2).contiguous() for cache in (call.key_cache, call.value_cache))
    return key, value, table


def _xpu_kernels(call: PagedAttention | VarlenAttention) -> AttentionOutput:
    from vllm_xpu_kernels.flash_attn_interface import flash_attn_varlen_func

    from attnkit.backends.torch_device import finish

    left, right = call.softmax.window
    keys: dict[str, Any]
    if isinstance(call, PagedAttention):
        key, value = call.key_cache, call.value_cache
        keys = {"seqused_k": call.seq_lens, "block_table": call.block_table}
    else:
        key, value = call.key, call.value
        keys = {"cu_seqlens_k": call.key_start_loc}
    sinks = call.softmax.sinks
    out = flash_attn_varlen_func(
        q=call.query,
        k=key,
        v=value,
        max_seqlen_q=call.max_query_len,
        cu_seqlens_q=call.query_start_loc,
        max_seqlen_k=call.max_seq_len,
        softmax_scale=call.softmax.softmax_scale,
        causal=call.softmax.causal,
        window_size=[left, min(right, 0) if call.softmax.causal else right],
        s_aux=None if sinks is None else sinks.to(call.query.dtype),
        **keys,
    )
    return finish(call, out, None, "vllm_xpu_kernels.flash_attn_varlen_func")


def _torch_xpu(call: PagedAttention | VarlenAttention) -> AttentionOutput:
    import torch

    from attnkit.backends.torch_common import gather_kv, visible
    from attnkit.backends.torch_device import finish

    key, value, key_start_loc = gather_kv(call)
    out = call.query.new_zeros(*call.query.shape[:2], value.shape[-1])
    query_starts, key_starts = call.query_start_loc.tolist(), key_start_loc.tolist()
    for i in range(len(query_starts) - 1):
        q0, q1, k0, k1 = query_starts[i], query_starts[i + 1], key_starts[i], key_starts[i + 1]
        if q0 == q1 or k0 == k1:
            continue
        keys = torch.arange(k1 - k0, device=out.device)
        queries = torch.arange(q1 - q0, device=out.device) + (k1 - k0) - (q1 - q0)
        result = torch.nn.functional.scaled_dot_product_attention(
            call.query[q0:q1].transpose(0, 1)[None],
            key[k0:k1].transpose(0, 1)[None],
            value[k0:k1].transpose(0, 1)[None],
            attn_mask=visible(call.softmax, queries[:, None], keys[None, :]),
            scale=call.softmax.softmax_scale,
            enable_gqa=True,
        )
        out[q0:q1] = result[0].transpose(0, 1)
    return finish(call, out, None, "torch.scaled_dot_product_attention(xpu)")


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "IPEX",
        (
            Provider(
                "ipex",
                _CPU,
                _ipex,
                ("torch>=2.8,<2.9", "intel-extension-for-pytorch>=2.8,<2.9"),
                "IPEX 2.8.0, the last release",
                kind="kernel",
                kernels=("torch_ipex.*",),
            ),
            Provider(
                "vllm-xpu-kernels",
                _XPU_KERNELS,
                _xpu_kernels,
                ("torch>=2.8", "vllm-xpu-kernels"),
                "vLLM's kernels for Intel GPUs",
                kind="kernel",
                kernels=("vllm_xpu_kernels.*",),
            ),
            Provider(
                "torch-xpu",
                _TORCH_XPU,
                _torch_xpu,
                ("torch>=2.8",),
                "torch's own attention on Intel GPUs",
                kind="composed",
                kernels=("torch.scaled_dot_product_attention(xpu)",),
            ),
        ),
        summary="Intel CPUs (IPEX 2.8) and GPUs (vllm-xpu-kernels, torch XPU)",
    ),
)
