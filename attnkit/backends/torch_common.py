"""What the torch backends share: gathering a paged cache, and masks and biases as tensors.

Imports torch: only to be imported inside a provider's `run`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from attnkit.spec import Batch, MlaDecode, Softmax, VarlenAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


def slots(block_table: Tensor, lens: list[int], block_size: int) -> Tensor:
    """Flat cache slots of the tokens of all sequences, one after another: int64 [sum(lens)].

    Args:
        block_table: [num_seqs, max_blocks] int32. lens: tokens of each sequence, on the host.
    """
    device = block_table.device
    counts = torch.tensor(lens, dtype=torch.int64, device=device)
    seq = torch.repeat_interleave(torch.arange(len(lens), device=device), counts, output_size=sum(lens))
    position = torch.arange(sum(lens), device=device) - (torch.cumsum(counts, 0) - counts)[seq]
    return block_table[seq, position // block_size].long() * block_size + position % block_size


def padded_slots(block_table: Tensor, rows: Tensor, lens: Tensor, width: int, block_size: int) -> Tensor:
    """Flat cache slots of the sequences `rows`, padded to `width` with each sequence's first slot: int64 [len(rows), width].

    Padding repeats a slot in use, so that no unused slot (which may hold NaN) is read; the caller masks it.
    """
    position = torch.arange(width, device=block_table.device)[None, :]
    position = torch.where(position < lens[:, None], position, 0)
    blocks = block_table[rows].long().gather(1, position // block_size)
    return blocks * block_size + position % block_size


def read_cache(cache: Tensor, slot: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """The cached rows at `slot` (any shape), dequantised: slot.shape + [num_kv_heads, head_dim] in `dtype`."""
    size = cache.shape[1]
    where = slot // size, slot % size  # not a flat view: with heads before tokens in memory that would copy the whole cache
    if cache.element_size() == 1:
        # indexing is not implemented for float8 everywhere; its bytes can always be moved
        rows = cache.view(torch.uint8)[where].view(cache.dtype).float()
        return (rows * scale).to(dtype)
    rows = cache[where]
    return rows if scale == 1.0 else rows * scale


def gather_kv(call: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of a batch as packed tensors: a cache's gathered, those of a `VarlenAttention` as they are.

    Returns:
        key [total_kv, num_kv_heads, head_dim] and value [total_kv, num_kv_heads, head_dim_v] in the dtype of the query,
        dequantised; key_start_loc [num_seqs + 1] int32 prefix sums of the lengths, which count as 0 without new tokens.
    """
    if isinstance(call, VarlenAttention):
        return call.key, call.value, call.key_start_loc
    # Of a sequence without new tokens nothing is read: its blocks may be any number.
    counts = call.seq_lens * (call.query_start_loc.diff() > 0)
    starts = torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0)).to(torch.int32)
    lens = counts.tolist()
    dtype = call.query.dtype
    if isinstance(call, MlaDecode):
        slot = slots(call.block_table, lens, call.kv_cache.shape[1])
        key = read_cache(call.kv_cache, slot, call.kv_scale, dtype).unsqueeze(1)
        return key, key[..., : call.kv_lora_rank], starts
    slot = slots(call.block_table, lens, call.key_cache.shape[1])
    key = read_cache(call.key_cache, slot, call.k_scale, dtype)
    return key, read_cache(call.value_cache, slot, call.v_scale, dtype), starts


def visible(softmax: Softmax, q_pos: Tensor, k_pos: Tensor) -> Tensor | None:
    """Bool mask of causality and window over broadcastable positions; None where everything is visible."""
    left, right = softmax.window
    if softmax.causal:
        right = 0
    mask = None
    if left >= 0:
        mask = k_pos >= q_pos - left
    if right >= 0:
        ahead = k_pos <= q_pos + right
        mask = ahead if mask is None else mask & ahead
    return mask


def in_window(softmax: Softmax, q_pos: Tensor, k_pos: Tensor) -> Tensor | None:
    """`visible` of a tree, whose mask takes the place of causality."""
    return visible(replace(softmax, causal=False), q_pos, k_pos)


def no_keys(batch: Batch) -> Tensor:
    """The log-sum-exp of rows that see no key, [num_tokens, num_heads] float32: their sink's, or minus infinity."""
    shape, sinks = batch.query.shape[:2], batch.softmax.sinks
    if sinks is not None:
        return sinks.float().repeat(shape[0], 1)
    return torch.full(shape, -math.inf, dtype=torch.float32, device=batch.query.device)


def alibi_bias(slopes: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
    """slope * (k_pos - q_pos), float32: [num_heads] slopes and positions [..., n, L] -> [..., num_heads, n, L]."""
    return slopes.float()[:, None, None] * (k_pos - q_pos).float().unsqueeze(-3)


def apply_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Put each head's sink into the softmax denominator afterwards.

    Args:
        out: [n, num_heads, head_dim_v] without sinks. lse: [n, num_heads] float32 without. sinks: [num_heads].

    Returns:
        out * exp(lse) / (exp(lse) + exp(sink)), and log(exp(lse) + exp(sink)).
    """
    keep = torch.sigmoid(lse - sinks.float())
    return (out.float() * keep[..., None]).to(out.dtype), torch.logaddexp(lse, sinks.float())
