"""vLLM's portable kernels: Triton unified attention, grouped decode, prefill without a cache, and MLA decode.

Launched as vLLM's own backends do in 0.25.0 (vllm/v1/attention/backends/triton_attn.py, mla/triton_mla.py): 16 softmax segments
for at most 128 / kv_heads sequences of one new token, and 512 keys or more a split for the grouped decode.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from attnkit.bench.peers.base import Peer, Run, Unsupported
from attnkit.spec import Call, MlaDecode, PagedAttention, TreeAttention, VarlenAttention

SEGMENTS = 16
GRID_2D = 128
KEYS_A_SPLIT = 512
FP8_PER_TENSOR = 1
"""KVQuantMode.FP8_PER_TENSOR of vllm/v1/kv_cache_interface.py."""


class Unified(Peer):
    """`unified_attention`; trees through its bias among the new tokens."""

    name: ClassVar[str] = "vLLM Triton unified"
    package: ClassVar[str] = "vllm"
    modules: ClassVar[tuple[str, ...]] = ("vllm.v1.attention.ops.triton_unified_attention",)
    groups: ClassVar[tuple[str, ...]] = ("decode", "paged", "mixed", "fp8", "tree")

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        from vllm.v1.attention.ops.triton_unified_attention import unified_attention

        paged, bias = (call.paged, _bias(call)) if isinstance(call, TreeAttention) else (call, None)
        if not isinstance(paged, PagedAttention):
            raise Unsupported(f"no {call.op}")
        arguments = unified_arguments(paged)
        out = arguments["out"]

        def run() -> tuple[Tensor, str]:
            unified_attention(**arguments, qq_bias=bias)
            return out, "vllm.unified_attention"

        return run


def _bias(call: TreeAttention) -> Tensor:
    """0 where a node sees a node, minus infinity where it does not; the context is always seen."""
    mask = call.tree_mask
    return torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill_(~mask, float("-inf"))


def unified_arguments(call: PagedAttention) -> dict[str, Any]:
    """Arguments of `unified_attention`, buffers for its segments included."""
    heads, kv_heads = call.query.shape[1], call.key_cache.shape[2]
    width = call.value_cache.shape[3]
    device = call.query.device
    most = GRID_2D // kv_heads
    shape = (call.seq_lens.shape[0], kv_heads)
    extra: dict[str, Any] = {}
    if call.key_cache.element_size() == 1:
        extra["kv_quant_mode"] = FP8_PER_TENSOR
    return {
        "q": call.query,
        "k": call.key_cache,
        "v": call.value_cache,
        "out": torch.empty_like(call.query) if call.out is None else call.out,
        "cu_seqlens_q": call.query_start_loc,
        "max_seqlen_q": call.max_query_len,
        "seqused_k": call.seq_lens,
        "max_seqlen_k": call.max_seq_len,
        "softmax_scale": call.softmax.softmax_scale,
        "causal": True,
        "window_size": (-1, -1),
        "block_table": call.block_table,
        "softcap": 0.0,
        "q_descale": None,
        "k_descale": torch.full(shape, call.k_scale, dtype=torch.float32, device=device),
        "v_descale": torch.full(shape, call.v_scale, dtype=torch.float32, device=device),
        "seq_threshold_3D": most,
        "num_par_softmax_segments": SEGMENTS,
        "softmax_segm_output": torch.empty(most, heads, SEGMENTS, _power_of_two(width), dtype=torch.float32, device=device),
        "softmax_segm_max": torch.empty(most, heads, SEGMENTS, dtype=torch.float32, device=device),
        "softmax_segm_expsum": torch.empty(most, heads, SEGMENTS, dtype=torch.float32, device=device),
        **extra,
    }


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _splits(max_seq_len: int, device: torch.device) -> int:
    """vLLM's `_compute_num_kv_splits`."""
    units = int(torch.cuda.get_device_properties(device).multi_processor_count)
    return min(_power_of_two(max(1, max_seq_len // KEYS_A_SPLIT)), 2 * units)


class GroupedDecode(Peer):
    """`decode_attention_fwd` on grouped heads."""

    name: ClassVar[str] = "vLLM Triton grouped decode"
    package: ClassVar[str] = "vllm"
    modules: ClassVar[tuple[str, ...]] = ("vllm.v1.attention.ops.triton_decode_attention",)
    groups: ClassVar[tuple[str, ...]] = ("decode",)

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        if not isinstance(call, PagedAttention) or call.max_query_len != 1:
            raise Unsupported("decode only")
        out = torch.empty_like(call.query) if call.out is None else call.out
        return _grouped(
            call.query,
            call.key_cache,
            call.value_cache,
            out,
            call.block_table,
            call.seq_lens,
            call.max_seq_len,
            call.softmax.softmax_scale,
            is_mla=False,
        )


class Mla(Peer):
    """`decode_attention_fwd` on the compressed cache, as TRITON_MLA calls it."""

    name: ClassVar[str] = "vLLM Triton MLA"
    package: ClassVar[str] = "vllm"
    modules: ClassVar[tuple[str, ...]] = ("vllm.v1.attention.ops.triton_decode_attention",)
    groups: ClassVar[tuple[str, ...]] = ("mla",)

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        if not isinstance(call, MlaDecode):
            raise Unsupported(f"no {call.op}")
        rank = call.kv_lora_rank
        out = torch.empty(*call.query.shape[:2], rank, dtype=call.query.dtype, device=call.query.device)
        cache = call.kv_cache.unsqueeze(2)
        return _grouped(
            call.query,
            cache,
            cache[..., :rank],
            out,
            call.block_table,
            call.seq_lens,
            call.max_seq_len,
            call.softmax_scale,
            is_mla=True,
        )


def _grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    table: Tensor,
    seq_lens: Tensor,
    max_seq_len: int,
    scale: float,
    *,
    is_mla: bool,
) -> Run:
    from vllm.v1.attention.ops.triton_decode_attention import decode_attention_fwd

    splits = _splits(max_seq_len, query.device)
    tokens, heads, _ = query.shape
    lse = torch.zeros(tokens, heads, dtype=query.dtype, device=query.device)
    parts = torch.empty(tokens, heads, splits, value.shape[-1] + 1, dtype=torch.float32, device=query.device)
    one = torch.ones((), dtype=torch.float32, device=query.device)

    def run() -> tuple[Tensor, str]:
        decode_attention_fwd(
            query,
            key,
            value,
            out,
            lse,
            table,
            seq_lens,
            parts,
            splits,
            scale,
            page_size=key.shape[1],
            k_scale=one,
            v_scale=one,
            is_mla=is_mla,
        )
        return out, "vllm.decode_attention_fwd"

    return run


class Prefill(Peer):
    """`context_attention_fwd`: no cache."""

    name: ClassVar[str] = "vLLM Triton prefill"
    package: ClassVar[str] = "vllm"
    modules: ClassVar[tuple[str, ...]] = ("vllm.v1.attention.ops.triton_prefill_attention",)
    groups: ClassVar[tuple[str, ...]] = ("prefill",)

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        from vllm.v1.attention.ops.triton_prefill_attention import context_attention_fwd

        if not isinstance(call, VarlenAttention):
            raise Unsupported(f"no {call.op}")
        out = torch.empty_like(call.query) if call.out is None else call.out
        lengths = call.query_start_loc.diff()

        def run() -> tuple[Tensor, str]:
            context_attention_fwd(
                call.query,
                call.key,
                call.value,
                out,
                call.query_start_loc,
                lengths,
                call.max_query_len,
                is_causal=call.softmax.causal,
                softmax_scale=call.softmax.softmax_scale,
            )
            return out, "vllm.context_attention_fwd"

        return run
