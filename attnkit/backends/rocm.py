"""ROCM_FLASH, ROCM_AITER_FA and ROCM_AITER_MLA: attention on AMD GPUs.

The libraries' paged paths accept large blocks only, so a paged cache is gathered first for them; our own Triton kernels, the
last provider of ROCM_FLASH, read it in place.

Sources: flash_attn/flash_attn_interface.py (its ROCm build has the same signature); aiter/ops/mha.py; aiter/mla.py. The aiter
meant here is the distribution amd-aiter; `aiter` on PyPI is an unrelated package.
"""

from __future__ import annotations

from typing import Any

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.backends.triton_common import REQUIRES, paged_or_varlen
from attnkit.spec import AttentionOutput, Dtype, Feature, MlaDecode, Op, PagedAttention, VarlenAttention

_OPS: frozenset[Op] = frozenset({"paged", "varlen"})
_HALF: frozenset[Dtype] = frozenset({"float16", "bfloat16"})
_ALIBI_IS_CAUSAL: tuple[frozenset[Feature], ...] = (frozenset({"alibi", "non_causal"}),)

_FLASH = Capability(
    ops=_OPS,
    archs={"amd": ("gfx90a", "gfx942", "gfx950", "gfx11*", "gfx12*")},
    dtypes=_HALF,
    head_dims=HeadDims(low=8, high=256, multiple_of=8),
    features=frozenset({"non_causal", "window", "alibi", "lse"}),
    conflicts=_ALIBI_IS_CAUSAL,
)
_OWN = Capability(
    ops=_OPS,
    archs={"amd": ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")},
    dtypes=_HALF,
    head_dims=HeadDims(low=16, high=256, multiple_of=8),
    min_block_size=16,
    block_multiple=16,
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    fnuz=True,
    features=frozenset({"non_causal", "window", "softcap", "alibi", "sinks", "lse"}),
    graphs=True,
    deterministic=True,
)
_AITER = Capability(
    ops=_OPS,
    archs={"amd": ("gfx942", "gfx950")},
    dtypes=_HALF,
    head_dims=HeadDims(low=8, high=256, multiple_of=8),
    features=frozenset({"non_causal", "window", "softcap", "alibi", "lse"}),
    conflicts=_ALIBI_IS_CAUSAL,
)
_AITER_MLA = Capability(
    ops=frozenset({"mla_decode"}),
    archs={"amd": ("gfx942", "gfx950")},
    dtypes=frozenset({"bfloat16"}),
    head_dims=HeadDims.of((576, 512)),
    phases=frozenset({"decode"}),
    num_heads=frozenset({16, 128}),
)


def _flash(call: PagedAttention | VarlenAttention) -> AttentionOutput:
    from flash_attn import flash_attn_varlen_func

    return _varlen(call, flash_attn_varlen_func, "flash_attn.varlen(rocm)", lse_flag="return_attn_probs", softcap={})


def _own(call: PagedAttention | VarlenAttention) -> AttentionOutput:
    return AttentionOutput(*paged_or_varlen(call))


def _aiter(call: PagedAttention | VarlenAttention) -> AttentionOutput:
    from aiter import flash_attn_varlen_func

    softcap = {"logits_soft_cap": call.softmax.softcap}
    return _varlen(call, flash_attn_varlen_func, "aiter.flash_attn_varlen_func", lse_flag="return_lse", softcap=softcap)


def _varlen(
    call: PagedAttention | VarlenAttention, function: Any, kernel: str, *, lse_flag: str, softcap: dict[str, float]
) -> AttentionOutput:
    """Both libraries' varlen function, which differ in two argument names."""
    from attnkit.backends.torch_common import gather_kv
    from attnkit.backends.torch_device import finish, heads_first_lse

    key, value, key_start_loc = gather_kv(call)
    left, right = call.softmax.window
    result = function(
        q=call.query,
        k=key,
        v=value,
        cu_seqlens_q=call.query_start_loc,
        cu_seqlens_k=key_start_loc,
        max_seqlen_q=call.max_query_len,
        max_seqlen_k=call.max_seq_len,
        softmax_scale=call.softmax.softmax_scale,
        causal=call.softmax.causal,
        window_size=(left, min(right, 0) if call.softmax.causal else right),
        alibi_slopes=call.softmax.alibi_slopes,
        **{lse_flag: call.return_lse},
        **softcap,
    )
    out, lse = (result[0], heads_first_lse(result[1])) if call.return_lse else (result, None)
    return finish(call, out, lse, kernel)


def _aiter_mla(call: MlaDecode) -> AttentionOutput:
    import torch
    from aiter.mla import mla_decode_fwd

    from attnkit.backends.torch_common import slots
    from attnkit.backends.torch_device import finish, prefix_sum

    # Pages of one token: the layout that every version of the kernel reads.
    tokens = slots(call.block_table, call.seq_lens.tolist(), call.kv_cache.shape[1]).to(torch.int32)
    out = call.query.new_empty(*call.query.shape[:2], call.kv_lora_rank)
    mla_decode_fwd(
        q=call.query,
        kv_buffer=call.kv_cache.reshape(-1, 1, 1, call.kv_cache.shape[-1]),
        o=out,
        qo_indptr=call.query_start_loc,
        kv_indptr=prefix_sum(call.seq_lens),
        kv_indices=tokens,
        kv_last_page_lens=torch.ones_like(call.seq_lens),
        max_seqlen_q=call.max_query_len,
        sm_scale=call.softmax_scale,
    )
    return finish(call, out, None, "aiter.mla_decode_fwd")


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "ROCM_FLASH",
        (
            Provider(
                "flash-attn-rocm",
                _FLASH,
                _flash,
                ("torch>=2.8", "flash-attn>=2.6,<3"),
                "flash_attn's ROCm build",
                kind="composed",
                kernels=("flash_attn.varlen(rocm)",),
            ),
            Provider(
                "attnkit",
                _OWN,
                _own,
                REQUIRES,
                "our Triton kernels, compiled for gfx",
                kind="kernel",
                kernels=("triton_*",),
                any_stride=True,
            ),
        ),
        aliases=("ROCM_ATTN",),
        summary="attention on AMD GPUs, by flash_attn's ROCm build or our Triton kernels",
    ),
    Backend(
        "ROCM_AITER_FA",
        (
            Provider(
                "amd-aiter", _AITER, _aiter, ("torch>=2.8", "amd-aiter"), "AMD's AITER", kind="composed", kernels=("aiter.*",)
            ),
        ),
        summary="AITER's attention (MI300, MI350)",
    ),
    Backend(
        "ROCM_AITER_MLA",
        (
            Provider(
                "amd-aiter",
                _AITER_MLA,
                _aiter_mla,
                ("torch>=2.8", "amd-aiter"),
                "AMD's AITER",
                kind="kernel",
                kernels=("aiter.mla_decode_fwd",),
            ),
        ),
        aliases=("ROCM_AITER_MLA_VLLM_V1",),
        summary="AITER's MLA decode (MI300, MI350)",
    ),
)
