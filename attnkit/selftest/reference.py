"""What is right: every operation of spec.py in float64, sequence by sequence.

Short and obvious on purpose; it defines the answer that every backend is held to. It runs on the CPU whatever the device of
the tensors, so that the judge is not the accused. Slots that no sequence uses are never read.

    s = softmax_scale * q.k       s = softcap * tanh(s / softcap)       s += alibi_slope * (k_pos - q_pos)
    s = score_mod(s)              s = -inf where not visible            p = exp(s - m) / (sum exp(s - m) + exp(sink - m))

A query that sees no key gets zeros, and an LSE of -inf (or of its sink).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from attnkit.spec import (
    AttentionOutput,
    Call,
    DifferentialAttention,
    DualChunkAttention,
    MlaDecode,
    TreeAttention,
    VarlenAttention,
)

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


@dataclass(frozen=True)
class Sequence:
    """One sequence of a call, in float64 on the CPU.

    Args:
        index: its number in the batch. rows: its rows of query and output.
        q: [n, num_heads, head_dim]. k: [L, num_kv_heads, head_dim]. v: [L, num_kv_heads, head_dim_v].
        q_pos: [n] positions of the queries; the last sits at L - 1. Keys sit at 0 .. L - 1.
    """

    index: int
    rows: slice
    q: Tensor
    k: Tensor
    v: Tensor
    q_pos: Tensor


def sequences(call: Call) -> Iterator[Sequence]:
    """The sequences of a call, dequantised, 0-length ones included."""
    batch = call.batch
    query = _f64(batch.query)
    starts = batch.query_start_loc.tolist()
    for i in range(len(starts) - 1):
        rows = slice(starts[i], starts[i + 1])
        if isinstance(batch, VarlenAttention):
            begin, end = batch.key_start_loc[i : i + 2].tolist()
            k, v = _f64(batch.key[begin:end]), _f64(batch.value[begin:end])
        elif isinstance(batch, MlaDecode):
            k = _pages(batch.kv_cache, batch.block_table[i], int(batch.seq_lens[i])).unsqueeze(1) * batch.kv_scale
            v = k[..., : batch.kv_lora_rank]
        else:
            k = _pages(batch.key_cache, batch.block_table[i], int(batch.seq_lens[i])) * batch.k_scale
            v = _pages(batch.value_cache, batch.block_table[i], int(batch.seq_lens[i])) * batch.v_scale
        q = query[rows]
        yield Sequence(i, rows, q, k, v, torch.arange(q.shape[0]) + (k.shape[0] - q.shape[0]))


def visible(call: Call, seq: Sequence) -> Tensor:
    """Bool [1 or num_heads, n, L]: may this query (of this head) see this key?"""
    softmax = call.batch.softmax
    q_pos, k_pos = seq.q_pos[:, None], torch.arange(seq.k.shape[0])[None, :]
    seen = torch.ones(seq.q.shape[0], seq.k.shape[0], dtype=torch.bool)
    if isinstance(call, TreeAttention):
        nodes, drafted = seq.q.shape[0], min(seq.q.shape[0], seq.k.shape[0])
        seen[:, seq.k.shape[0] - drafted :] = call.tree_mask.cpu()[:nodes, nodes - drafted : nodes]
    elif softmax.causal:
        seen &= k_pos <= q_pos
    left, right = softmax.window
    if left >= 0:
        seen &= k_pos >= q_pos - left
    if right >= 0:
        seen &= k_pos <= q_pos + right
    if softmax.mask_mod is None:
        return seen[None]
    return seen & softmax.mask_mod(*_positions(seq)).broadcast_to(seq.q.shape[1], *seen.shape)


def products(call: Call, seq: Sequence, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> Tensor:
    """q.k as [num_heads, n, L] in the dtype of `seq`, with the rotations of dual chunk attention where the call is one.

    Args:
        multiply: the matrix product of the heads that share a key head, [heads * n, head_dim] by [head_dim, L].
    """

    def dot(q: Tensor, k: Tensor) -> Tensor:
        rows = q.transpose(0, 1)
        found = q.new_empty(*rows.shape[:2], k.shape[0])
        for shared, heads in sharing(partial(key_head, call), q.shape[1]).items():
            found[heads] = multiply(rows[heads].flatten(0, 1), k[:, shared].T).view(len(heads), *found.shape[1:])
        return found

    if not isinstance(call, DualChunkAttention):
        return dot(seq.q, seq.k)
    period = call.chunk_size - call.local_size
    k_pos = torch.arange(seq.k.shape[0])
    k = rotate(call, seq.k, k_pos % period)
    near = seq.q_pos % period
    successor = (near + period).clamp(max=call.chunk_size)
    far = torch.full_like(near, min(2 * period - 1, call.chunk_size))
    distance = seq.q_pos[:, None] // period - k_pos[None, :] // period
    intra, succ, inter = (dot(rotate(call, seq.q, p), k) for p in (near, successor, far))
    chosen = torch.where(distance <= 0, intra, torch.where(distance == 1, succ, inter))
    return length_factor(call, seq.k.shape[0]) * chosen


def logits(call: Call, seq: Sequence) -> Tensor:
    """[num_heads, n, L], what goes into the softmax, -inf where not visible."""
    softmax = call.batch.softmax
    return shaped(call, seq, softmax.softmax_scale * products(call, seq))


def shaped(call: Call, seq: Sequence, s: Tensor) -> Tensor:
    """Scaled scores with softcap, ALiBi, score_mod and mask applied, in the dtype of `s`."""
    softmax = call.batch.softmax
    if softmax.softcap > 0.0:
        s = softmax.softcap * torch.tanh((s / softmax.softcap).double()).to(s.dtype)
    if softmax.alibi_slopes is not None:
        distance = torch.arange(seq.k.shape[0])[None, :] - seq.q_pos[:, None]
        s = s + (_f64(softmax.alibi_slopes)[:, None, None] * distance).to(s.dtype)
    if softmax.score_mod is not None:
        s = softmax.score_mod(s, *_positions(seq)).to(s.dtype)
    return s.masked_fill(~visible(call, seq), -math.inf)


def probabilities(s: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax over the keys with the sink in the denominator, and the LSE as [n, num_heads]."""
    lse = torch.logsumexp(s, dim=-1) if s.shape[-1] else s.new_full(s.shape[:-1], -math.inf)
    if sinks is not None:
        lse = torch.logaddexp(lse, _f64(sinks)[:, None])
    return torch.exp(s - lse.nan_to_num(neginf=0.0)[..., None]), lse.transpose(0, 1)


def reference(call: Call, softmax: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]] = probabilities) -> AttentionOutput:
    """The right answer to `call`.

    Args:
        softmax: (logits [num_heads, n, L], sinks) -> (probabilities, LSE [n, num_heads]). Another one than `probabilities`
            makes a wrong answer on purpose: the self-test's injected faults.

    Returns:
        out: float64 on the CPU, shaped as the backend's. lse: float64 [num_tokens, num_heads] where asked for, else None
        (always None for differential attention, which has two softmaxes). kernel: "reference".
    """
    batch, spec = call.batch, call.spec()
    tokens = batch.query.shape[0]
    lse = torch.full((tokens, spec.num_heads), -math.inf, dtype=torch.float64)
    differential = isinstance(call, DifferentialAttention)
    width = 2 * spec.value_dim if differential else spec.value_dim
    out = torch.zeros(tokens, spec.num_heads, width, dtype=torch.float64)
    for seq in sequences(call):
        p, lse[seq.rows] = softmax(logits(call, seq), call.batch.softmax.sinks)
        out[seq.rows] = weighted(call, p, paired(seq.v) if differential else seq.v)
    if isinstance(call, DifferentialAttention):
        return AttentionOutput(difference(call, out), None, "reference")
    return AttentionOutput(out, lse if batch.return_lse else None, "reference")


def weighted(call: Call, p: Tensor, v: Tensor, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> Tensor:
    """Probabilities [num_heads, n, L] by values [L, value heads, d]: [n, num_heads, d].

    Args:
        multiply: the matrix product of the heads that share a value head, [heads * n, L] by [L, d].
    """
    found = p.new_zeros(p.shape[1], p.shape[0], v.shape[2])
    for shared, heads in sharing(partial(value_head, call), p.shape[0]).items():
        rows = multiply(p[heads].flatten(0, 1), v[:, shared])
        found[:, heads] = rows.view(len(heads), *found.shape[::2]).transpose(0, 1)
    return found


def sharing(owner: Callable[[int], int], heads: int) -> dict[int, list[int]]:
    """Query heads by the key (or value) head they share: one large product each. A head at a time, a context of 64k keys with
    128 heads on one latent would be read 128 times, which takes most of a minute."""
    found: dict[int, list[int]] = {}
    for head in range(heads):
        found.setdefault(owner(head), []).append(head)
    return found


def key_head(call: Call, head: int) -> int:
    """The key head that query head `head` attends to."""
    spec = call.spec()
    group = spec.num_heads // spec.num_kv_heads
    if isinstance(call, DifferentialAttention):
        return 2 * (head // 2 // group) + head % 2
    return head // group


def value_head(call: Call, head: int) -> int:
    """The value head of query head `head`; differential attention: the pair of it."""
    return key_head(call, head) // 2 if isinstance(call, DifferentialAttention) else key_head(call, head)


def paired(v: Tensor) -> Tensor:
    """[L, 2 * pairs, d] -> [L, pairs, 2 * d]: the value [v1; v2] of each pair."""
    return v.reshape(v.shape[0], v.shape[1] // 2, 2 * v.shape[2])


def difference(call: DifferentialAttention, out: Tensor) -> Tensor:
    """(first - lambda * second) of each head pair, RMSNorm over the pair's width, times 1 - lambda_init."""
    d = out[:, 0::2] - call.lambda_full * out[:, 1::2]
    mean = d.square().double().mean(dim=-1, keepdim=True).to(d.dtype)
    # By way of float64: a vector library's float32 root is not the same on every host.
    normed = d / (mean + call.eps).double().sqrt().to(d.dtype)
    weight = 1.0 if call.norm_weight is None else call.norm_weight.to(out.dtype).cpu()
    return (1.0 - call.lambda_init) * normed * weight


def length_factor(call: DualChunkAttention, length: int) -> float:
    """max(1, 0.1 ln(L / original_max_position) + 1) with L the sequence's length; 1 where it is off."""
    if call.original_max_position is None or length == 0:
        return 1.0
    return max(1.0, 0.1 * math.log(length / call.original_max_position) + 1.0)


def rotate(call: DualChunkAttention, x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding, neox style, of x [n, heads, head_dim] at `positions` [n], in the dtype of x."""
    cos, sin = (table.cpu().to(x.dtype)[positions][:, None] for table in (call.rope_cos, call.rope_sin))
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _positions(seq: Sequence) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(seq, head, q_pos, k_pos), each broadcastable to [num_heads, n, L]; what score_mod and mask_mod take."""
    heads, keys = torch.arange(seq.q.shape[1]), torch.arange(seq.k.shape[0])
    return torch.tensor(seq.index), heads[:, None, None], seq.q_pos[None, :, None], keys[None, None, :]


def _pages(cache: Tensor, blocks: Tensor, length: int) -> Tensor:
    """The first `length` tokens of one sequence, gathered page by page, as float64."""
    size = cache.shape[1]
    pages = [cache[block] for block in blocks[: -(-length // size)].tolist()]
    if not pages:
        return torch.empty(0, *cache.shape[2:], dtype=torch.float64)
    pages[-1] = pages[-1][: length - (len(pages) - 1) * size]
    return torch.cat([_f64(page) for page in pages])


def _f64(x: Tensor) -> Tensor:
    # float8 has few direct conversions; float32 holds every value of every dtype here but float64 itself
    return x.detach().cpu() if x.dtype == torch.float64 else x.detach().cpu().float().double()
