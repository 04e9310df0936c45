"""vLLM's build of FlashAttention 3: varlen, paged and MLA (`q_v`), with its scheduler's metadata made once a step.

`out.transpose` and the like are left to the callers; this file calls `flash_attn_varlen_func` as vLLM's backends do
(vllm/v1/attention/backends/flash_attn.py, mla/flashattn_mla.py in 0.25.0).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from attnkit.bench.peers.base import Peer, Run, Unsupported
from attnkit.spec import Call, MlaDecode, PagedAttention, VarlenAttention

MODULE = "vllm.vllm_flash_attn"


class Fa3(Peer):
    """FlashAttention 3 as vLLM 0.25 builds and calls it."""

    name: ClassVar[str] = "vLLM FA3"
    package: ClassVar[str] = "vllm"
    modules: ClassVar[tuple[str, ...]] = (MODULE, "vllm.vllm_flash_attn._vllm_fa3_C")
    groups: ClassVar[tuple[str, ...]] = ("decode", "prefill", "paged", "mixed", "mla", "fp8")

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        from vllm.vllm_flash_attn import flash_attn_varlen_func

        if isinstance(call, VarlenAttention):
            arguments = varlen_arguments(call)
        elif isinstance(call, PagedAttention):
            arguments = paged_arguments(call)
        elif isinstance(call, MlaDecode):
            arguments = mla_arguments(call)
        else:
            raise Unsupported(f"no {call.op}")
        return lambda: (flash_attn_varlen_func(**arguments, fa_version=3), "fa3.varlen")


def varlen_arguments(call: VarlenAttention) -> dict[str, Any]:
    """Arguments of `flash_attn_varlen_func` over packed keys and values."""
    return {
        "q": call.query,
        "k": call.key,
        "v": call.value,
        "out": call.out,
        "cu_seqlens_q": call.query_start_loc,
        "cu_seqlens_k": call.key_start_loc,
        "max_seqlen_q": call.max_query_len,
        "max_seqlen_k": call.max_seq_len,
        "softmax_scale": call.softmax.softmax_scale,
        "causal": call.softmax.causal,
    }


def paged_arguments(call: PagedAttention) -> dict[str, Any]:
    """Arguments of `flash_attn_varlen_func` over the paged cache; a float8 cache takes a float8 query beside it."""
    kv_heads = call.key_cache.shape[2]
    batch = call.seq_lens.shape[0]
    extra: dict[str, Any] = {}
    query = call.query
    if call.key_cache.element_size() == 1:
        query = query.to(call.key_cache.dtype)
        shape, device = (batch, kv_heads), query.device
        extra = {
            "q_descale": torch.ones(shape, device=device),
            "k_descale": torch.full(shape, call.k_scale, device=device),
            "v_descale": torch.full(shape, call.v_scale, device=device),
        }
    return {
        "q": query,
        "k": call.key_cache,
        "v": call.value_cache,
        "out": call.out,
        "cu_seqlens_q": call.query_start_loc,
        "seqused_k": call.seq_lens,
        "block_table": call.block_table,
        "max_seqlen_q": call.max_query_len,
        "max_seqlen_k": call.max_seq_len,
        "softmax_scale": call.softmax.softmax_scale,
        "causal": call.softmax.causal,
        "scheduler_metadata": _metadata(call, query.dtype),
        **extra,
    }


def _metadata(call: PagedAttention, dtype: torch.dtype) -> Any:
    from vllm.vllm_flash_attn import get_scheduler_metadata

    return get_scheduler_metadata(
        batch_size=call.seq_lens.shape[0],
        max_seqlen_q=call.max_query_len,
        max_seqlen_k=call.max_seq_len,
        num_heads_q=call.query.shape[1],
        num_heads_kv=call.key_cache.shape[2],
        headdim=call.query.shape[2],
        headdim_v=call.value_cache.shape[3],
        cache_seqlens=call.seq_lens,
        qkv_dtype=dtype,
        cu_seqlens_q=call.query_start_loc,
        page_size=call.key_cache.shape[1],
        causal=call.softmax.causal,
    )


def mla_arguments(call: MlaDecode) -> dict[str, Any]:
    """Arguments of `flash_attn_varlen_func` for the absorbed form: the rope part as q and k, the latent as q_v and v."""
    from vllm.vllm_flash_attn import get_scheduler_metadata

    rank = call.kv_lora_rank
    cache = call.kv_cache.unsqueeze(2)
    metadata = get_scheduler_metadata(
        batch_size=call.seq_lens.shape[0],
        max_seqlen_q=call.max_query_len,
        max_seqlen_k=call.max_seq_len,
        num_heads_q=call.query.shape[1],
        num_heads_kv=1,
        headdim=call.query.shape[2] - rank,
        headdim_v=rank,
        cache_seqlens=call.seq_lens,
        qkv_dtype=call.query.dtype,
        cu_seqlens_q=call.query_start_loc,
        page_size=call.kv_cache.shape[1],
        causal=True,
    )
    return {
        "q": call.query[..., rank:].contiguous(),
        "k": cache[..., rank:],
        "v": cache[..., :rank],
        "q_v": call.query[..., :rank].contiguous(),
        "out": call.out,
        "cu_seqlens_q": call.query_start_loc,
        "seqused_k": call.seq_lens,
        "block_table": call.block_table,
        "max_seqlen_q": call.max_query_len,
        "max_seqlen_k": call.max_seq_len,
        "softmax_scale": call.softmax_scale,
        "causal": True,
        "scheduler_metadata": metadata,
    }
