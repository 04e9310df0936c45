"""The base: what this precision can do. Plain eager torch in the tested dtype, with the operations in another order.

The scale goes onto the keys instead of the scores, scores and probabilities are rounded to the tested dtype, nothing is upcast
(the yardstick of FlashAttention's tests). Its error against the float64 reference is what the tolerance is made of. Runs on the
CPU, like the reference.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from attnkit.reference import difference, inner, paired, products, sequences, shaped, softmax_of, value_head
from attnkit.spec import AttentionOutput, Call, DifferentialAttention, DualChunkAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


ORDERS = 8
"""Orders of summation that are drawn in float32."""


def bases(call: Call) -> tuple[AttentionOutput, ...]:
    """The base of a call; in float32 several, one an order of summing over head_dim, and the worst of them counts.

    Sixteen-bit rounding swamps the order of a sum. In float32 the order is all there is: one draw can be lucky by a factor of
    ten, and a backend that sums in another order is not wrong for that.
    """
    first = eager(call)
    if first.out.dtype != torch.float32 or isinstance(call, DualChunkAttention):
        return (first,)
    width = call.spec().head_dim
    draw = torch.Generator().manual_seed(1)
    return first, *(eager(call, torch.randperm(width, generator=draw)) for _ in range(ORDERS - 1))


def eager(call: Call, order: Tensor | None = None) -> AttentionOutput:
    """`call` in its own dtype, operation by operation.

    Args:
        order: a permutation of head_dim, the order in which q.k is summed; None leaves it.

    Returns:
        out in the dtype of the query on the CPU; lse float32 of the rounded scores, or None where not asked for.
    """
    batch, spec, softmax = inner(call), call.spec(), softmax_of(call)
    dtype = batch.query.dtype
    tokens = batch.query.shape[0]
    differential = isinstance(call, DifferentialAttention)
    width = 2 * spec.value_dim if differential else spec.value_dim
    out = torch.zeros(tokens, spec.num_heads, width, dtype=dtype)
    lse = torch.full((tokens, spec.num_heads), -math.inf, dtype=torch.float32)
    for exact in sequences(call):
        if order is not None:
            exact = replace(exact, q=exact.q[..., order], k=exact.k[..., order])
        if not exact.q.shape[0] or not exact.k.shape[0]:
            continue
        seq = replace(exact, q=exact.q.to(dtype), k=exact.k.to(dtype) * softmax.softmax_scale, v=exact.v.to(dtype))
        logits = shaped(call, seq, products(call, seq))
        lse[exact.rows] = _lse(logits, softmax.sinks).transpose(0, 1)
        p = _softmax(logits, softmax.sinks)
        v = paired(seq.v) if differential else seq.v
        for head in range(spec.num_heads):
            out[exact.rows, head] = p[head] @ v[:, value_head(call, head)]
    if isinstance(call, DifferentialAttention):
        return AttentionOutput(difference(call, out), None, "eager")
    return AttentionOutput(out, lse if batch.return_lse else None, "eager")


def _with_sink(logits: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return logits
    column = sinks.cpu().to(logits.dtype)[:, None, None].expand(-1, logits.shape[1], 1)
    return torch.cat((logits, column), dim=-1)


def _softmax(logits: Tensor, sinks: Tensor | None) -> Tensor:
    p = torch.softmax(_with_sink(logits, sinks), dim=-1)[..., : logits.shape[-1]]
    return p.masked_fill(torch.isneginf(logits).all(-1, keepdim=True), 0.0)  # a row without keys is 0, not 0/0


def _lse(logits: Tensor, sinks: Tensor | None) -> Tensor:
    return torch.logsumexp(_with_sink(logits, sinks).float(), dim=-1)
