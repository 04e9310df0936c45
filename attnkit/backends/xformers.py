"""XFORMERS: the memory-efficient CUTLASS attention, which still has tensor cores on Turing.

Two providers of the same kernel family: xformers.ops with block-diagonal masks, and torch's own
`_efficient_attention_forward`, its upstreamed form. Both take packed sequences, so a paged cache is gathered first; both want
as many key heads as query heads, so grouped heads are repeated. How long sequences are is read back from the device.

Sources: xformers/ops/fmha/attn_bias.py; aten/src/ATen/native/transformers/cuda/attention.cu.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, pairwise
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
_MOST_SEQUENCES = (1 << 16) - 1  # of a launch: the last dimension of CUDA's grid


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

    out = call.query.new_zeros(*call.query.shape[:2], value.shape[-1])
    for queries, keys in _parts(call, key_start_loc):
        bias = BlockDiagonalMask.from_seqlens(
            q_seqlen=_lengths(queries),
            kv_seqlen=_lengths(keys),
            device=call.query.device,  # its default is the current CUDA device, which need not be the call's
        )
        if call.softmax.causal:
            bias = bias.make_causal_from_bottomright()
            if call.softmax.window[0] >= 0:
                bias = bias.make_local_attention_from_bottomright(call.softmax.window[0] + 1)
        rows, kept = _rows(queries, call.query.device), _rows(keys, key.device)
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


def _torch_efficient(call: PagedAttention | VarlenAttention, key: Any, value: Any, key_start_loc: Any) -> tuple[Any, Any, str]:
    import torch

    from attnkit.backends.torch_common import no_keys

    device, left = call.query.device, call.softmax.window[0]
    out, lse = call.query.new_zeros(*call.query.shape[:2], value.shape[-1]), no_keys(call)
    for queries, keys in _parts(call, key_start_loc):
        query_starts, key_starts = (
            torch.tensor([0, *accumulate(_lengths(spans))], dtype=torch.int32, device=device) for spans in (queries, keys)
        )
        rows, kept = _rows(queries, device), _rows(keys, device)
        result, found, *_ = torch.ops.aten._efficient_attention_forward(
            call.query[rows].unsqueeze(0),
            key[kept].unsqueeze(0),
            value[kept].unsqueeze(0),
            None,
            query_starts,
            key_starts,
            max(_lengths(queries)),
            max(_lengths(keys)),
            0.0,
            _CAUSAL_BOTTOM_RIGHT if call.softmax.causal else _NO_MASK,
            call.return_lse,
            scale=call.softmax.softmax_scale,
            # Counts the keys seen, the query's own included; 0 would mean none.
            window_size=left + 1 if left >= 0 else None,
        )
        out[rows] = result.squeeze(0)
        if call.return_lse:  # [num_seqs, num_heads, padded longest query] -> [num_tokens, num_heads]
            counts = query_starts.diff()
            seq = torch.repeat_interleave(torch.arange(counts.shape[0], device=device), counts, output_size=result.shape[1])
            lse[rows] = found[seq, :, torch.arange(result.shape[1], device=device) - query_starts[seq]].float()
    return out, lse if call.return_lse else None, "torch._efficient_attention_forward"


def _parts(
    call: PagedAttention | VarlenAttention, key_start_loc: Any
) -> Iterator[tuple[list[tuple[int, int]], list[tuple[int, int]]]]:
    """Spans of query and key rows of the sequences that have both, as many at once as a grid holds.

    Neither library's causal mask is defined for queries that no key precedes (more queries than keys): they are left out, as
    their output is zero.
    """
    used = []
    for (begin, end), (first, last) in zip(
        pairwise(call.query_start_loc.tolist()), pairwise(key_start_loc.tolist()), strict=True
    ):
        begin = max(begin, end - (last - first)) if call.softmax.causal else begin
        if end > begin and last > first:
            used.append(((begin, end), (first, last)))
    for at in range(0, len(used), _MOST_SEQUENCES):
        queries, keys = zip(*used[at : at + _MOST_SEQUENCES], strict=True)
        yield list(queries), list(keys)


def _lengths(spans: list[tuple[int, int]]) -> list[int]:
    return [end - begin for begin, end in spans]


def _rows(spans: list[tuple[int, int]], device: Any) -> Any:
    """Row numbers of several half-open spans, one after another; a slice, which copies nothing, where they are one span."""
    import torch

    if all(before[1] == after[0] for before, after in pairwise(spans)):
        return slice(spans[0][0], spans[-1][1])
    return torch.cat([torch.arange(begin, end, device=device) for begin, end in spans])


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
