"""TORCH_SDPA: torch.nn.functional.scaled_dot_product_attention over a gathered cache; runs wherever torch runs.

On CPUs our own compiled kernels come first, where they are compiled: they read the paged cache in place. (In vLLM, too,
TORCH_SDPA was the CPU's backend and ran kernels of its own over the cache.)

Decodes of similar length share one padded call; everything else runs sequence by sequence. The log-sum-exp, which the public
function does not return, is computed beside it in float32 where it is asked for or a sink needs it.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.backends.torch_device import finish
from attnkit.kernels.cpu.library import PROVIDER, REQUIREMENT
from attnkit.spec import AttentionOutput, Batch, PagedAttention, Softmax, TreeAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

CAPABILITY = Capability(
    ops=frozenset({"paged", "varlen", "tree", "mla_decode"}),
    archs={"nvidia": ("*",), "amd": ("*",), "intel": ("*",), "cpu": ("*",)},
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    bf16_needs={"nvidia": ("sm_8*", "sm_9*", "sm_1*"), "amd": ("*",), "intel": ("*",), "cpu": ("*",)},
    head_dims=HeadDims(low=1, high=512, extra=frozenset({(576, 512)})),
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    fnuz=True,
    features=frozenset({"non_causal", "window", "alibi", "sinks", "lse", "cross"}),
    deterministic=True,
)

_CPU_KERNELS = Capability(
    ops=frozenset({"paged", "varlen", "mla_decode"}),
    archs={"cpu": ("x86_64", "aarch64")},
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    head_dims=HeadDims(low=1, high=256, extra=frozenset({(576, 512), (192, 128)})),  # MLA's decoding and prefill
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    features=frozenset({"non_causal", "window", "softcap", "alibi", "sinks", "lse", "cross"}),
    deterministic=True,
)

KERNEL = "scaled_dot_product_attention"

TOGETHER = 1 << 15
"""Sequences in one padded call: CUDA's grids take no more than 65,535, and not every kernel of torch cuts its batch."""

FOLD_UP_TO = 16
"""Up to this many new tokens, the query heads of one key head become rows of one matrix: its keys are then read once."""


def _compiled(call: Batch) -> AttentionOutput:
    from attnkit.kernels.cpu.launch import attend

    return finish(call, *attend(call))


def _sdpa(call: Batch | TreeAttention) -> AttentionOutput:
    batch = call.batch
    if isinstance(call, PagedAttention) and call.max_query_len <= 1:
        out, lse = _decode(call)
    else:
        out, lse = _by_sequence(batch, call.tree_mask if isinstance(call, TreeAttention) else None)
    return finish(batch, out, lse if batch.return_lse else None, KERNEL)


def _by_sequence(batch: Batch, tree_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    import torch

    from attnkit.backends.torch_common import gather_kv, in_window, no_keys, visible

    key, value, key_starts = gather_kv(batch)
    query, softmax = batch.query, batch.softmax
    out, lse = query.new_zeros(*query.shape[:2], value.shape[2]), no_keys(batch)
    bounds = list(zip(batch.query_start_loc.tolist(), key_starts.tolist(), strict=True))
    for (first, k_first), (last, k_last) in pairwise(bounds):
        if first == last or k_first == k_last:
            continue
        length = k_last - k_first
        q_pos = torch.arange(length - (last - first), length, device=query.device)[:, None]
        k_pos = torch.arange(length, device=query.device)[None, :]
        if tree_mask is not None:
            nodes = last - first
            mask = torch.ones(nodes, length, dtype=torch.bool, device=query.device)
            drafted = min(nodes, length)
            mask[:, length - drafted :] = tree_mask[:nodes, nodes - drafted : nodes]
            seen = in_window(softmax, q_pos, k_pos)
            mask = mask if seen is None else mask & seen
        else:
            mask = visible(softmax, q_pos, k_pos)
        part = slice(k_first, k_last)
        out[first:last], lse[first:last] = (
            x[0]
            for x in _dense(query[None, first:last], key[None, part], value[None, part], mask, q_pos, k_pos, softmax, batch)
        )
    return out, lse


def _decode(batch: PagedAttention) -> tuple[Tensor, Tensor]:
    """One new token a sequence: sequences sorted by length, padded calls of those within a factor of two."""
    import torch

    from attnkit.backends.torch_common import no_keys, padded_slots, read_cache, visible

    query, softmax = batch.query, batch.softmax
    device, size = query.device, batch.key_cache.shape[1]
    out, lse = query.new_zeros(*query.shape[:2], batch.value_cache.shape[3]), no_keys(batch)
    starts, lens = batch.query_start_loc.tolist(), batch.seq_lens.tolist()
    waiting = sorted((n, i) for i, n in enumerate(lens) if n > 0 and starts[i + 1] > starts[i])
    while waiting:
        width = waiting[-1][0]
        group = [i for n, i in waiting if 2 * n > width][-TOGETHER:]
        waiting = waiting[: -len(group)]
        rows = torch.tensor(group, device=device)
        tokens = torch.tensor([starts[i] for i in group], device=device)
        length = batch.seq_lens[rows]
        slot = padded_slots(batch.block_table, rows, length, width, size)
        key = read_cache(batch.key_cache, slot, batch.k_scale, query.dtype)
        value = read_cache(batch.value_cache, slot, batch.v_scale, query.dtype)
        k_pos = torch.arange(width, device=device)[None, None, :]
        q_pos = (length - 1)[:, None, None]
        mask = k_pos < length[:, None, None]
        seen = visible(softmax, q_pos, k_pos)
        mask = mask if seen is None else mask & seen
        out[tokens], lse[tokens] = (
            x[:, 0] for x in _dense(query[tokens][:, None], key, value, mask, q_pos, k_pos, softmax, batch)
        )
    return out, lse


def _dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    q_pos: Tensor,
    k_pos: Tensor,
    softmax: Softmax,
    batch: Batch,
) -> tuple[Tensor, Tensor]:
    """Attention of [B, n, heads, d] over [B, L, kv_heads, d] -> out [B, n, heads, dv], lse [B, n, heads].

    mask: bool, broadcastable to [B, n, L], or None. q_pos, k_pos broadcast the same way.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from attnkit.backends.torch_common import alibi_bias, apply_sinks

    dtype = query.dtype
    bias = None if mask is None else mask.expand(query.shape[0], *mask.shape[-2:])[:, None]
    if softmax.alibi_slopes is not None:
        # A bias in sixteen bits would round distances in the hundreds: this call runs in float32.
        query, key, value = query.float(), key.float(), value.float()
        slopes = alibi_bias(softmax.alibi_slopes, q_pos, k_pos)
        slopes = slopes if slopes.dim() == 4 else slopes[None]
        bias = slopes if bias is None else slopes.masked_fill(~bias, -math.inf)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    group, new = q.shape[1] // k.shape[1], q.shape[2]
    if group > 1 and new <= FOLD_UP_TO:
        out = scaled_dot_product_attention(
            q.reshape(q.shape[0], k.shape[1], group * new, q.shape[3]),
            k,
            v,
            attn_mask=None if bias is None else _fold(bias, group),
            scale=softmax.softmax_scale,
        ).reshape(*q.shape[:3], v.shape[3])
    else:
        out = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=softmax.softmax_scale, enable_gqa=group > 1)
    out = out.transpose(1, 2)
    if mask is not None:
        # Rows that see no key are zero by contract; torch's kernels disagree among themselves there.
        out = out.masked_fill(~mask.any(-1).expand(out.shape[:2])[..., None, None], 0.0)
    out = out.to(dtype)
    if not batch.return_lse and softmax.sinks is None:
        return out, out.new_empty(out.shape[:3], dtype=torch.float32)
    scores = (
        torch.matmul(q.float().unflatten(1, (k.shape[1], group)), k.float().unsqueeze(2).transpose(-1, -2)).flatten(1, 2)
        * softmax.softmax_scale
    )
    if bias is not None:
        scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
    lse = torch.logsumexp(scores, -1).transpose(1, 2)
    return (out, lse) if softmax.sinks is None else apply_sinks(out, lse, softmax.sinks)


def _fold(bias: Tensor, group: int) -> Tensor:
    """A mask or bias [B, 1 or heads, n, L] for queries whose `group` heads a key head have become rows."""
    if bias.shape[1] == 1:
        return bias.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(2, 3)
    return bias.reshape(bias.shape[0], bias.shape[1] // group, group * bias.shape[2], bias.shape[3])


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "TORCH_SDPA",
        (
            Provider(
                PROVIDER,
                _CPU_KERNELS,
                _compiled,
                ("torch>=2.8", REQUIREMENT),
                "our own C++ kernels, compiled ahead",
                kind="kernel",
                kernels=("attnkit_cpu_*",),
                to_get="attnkit kernels build --target cpu",
                any_stride=True,
            ),
            Provider(
                "torch",
                CAPABILITY,
                _sdpa,
                ("torch>=2.8",),
                "torch.nn.functional.scaled_dot_product_attention",
                kind="composed",
                kernels=(KERNEL,),
                any_stride=True,
            ),
        ),
        aliases=("TORCH_SDPA_VLLM_V1", "torch", "sdpa"),
        summary="paged, varlen, tree and MLA attention through torch's scaled_dot_product_attention, everywhere",
    ),
)
