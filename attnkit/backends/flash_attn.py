"""FLASH_ATTN: the FlashAttention family, through whichever of its packages is there.

Three packages, three signatures; none of them copies the cache. What each calls the same thing:

| here | vllm_flash_attn (FA2, FA3) | flash_attn 2.x | flash_attn.cute (FA4) |
|---|---|---|---|
| seq_lens | seqused_k | cu_seqlens_k (their prefix sum) | seqused_k |
| block_table | block_table | block_table | page_table |
| sinks | s_aux (FA3, bfloat16) | – | learnable_sink |
| log-sum-exp | [heads, tokens], natural | [heads, tokens], natural | [heads, tokens], natural |

Sources: vllm/vllm_flash_attn/flash_attn_interface.py, flash_attn/flash_attn_interface.py, flash_attn/cute/interface.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.spec import AttentionOutput, Dtype, Feature, Op, PagedAttention, Softmax, VarlenAttention

_OPS: frozenset[Op] = frozenset({"paged", "varlen"})
_HALF: frozenset[Dtype] = frozenset({"float16", "bfloat16"})
_FEATURES: frozenset[Feature] = frozenset({"non_causal", "window", "softcap", "lse"})
_CROSS: frozenset[Feature] = frozenset({"cross"})  # separate prefix sums of queries and keys

# FlashAttention's ALiBi is -slope * |distance|: the same as ours only where no key lies ahead of its query.
_ALIBI_IS_CAUSAL: tuple[frozenset[Feature], ...] = (frozenset({"alibi", "non_causal"}),)

_FA3 = Capability(
    ops=_OPS,
    archs={"nvidia": ("sm_90",)},
    dtypes=_HALF,
    head_dims=HeadDims(low=8, high=256, multiple_of=8),
    block_multiple=16,
    min_block_size=16,
    features=_FEATURES | _CROSS | {"sinks"},
    graphs=True,
)
_FA2 = Capability(
    ops=_OPS,
    archs={"nvidia": ("sm_8*", "sm_9*", "sm_1*")},
    dtypes=_HALF,
    head_dims=HeadDims(low=8, high=256, multiple_of=8),
    block_multiple=16,
    min_block_size=16,
    features=_FEATURES | _CROSS | {"alibi"},
    conflicts=_ALIBI_IS_CAUSAL,
    graphs=True,
)
_FA2_UPSTREAM = Capability(
    ops=_OPS,
    archs={"nvidia": ("sm_8*", "sm_9*", "sm_1*")},
    dtypes=_HALF,
    head_dims=HeadDims(low=8, high=256, multiple_of=8),
    block_multiple=256,
    min_block_size=256,
    features=_FEATURES | _CROSS | {"alibi"},
    conflicts=_ALIBI_IS_CAUSAL,
    graphs=True,
)
# Pages as large as the kernel's tile of keys (128) are read whole by the copy engine, with the slots behind a sequence's end;
# what they hold times a probability of zero is NaN where it is NaN. The self-test found that on sm_90, with 4.0.0b36.
_FA4 = Capability(
    ops=_OPS,
    archs={"nvidia": ("sm_90", "sm_10*", "sm_11*")},
    dtypes=_HALF,
    head_dims=HeadDims(low=64, high=128, multiple_of=32),
    block_sizes=frozenset({16, 32, 64}),
    features=_FEATURES | {"sinks"},
)


_MOST_SEQUENCES = (1 << 16) - 1  # FlashAttention 2 has a sequence a row of CUDA's grid


def _window(softmax: Softmax) -> tuple[int, int]:
    """FlashAttention's window; with `causal` it narrows the right side itself."""
    left, right = softmax.window
    return left, (min(right, 0) if softmax.causal else right)


def _vllm_flash_attn(call: PagedAttention | VarlenAttention, version: int) -> AttentionOutput:
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    from attnkit.backends.torch_common import apply_sinks
    from attnkit.backends.torch_device import finish, heads_first_lse

    extra: dict[str, Any] = {"fa_version": version}
    sinks = call.softmax.sinks
    # FA3 takes sinks in bfloat16 only. Rounding them is within bfloat16's own error; for float16 they go in afterwards.
    afterwards = sinks is not None and str(call.query.dtype) != "torch.bfloat16"
    if sinks is not None and not afterwards:
        extra["s_aux"] = sinks.bfloat16()
    with_lse = call.return_lse or afterwards
    if isinstance(call, PagedAttention):
        key, value = call.key_cache, call.value_cache
        extra |= {"seqused_k": call.seq_lens, "block_table": call.block_table}
    else:
        key, value = call.key, call.value
        extra["cu_seqlens_k"] = call.key_start_loc
    result = flash_attn_varlen_func(
        q=call.query,
        k=key,
        v=value,
        max_seqlen_q=call.max_query_len,
        cu_seqlens_q=call.query_start_loc,
        max_seqlen_k=call.max_seq_len,
        softmax_scale=call.softmax.softmax_scale,
        causal=call.softmax.causal,
        window_size=list(_window(call.softmax)),
        softcap=call.softmax.softcap,
        alibi_slopes=call.softmax.alibi_slopes,
        return_softmax_lse=with_lse,
        **extra,
    )
    out, lse = (result[0], heads_first_lse(result[1])) if with_lse else (result, None)
    if afterwards:
        out, lse = apply_sinks(out, lse, sinks)
    return finish(call, out, lse if call.return_lse else None, f"vllm_flash_attn.fa{version}")


def _flash_attn_2(call: PagedAttention | VarlenAttention) -> AttentionOutput:
    from flash_attn import flash_attn_varlen_func

    from attnkit.backends.torch_device import finish, heads_first_lse, prefix_sum

    if isinstance(call, PagedAttention):
        key, value, block_table = call.key_cache, call.value_cache, call.block_table
        key_start_loc = prefix_sum(call.seq_lens)
    else:
        key, value, block_table, key_start_loc = call.key, call.value, None, call.key_start_loc
    result = flash_attn_varlen_func(
        q=call.query,
        k=key,
        v=value,
        cu_seqlens_q=call.query_start_loc,
        cu_seqlens_k=key_start_loc,
        max_seqlen_q=call.max_query_len,
        max_seqlen_k=call.max_seq_len,
        softmax_scale=call.softmax.softmax_scale,
        causal=call.softmax.causal,
        window_size=_window(call.softmax),
        softcap=call.softmax.softcap,
        alibi_slopes=call.softmax.alibi_slopes,
        return_attn_probs=call.return_lse,
        block_table=block_table,
    )
    out, lse = (result[0], heads_first_lse(result[1])) if call.return_lse else (result, None)
    return finish(call, out, lse, "flash_attn.varlen")


def _flash_attn_4(call: PagedAttention | VarlenAttention) -> AttentionOutput:
    from flash_attn.cute.interface import flash_attn_varlen_func

    from attnkit.backends.torch_device import finish, heads_first_lse

    left, right = _window(call.softmax)
    keys: dict[str, Any]
    if isinstance(call, PagedAttention):
        key, value = call.key_cache, call.value_cache
        keys = {"seqused_k": call.seq_lens, "page_table": call.block_table}
    else:
        key, value = call.key, call.value
        keys = {"cu_seqlens_k": call.key_start_loc}
    sinks = call.softmax.sinks
    result = flash_attn_varlen_func(
        q=call.query,
        k=key,
        v=value,
        cu_seqlens_q=call.query_start_loc,
        max_seqlen_q=call.max_query_len,
        max_seqlen_k=call.max_seq_len,
        softmax_scale=call.softmax.softmax_scale,
        causal=call.softmax.causal,
        # "Unlimited" is None here, where the other two packages write -1.
        window_size=(None if left < 0 else left, None if right < 0 else right),
        learnable_sink=None if sinks is None else sinks.to(call.query.dtype),
        softcap=call.softmax.softcap,
        return_lse=call.return_lse,
        **keys,
    )
    out, lse = result[0], result[1]
    return finish(call, out, heads_first_lse(lse) if call.return_lse else None, "flash_attn.cute")


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "FLASH_ATTN",
        (
            Provider(
                "vllm_flash_attn-fa3",
                _FA3,
                partial(_vllm_flash_attn, version=3),
                ("torch>=2.8", "vllm.vllm_flash_attn._vllm_fa3_C"),
                "vLLM's build of FlashAttention 3",
                kind="kernel",
                kernels=("vllm_flash_attn.fa3",),
            ),
            Provider(
                "vllm_flash_attn-fa2",
                _FA2,
                partial(_vllm_flash_attn, version=2),
                ("torch>=2.8", "vllm.vllm_flash_attn._vllm_fa2_C"),
                "vLLM's build of FlashAttention 2",
                kind="kernel",
                kernels=("vllm_flash_attn.fa2",),
                max_sequences=_MOST_SEQUENCES,
            ),
            Provider(
                "flash-attn",
                _FA2_UPSTREAM,
                _flash_attn_2,
                ("torch>=2.8", "flash-attn>=2.6,<3"),
                "FlashAttention 2",
                kind="kernel",
                kernels=("flash_attn.varlen",),
                max_sequences=_MOST_SEQUENCES,
            ),
            Provider(
                "flash-attn-4",
                _FA4,
                _flash_attn_4,
                ("torch>=2.8", "flash-attn-4"),
                "FlashAttention 4, in CuTe DSL",
                kind="kernel",
                kernels=("flash_attn.cute",),
            ),
        ),
        aliases=("FLASH_ATTN_VLLM_V1",),
        summary="FlashAttention 2, 3 and 4",
    ),
)
