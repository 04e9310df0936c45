"""FLASHMLA, CUTLASS_MLA and FLASH_ATTN_MLA: the vendors' MLA decode kernels on Hopper and Blackwell.

MLA is Multi-head Latent Attention (DeepSeek V2/V3/R1, Kimi-K2): one compressed row a token, 512 latent + 64 rotary, shared by
all heads.

Sources: flash_mla/flash_mla_interface.py; vllm/v1/attention/backends/mla/{cutlass_mla,flashattn_mla}.py;
sgl_kernel/attention.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Dtype, MlaDecode, Op, Phase

_OP: frozenset[Op] = frozenset({"mla_decode"})
_HALF: frozenset[Dtype] = frozenset({"float16", "bfloat16"})
_DECODE: frozenset[Phase] = frozenset({"decode"})
_LATENT_AND_ROPE = HeadDims.of((576, 512))
_CUTLASS_HEADS = 128  # the CUTLASS kernel always computes 128 heads

_FLASHMLA = Capability(
    ops=_OP,
    archs={"nvidia": ("sm_90",)},  # its Blackwell kernels are for sparse decoding only
    dtypes=_HALF,
    head_dims=_LATENT_AND_ROPE,
    block_sizes=frozenset({64}),
    phases=_DECODE,
    features=frozenset({"lse"}),
)
_CUTLASS = Capability(
    ops=_OP,
    archs={"nvidia": ("sm_10*",)},
    dtypes=_HALF,
    head_dims=_LATENT_AND_ROPE,
    block_sizes=frozenset({16, 32, 64, 128}),
    phases=_DECODE,
    max_heads_ratio=_CUTLASS_HEADS,
    graphs=True,
)
_FA3 = Capability(
    ops=_OP,
    archs={"nvidia": ("sm_90",)},
    dtypes=_HALF,
    head_dims=_LATENT_AND_ROPE,
    min_block_size=16,
    block_multiple=16,
    phases=_DECODE,
    features=frozenset({"lse"}),
    graphs=True,
)


def _flashmla(call: MlaDecode, functions: Callable[[], tuple[Any, Any]]) -> AttentionOutput:
    """Every sequence must have the same number of new tokens."""
    from attnkit.backends.torch_device import by_sequence, finish

    flash_mla_with_kvcache, get_mla_metadata = functions()
    query = by_sequence(call)
    new_tokens, heads = query.shape[1], query.shape[2]
    metadata, splits = get_mla_metadata(call.seq_lens, new_tokens * heads, 1)
    out, lse = flash_mla_with_kvcache(
        q=query,
        k_cache=call.kv_cache.unsqueeze(2),
        block_table=call.block_table,
        cache_seqlens=call.seq_lens,
        head_dim_v=call.kv_lora_rank,
        tile_scheduler_metadata=metadata,
        num_splits=splits,
        softmax_scale=call.softmax_scale,
        causal=True,
    )
    lse = lse.transpose(1, 2).reshape(-1, heads).contiguous() if call.return_lse else None
    return finish(call, out.reshape(-1, heads, call.kv_lora_rank), lse, "flash_mla_with_kvcache")


def _upstream_functions() -> tuple[Any, Any]:
    from flash_mla import flash_mla_with_kvcache, get_mla_metadata

    return flash_mla_with_kvcache, get_mla_metadata


def _vllm_functions() -> tuple[Any, Any]:
    """vLLM moved the module between 0.10 and 0.13."""
    try:
        from vllm.v1.attention.ops import flashmla
    except ImportError:
        from vllm.attention.ops import flashmla
    return flashmla.flash_mla_with_kvcache, flashmla.get_mla_metadata


def _cutlass(call: MlaDecode, decode: Callable[[MlaDecode, Any, Any], Any], kernel: str) -> AttentionOutput:
    """One new token a sequence."""
    from attnkit.backends.torch_device import by_sequence, finish

    query = by_sequence(call)
    if query.shape[1] != 1:
        raise UnsupportedError(f"CUTLASS_MLA takes one new token a sequence, not {query.shape[1]}")
    return finish(call, decode(call, query.squeeze(1), _padded_table(call)), None, kernel)


def _padded_table(call: MlaDecode) -> Any:
    """The block table with a width that fills whole tiles of 128 tokens, as the kernel wants; the padding is never read."""
    import torch

    per_tile = 128 // call.kv_cache.shape[1]
    return torch.nn.functional.pad(call.block_table, (0, -call.block_table.shape[1] % per_tile))


def _vllm_cutlass(call: MlaDecode, query: Any, table: Any) -> Any:
    import torch
    from vllm import _custom_ops as ops

    from attnkit.backends import torch_device

    num_seqs, heads, width = query.shape
    padded = torch.nn.functional.pad(query, (0, 0, 0, _CUTLASS_HEADS - heads))
    out = query.new_empty(num_seqs, _CUTLASS_HEADS, call.kv_lora_rank)
    size = ops.sm100_cutlass_mla_get_workspace_size(
        max_seq_len=table.shape[1] * call.kv_cache.shape[1],
        num_batches=num_seqs,
        sm_count=torch_device.device_of(query).units,
        num_kv_splits=-1,
    )
    ops.sm100_cutlass_mla_decode(
        out=out,
        lse=torch.empty(0, device=query.device),
        q_nope=padded[..., : call.kv_lora_rank].contiguous(),
        q_pe=padded[..., call.kv_lora_rank : width].contiguous(),
        kv_c_and_k_pe_cache=call.kv_cache,
        seq_lens=call.seq_lens,
        page_table=table,
        workspace=torch.empty(max(size, 1), dtype=torch.uint8, device=query.device),
        scale=call.softmax_scale,
        num_kv_splits=-1,  # the kernel chooses how often to split the keys
    )
    return out[:, :heads]


def _sgl_cutlass(call: MlaDecode, query: Any, table: Any) -> Any:
    import torch
    from sgl_kernel import cutlass_mla_decode, cutlass_mla_get_workspace_size

    size = cutlass_mla_get_workspace_size(
        max_seq_len=table.shape[1] * call.kv_cache.shape[1], num_batches=query.shape[0], num_kv_splits=-1
    )
    return cutlass_mla_decode(
        q_nope=query[..., : call.kv_lora_rank].contiguous(),
        q_pe=query[..., call.kv_lora_rank :].contiguous(),
        kv_c_and_k_pe_cache=call.kv_cache,
        seq_lens=call.seq_lens,
        page_table=table,
        workspace=torch.empty(max(size, 1), dtype=torch.uint8, device=query.device),
        sm_scale=call.softmax_scale,
        num_kv_splits=-1,
    )


def _flash_attn_3(call: MlaDecode) -> AttentionOutput:
    """The rotary part as q and k, the latent part as q_v and v."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    from attnkit.backends.torch_device import finish, heads_first_lse

    rank = call.kv_lora_rank
    result = flash_attn_varlen_func(
        q=call.query[..., rank:].contiguous(),
        k=call.kv_cache[..., rank:].unsqueeze(2),
        v=call.kv_cache[..., :rank].unsqueeze(2),
        q_v=call.query[..., :rank].contiguous(),
        max_seqlen_q=call.max_query_len,
        cu_seqlens_q=call.query_start_loc,
        max_seqlen_k=call.max_seq_len,
        seqused_k=call.seq_lens,
        block_table=call.block_table,
        softmax_scale=call.softmax_scale,
        causal=True,
        return_softmax_lse=call.return_lse,
        fa_version=3,
    )
    out, lse = (result[0], heads_first_lse(result[1])) if call.return_lse else (result, None)
    return finish(call, out, lse, "vllm_flash_attn.fa3(q_v)")


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "FLASHMLA",
        (
            Provider(
                "vllm-flashmla",
                _FLASHMLA,
                partial(_flashmla, functions=_vllm_functions),
                ("torch>=2.8", "vllm._flashmla_C"),
                "vLLM's build of FlashMLA",
                kind="kernel",
                kernels=("flash_mla_with_kvcache",),
            ),
            Provider(
                "flash-mla",
                _FLASHMLA,
                partial(_flashmla, functions=_upstream_functions),
                ("torch>=2.8", "flash-mla"),
                "FlashMLA",
                kind="kernel",
                kernels=("flash_mla_with_kvcache",),
            ),
        ),
        aliases=("FLASHMLA_VLLM_V1",),
        summary="FlashMLA's MLA decode (Hopper)",
    ),
    Backend(
        "CUTLASS_MLA",
        (
            Provider(
                "vllm-cutlass-mla",
                _CUTLASS,
                partial(_cutlass, decode=_vllm_cutlass, kernel="vllm.sm100_cutlass_mla_decode"),
                ("torch>=2.8", "vllm._C_stable_libtorch"),
                "vLLM's sm100_cutlass_mla_decode",
                kind="kernel",
                kernels=("vllm.sm100_cutlass_mla_decode",),
            ),
            Provider(
                "sgl-kernel",
                _CUTLASS,
                partial(_cutlass, decode=_sgl_cutlass, kernel="sgl_kernel.cutlass_mla_decode"),
                ("torch>=2.8", "sgl-kernel"),
                "sgl-kernel's cutlass_mla_decode",
                kind="kernel",
                kernels=("sgl_kernel.cutlass_mla_decode",),
            ),
        ),
        aliases=("CUTLASS_MLA_VLLM_V1",),
        summary="CUTLASS MLA decode (sm_100)",
    ),
    Backend(
        "FLASH_ATTN_MLA",
        (
            Provider(
                "vllm_flash_attn-fa3",
                _FA3,
                _flash_attn_3,
                ("torch>=2.8", "vllm.vllm_flash_attn._vllm_fa3_C"),
                "vLLM's build of FlashAttention 3",
                kind="kernel",
                kernels=("vllm_flash_attn.fa3(q_v)",),
            ),
        ),
        summary="MLA decode through FlashAttention 3 (Hopper)",
    ),
)
