"""The baseline: what this precision can do. Plain attention in the tested dtype, with the operations in another order.

The scale goes onto the keys instead of the scores, scores and probabilities are rounded to the tested dtype, nothing is upcast
(the yardstick of FlashAttention's tests). Its error against the float64 reference is what the tolerance is made of. Runs on the
CPU, like the reference.

The baseline is the same on every host. A matrix product by the BLAS of the day is not: the order of its sums follows the CPU,
and with it the bound of a float32 case. So nothing here is summed or exponentiated in the
tested dtype: each operation is worked out in float64, whose own error is far below, and rounded to the tested dtype where that
operation would round. In sixteen bits that is one rounding a result, as of a matrix unit that accumulates in float32. In
float32 the sums are all there is, and they are made explicit: `CHUNK` products at a time, dealt to `LANES` running sums that
are added pairwise at the end, each step rounded. One order is the plainest there is: one product after the other.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from attnkit.selftest.reference import difference, paired, products, sequences, shaped, weighted
from attnkit.spec import AttentionOutput, Call, DifferentialAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


ORDERS = 16
"""Orders of summation in float32. With eight, a decode of a few large scores, each rounded up or down, was a matter of luck."""

SCORES = 1 << 19
"""Scores of all orders together, about: many scores average over their luck, and one order of them shows what many would."""

PLAIN = 1 << 20
"""Scores up to which the first order takes one product after the other, as the plainest kernel does with its keys. Where all
products are equal (equal keys), no other order shows its drift: each step of a running sum rounds the same way."""

CHUNK = 8
"""Products that a float32 sum takes together before it rounds."""

SUMS = 1 << 17
"""Partial sums held at a time, about: rows of a float32 product are worked out in slabs that stay in a core's cache."""

LANES, MANY = 16, 1024
"""Running sums that the chunks are dealt to in turn, as vector lanes are. Beyond `MANY` chunks there is one, as in a kernel
that walks over tiles of a long context: sixteen would be more exact there than any of them."""


def baselines(call: Call) -> tuple[AttentionOutput, ...]:
    """The baseline of a call; in float32 several, one an order of summing, and the worst of them counts.

    Sixteen-bit rounding swamps the order of a sum. In float32 the order is all there is: one draw can be lucky by a factor of
    ten, and a backend that sums in another order is not wrong for that.
    """
    batch = call.batch
    if batch.query.dtype != torch.float32:
        return (baseline(call),)
    tokens, heads, _ = batch.query.shape
    scores = max(1, tokens * heads * batch.max_seq_len)
    first = baseline(call, plain=scores <= PLAIN)
    draw = torch.Generator().manual_seed(1)
    orders = min(ORDERS, max(1, SCORES // scores))
    return first, *(baseline(call, draw) for _ in range(orders - 1))


def baseline(call: Call, draw: torch.Generator | None = None, *, plain: bool = False) -> AttentionOutput:
    """`call` in its own dtype, operation by operation.

    Args:
        draw: where the orders of summation come from; None sums in the order of the tensors.
        plain: float32 sums of at most `MANY` products take one after the other, not `CHUNK` at a time.

    Returns:
        out in the dtype of the query on the CPU; lse float32 of the rounded scores, or None where not asked for.
    """
    batch, spec = call.batch, call.spec()
    softmax = batch.softmax
    dtype = batch.query.dtype
    tokens = batch.query.shape[0]
    differential = isinstance(call, DifferentialAttention)
    width = 2 * spec.value_dim if differential else spec.value_dim
    out = torch.zeros(tokens, spec.num_heads, width, dtype=dtype)
    lse = torch.full((tokens, spec.num_heads), -math.inf, dtype=torch.float32)
    for exact in sequences(call):
        if not exact.q.shape[0] or not exact.k.shape[0]:
            continue
        seq = replace(exact, q=exact.q.to(dtype), k=exact.k.to(dtype) * softmax.softmax_scale, v=exact.v.to(dtype))
        along = None if draw is None else torch.randperm(spec.head_dim, generator=draw)
        logits = shaped(call, seq, products(call, seq, partial(product, order=along, plain=plain)))
        lse[exact.rows] = _lse(logits, softmax.sinks).transpose(0, 1)
        p = _softmax(logits, softmax.sinks, plain=plain)
        along = None if draw is None else torch.randperm(seq.v.shape[0], generator=draw)
        v = paired(seq.v) if differential else seq.v
        out[exact.rows] = weighted(call, p, v, partial(product, order=along, plain=plain))
    if isinstance(call, DifferentialAttention):
        return AttentionOutput(difference(call, out), None, "eager")
    return AttentionOutput(out, lse if batch.return_lse else None, "eager")


def product(a: Tensor, b: Tensor, order: Tensor | None = None, *, plain: bool = False) -> Tensor:
    """a [m, K] by b [K, n], rounded as the module says, in the dtype of `a`.

    Args:
        order: a permutation of K, the order in which a float32 sum takes its products.
        plain: a float32 sum of at most `MANY` products is one multiply-add after the other.
    """
    if a.dtype != torch.float32:
        return (a.double() @ b.double()).to(a.dtype)
    if order is not None:
        a, b = a[:, order], b[order]
    found = a.new_zeros(a.shape[0], b.shape[1])
    if plain and a.shape[1] <= MANY:
        step, columns = max(1, SUMS // max(1, b.shape[1])), b.double().unbind(0)
        for rows, into in zip(a.double().split(step), found.split(step), strict=True):
            total = into.double()
            for left, right in zip(rows.unbind(1), columns, strict=True):
                total.copy_(into.copy_(total.addcmul_(left[:, None], right[None])))
        return found
    chunks, spare = -(-a.shape[1] // CHUNK), -a.shape[1] % CHUNK
    right = pad(b.double(), (0, 0, 0, spare)).view(chunks, CHUNK, b.shape[1])
    step = max(1, SUMS // max(1, chunks * b.shape[1]))
    for rows, into in zip(a.split(step), found.split(step), strict=True):
        left = pad(rows.double(), (0, spare)).view(rows.shape[0], chunks, CHUNK).transpose(0, 1)
        into.copy_(_added(torch.bmm(left, right).float()))
    return found


def _added(sums: Tensor) -> Tensor:
    """The sum over the first dimension: running float32 sums (see `LANES`), then neighbours added pairwise."""
    width = LANES if sums.shape[0] <= MANY else 1
    steps = -(-sums.shape[0] // width)
    spare = steps * width - sums.shape[0]
    lanes = torch.cat((sums, sums.new_zeros(spare, *sums.shape[1:]))) if spare else sums
    lanes = lanes.view(steps, width, *sums.shape[1:])
    running = lanes[0]
    for step in lanes[1:]:
        running = running + step
    while running.shape[0] > 1:
        running = running[0::2] + running[1::2]
    return running[0]


def _with_sink(logits: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return logits
    column = sinks.cpu().to(logits.dtype)[:, None, None].expand(-1, logits.shape[1], 1)
    return torch.cat((logits, column), dim=-1)


def _softmax(logits: Tensor, sinks: Tensor | None, *, plain: bool) -> Tensor:
    """Exponentials and their sum rounded to float32 each, as every softmax of torch does, then the probabilities."""
    x = _with_sink(logits, sinks).float()
    top = x.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    weights = (x - top).double().exp().float()
    total = product(weights.flatten(0, 1), weights.new_ones(weights.shape[-1], 1), plain=plain).view(top.shape)
    p = (weights / total).to(logits.dtype)[..., : logits.shape[-1]]
    return p.masked_fill(torch.isneginf(logits).all(-1, keepdim=True), 0.0)  # a row without keys is 0, not 0/0


def _lse(logits: Tensor, sinks: Tensor | None) -> Tensor:
    return torch.logsumexp(_with_sink(logits, sinks).double(), dim=-1).float()
