"""XFORMERS: the memory-efficient CUTLASS attention, which still has tensor cores on Turing.

Two providers of the same kernel family: xformers.ops with block-diagonal masks, and torch's own
`_efficient_attention_forward`, its upstreamed form. Both take packed sequences, so a paged cache is gathered first; both want
as many key heads as query heads, so grouped heads are repeated.

Sources: xformers/ops/fmha/attn_bias.py; aten/src/ATen/native/transformers/cuda/attention.cu.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.spec import AttentionOutput, Dtype, Feature, Op, PagedAttention, VarlenAttention

_OPS: frozenset[Op] = frozenset({"paged", "varlen"})
_DTYPES: frozenset[Dtype] = frozenset({"float16", "bfloat16", "float32"})

# Both masks slide only under the causal diagonal.
_WINDOW_IS_CAUSAL: tuple[frozenset[Feature], ...] = (frozenset({"window", "non_causal"}),)

_XFORMERS = Capability(
    ops=_OPS,
    archs={"nvidia": ("sm_7*", "sm_8*", "sm_9*", "sm_1*")},
    dtypes=_DTYPES,
    bf16_needs={"nvidia": ("sm_8*", "sm_9*", "sm_1*")},
    head_dims=HeadDims(low=8, high=256, multiple_of=8),
    features=frozenset({"non_causal", "window"}),
    conflicts=_WINDOW_IS_CAUSAL,
)
_TORCH = Capability(
    ops=_OPS,
    archs=_XFORMERS.archs,
    dtypes=_DTYPES,
    bf16_needs=_XFORMERS.bf16_needs,
    head_dims=HeadDims(low=8, high=256, multiple_of=8),
    features=frozenset({"non_causal", "window", "lse"}),
    conflicts=_WINDOW_IS_CAUSAL,
)

_NO_MASK, _CAUSAL_BOTTOM_RIGHT = 0, 2  # the kernel's custom_mask_type


def _packed(
    call: PagedAttention | VarlenAttention, run: Callable[[Any, Any, Any, Any], tuple[Any, Any, str]]
) -> AttentionOutput:
    """`run` on packed keys and values with as many heads as the query has."""
    from attnkit.backends.torch_common import gather_kv
    from attnkit.backends.torch_device import finish

    key, value, key_start_loc = gather_kv(call)
    repeats = call.query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    return finish(call, *run(call, key, value, key_start_loc))


def _xformers(call: PagedAttention | VarlenAttention, key: Any, value: Any, key_start_loc: Any) -> tuple[Any, None, str]:
    from xformers.ops import memory_efficient_attention_forward
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    starts, key_lens = call.query_start_loc.tolist(), key_start_loc.diff().tolist()
    ends = starts[1:]
    if call.softmax.causal:  # xformers refuses queries that no key precedes; their output is zero
        starts = [max(start, end - keys) for start, end, keys in zip(starts, ends, key_lens, strict=False)]
    out = call.query.new_zeros(*call.query.shape[:2], value.shape[-1])
    queries = list(zip(starts, ends, strict=False))
    used = [i for i, (start, end) in enumerate(queries) if end > start and key_lens[i]]
    if used:
        key_starts = key_start_loc.tolist()
        rows = _rows([queries[i] for i in used], call.query.device)
        bias = BlockDiagonalMask.from_seqlens(
            q_seqlen=[queries[i][1] - queries[i][0] for i in used],
            kv_seqlen=[key_lens[i] for i in used],
            device=call.query.device,  # its default is the current CUDA device, which need not be the call's
        )
        if call.softmax.causal:
            bias = bias.make_causal_from_bottomright()
            if call.softmax.window[0] >= 0:
                bias = bias.make_local_attention_from_bottomright(call.softmax.window[0] + 1)
        kept = _rows([(key_starts[i], key_starts[i + 1]) for i in used], key.device)
        result = memory_efficient_attention_forward(
            query=call.query[rows].unsqueeze(0),
            key=key[kept].unsqueeze(0),
            value=value[kept].unsqueeze(0),
            attn_bias=bias,
            p=0.0,
            scale=call.softmax.softmax_scale,
        )
        out[rows] = result.squeeze(0)
    return out, None, "xformers.memory_efficient_attention_forward"


def _rows(ranges: list[tuple[int, int]], device: Any) -> Any:
    """Row numbers of several half-open ranges, one after another."""
    import torch

    return torch.cat([torch.arange(start, end, device=device) for start, end in ranges])


def _torch_efficient(call: PagedAttention | VarlenAttention, key: Any, value: Any, key_start_loc: Any) -> tuple[Any, Any, str]:
    import torch

    causal = call.softmax.causal
    left = call.softmax.window[0]
    out, lse, *_ = torch.ops.aten._efficient_attention_forward(
        call.query.unsqueeze(0),
        key.unsqueeze(0),
        value.unsqueeze(0),
        None,
        call.query_start_loc,
        key_start_loc,
        call.max_query_len,
        call.max_seq_len,
        0.0,
        _CAUSAL_BOTTOM_RIGHT if causal else _NO_MASK,
        call.return_lse,
        scale=call.softmax.softmax_scale,
        # Counts the keys seen, the query's own included; 0 would mean none.
        window_size=left + 1 if left >= 0 else None,
    )
    out = out.squeeze(0)
    # The kernel skips sequences without keys; what it left unwritten there is defined as zero.
    lens = key_start_loc.diff()
    seq = torch.repeat_interleave(
        torch.arange(lens.shape[0], device=out.device), call.query_start_loc.diff(), output_size=out.shape[0]
    )
    empty = lens[seq] == 0
    out = out.masked_fill(empty[:, None, None], 0)
    if not call.return_lse:
        return out, None, "torch._efficient_attention_forward"
    # [num_seqs, num_heads, padded max_query_len] -> [num_tokens, num_heads]
    position = torch.arange(out.shape[0], device=out.device) - call.query_start_loc[seq]
    rows = lse[seq, :, position].float().masked_fill(empty[:, None], float("-inf"))
    return out, rows, "torch._efficient_attention_forward"


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "XFORMERS",
        (
            Provider(
                "xformers",
                _XFORMERS,
                partial(_packed, run=_xformers),
                ("torch>=2.8", "xformers"),
                "xformers.ops with block-diagonal masks",
                kind="composed",
                kernels=("xformers.*",),
            ),
            Provider(
                "torch-efficient",
                _TORCH,
                partial(_packed, run=_torch_efficient),
                ("torch>=2.8",),
                "torch's _efficient_attention_forward, the same kernel",
                kind="composed",
                kernels=("torch._efficient_attention_forward",),
            ),
        ),
        aliases=("XFORMERS_VLLM_V1",),
        summary="memory-efficient CUTLASS attention, tensor cores from Turing on",
    ),
)
