# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The kernels around dual chunk attention as three ordinary attentions (composed_plan.py).

A segment is the run of a sequence's new tokens that lie in one chunk: for all of them, the keys of their own chunk have one
rotation of the query, those of the chunk before another, and all earlier ones a third. A sequence has SEGMENTS of them, some
empty, so that nothing but the host's longest lengths decides what is launched.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnkit.kernels.triton.dual_chunk.kernel import rotate, rotation
from attnkit.kernels.triton.rows import entry, query_span
from attnkit.kernels.triton.tiles import LN2, LOG2E, dequantise, load_rows, row_offsets, row_pages


@triton.jit
def find_owner(token, query_start_loc, stride_starts, num_seqs):
    """The last sequence that starts at or before `token`."""
    low = 0
    high = num_seqs
    while low < high:
        middle = (low + high) // 2
        if entry(query_start_loc, stride_starts, middle) <= token:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit(
    do_not_specialize=["num_seqs", "period", "longest"],
    do_not_specialize_on_alignment=["seq_lens", "query_start_loc"],
)
def dual_chunk_segments(
    own_queries, own_keys, before_queries, before_keys, seq_lens, query_start_loc, num_seqs, period, longest,
    stride_lens, stride_starts, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where the segments' queries and keys begin and end, as pairs; what lies between two pairs is a sequence without queries.

    own_queries, own_keys [2 * segments]: the own chunk's keys up to the segment's last token.
    before_queries, before_keys [4 * segments]: the chunk before, then, of a second copy of the queries right after the first,
    everything earlier. Sequence b's keys are rows b * longest and on.
    """
    segment = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = segment < num_seqs * SEGMENTS
    seq = tl.where(real, segment // SEGMENTS, 0)
    query_start, query_len = query_span(query_start_loc, stride_starts, seq)
    seq_len = entry(seq_lens, stride_lens, seq)
    tokens = entry(query_start_loc, stride_starts, num_seqs)
    context = seq_len - query_len
    # Queries that no key precedes (more queries than keys) belong to the first segment, where the causal mask hides all.
    chunk = tl.maximum(context, 0) // period + segment % SEGMENTS
    first = tl.minimum(tl.maximum(chunk * period, context), seq_len)
    first = tl.where(segment % SEGMENTS == 0, context, first)
    last = tl.minimum((chunk + 1) * period, seq_len)
    begin = query_start + first - context
    end = query_start + last - context
    base = seq * longest
    tl.store(own_queries + 2 * segment, begin, mask=real)
    tl.store(own_queries + 2 * segment + 1, end, mask=real)
    tl.store(own_keys + 2 * segment, base + tl.minimum(chunk * period, last), mask=real)
    tl.store(own_keys + 2 * segment + 1, base + last, mask=real)
    before = tl.minimum(tl.maximum(chunk - 1, 0) * period, seq_len)
    at = 2 * segment
    tl.store(before_queries + at, begin, mask=real)
    tl.store(before_queries + at + 1, end, mask=real)
    tl.store(before_keys + at, base + before, mask=real)
    tl.store(before_keys + at + 1, base + tl.minimum(chunk * period, seq_len), mask=real)
    at += 2 * num_seqs * SEGMENTS
    tl.store(before_queries + at, tokens + begin, mask=real)
    tl.store(before_queries + at + 1, tokens + end, mask=real)
    tl.store(before_keys + at, base, mask=real)
    tl.store(before_keys + at + 1, base + before, mask=real)


@triton.jit(
    do_not_specialize=["num_seqs", "num_tokens", "period", "chunk_size"],
    do_not_specialize_on_alignment=["seq_lens", "query_start_loc"],
)
def dual_chunk_queries(
    own, before, query, seq_lens, query_start_loc, rope_cos, rope_sin, num_seqs, period, chunk_size, original_max_position,
    stride_lens, stride_starts, stride_q_token, stride_q_head,
    HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, HALF: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """The three rotations of one token's query, times the length factor.

    own [num_tokens, HEADS, 2 * HALF]: for keys of the own chunk; before [2 * num_tokens, HEADS, 2 * HALF]: for the chunk
    before, then, from row query_start_loc[num_seqs] on, for everything earlier.
    """
    token = tl.program_id(0)
    tokens = entry(query_start_loc, stride_starts, num_seqs)
    if token >= tokens:
        return
    seq = find_owner(token, query_start_loc, stride_starts, num_seqs)
    seq_len = entry(seq_lens, stride_lens, seq)
    position = tl.maximum(seq_len - entry(query_start_loc, stride_starts, seq + 1) + token, 0)
    head = tl.arange(0, HEADS_PADDED)
    half = tl.arange(0, HALF)
    here = head[:, None] < HEADS
    at = query + token.to(tl.int64) * stride_q_token + head.to(tl.int64)[:, None] * stride_q_head + half[None, :]
    low = tl.load(at, mask=here, other=0.0)
    high = tl.load(at + HALF, mask=here, other=0.0)
    factor = 1.0
    if SCALED:
        factor = tl.maximum(1.0, 0.1 * LN2 * tl.log2(seq_len.to(tl.float32) / original_max_position) + 1.0)
    near = position % period
    to = head[:, None] * (2 * HALF) + half[None, :]
    for part in tl.static_range(3):
        if part == 0:
            turn = near
            into = own + token.to(tl.int64) * (HEADS * 2 * HALF) + to
        elif part == 1:
            turn = tl.minimum(near + period, chunk_size)
            into = before + token.to(tl.int64) * (HEADS * 2 * HALF) + to
        else:
            turn = tl.minimum(2 * period - 1, chunk_size)
            into = before + (tokens + token).to(tl.int64) * (HEADS * 2 * HALF) + to
        cos = tl.load(rope_cos + turn * HALF + half)[None, :]
        sin = tl.load(rope_sin + turn * HALF + half)[None, :]
        a, b = rotate(low, high, cos, sin)
        tl.store(into, (a * factor).to(own.dtype.element_ty), mask=here)
        tl.store(into + HALF, (b * factor).to(own.dtype.element_ty), mask=here)


@triton.jit(
    do_not_specialize=["period", "longest", "stride_table"],
    do_not_specialize_on_alignment=["table", "seq_lens", "query_start_loc"],
)
def dual_chunk_gather(
    keys, values, key, value, table, seq_lens, query_start_loc, rope_cos, rope_sin, period, longest,
    stride_k_block, stride_k_token, stride_k_head, stride_v_block, stride_v_token, stride_v_head,
    stride_to_head, stride_to_token, stride_lens, stride_starts, stride_table, stride_page,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Keys rotated by their position in the chunk, and values, out of the pages into rows b * longest + j, in query's dtype."""
    HALF: tl.constexpr = HEAD_DIM // 2
    DTYPE: tl.constexpr = keys.dtype.element_ty
    seq = tl.program_id(0) // tl.cdiv(longest, BLOCK_N)
    start = tl.program_id(0) % tl.cdiv(longest, BLOCK_N) * BLOCK_N
    limit = entry(seq_lens, stride_lens, seq)
    _, query_len = query_span(query_start_loc, stride_starts, seq)
    if start >= limit or query_len == 0:
        return
    table += seq.to(tl.int64) * stride_table
    n = start + tl.arange(0, BLOCK_N)
    pages = row_pages(start, table, stride_page, 0, limit, BLOCK_SIZE, BLOCK_N)
    cos, sin = rotation(rope_cos, rope_sin, n % period, HALF)
    k_rows = row_offsets(start, pages, stride_k_block, stride_k_token, BLOCK_SIZE, BLOCK_N)
    v_rows = row_offsets(start, pages, stride_v_block, stride_v_token, BLOCK_SIZE, BLOCK_N)
    half = tl.arange(0, HALF)
    d = tl.arange(0, HEAD_DIM)
    here = (n < limit)[:, None]
    to = (seq.to(tl.int64) * longest + n)[:, None] * stride_to_token
    for _ in tl.range(0, HEADS):
        low = dequantise(load_rows(key, k_rows, n, 0, limit, HALF, HALF, True), DTYPE, FP8)
        high = dequantise(load_rows(key + HALF, k_rows, n, 0, limit, HALF, HALF, True), DTYPE, FP8)
        v = dequantise(load_rows(value, v_rows, n, 0, limit, HEAD_DIM, HEAD_DIM, True), DTYPE, FP8)
        a, b = rotate(low, high, cos, sin)
        tl.store(keys + to + half[None, :], a.to(DTYPE), mask=here)
        tl.store(keys + HALF + to + half[None, :], b.to(DTYPE), mask=here)
        tl.store(values + to + d[None, :], v, mask=here)
        key += stride_k_head
        value += stride_v_head
        keys += stride_to_head
        values += stride_to_head


@triton.jit(
    do_not_specialize=["num_seqs", "period"],
    do_not_specialize_on_alignment=["seq_lens", "query_start_loc"],
)
def dual_chunk_join(
    out, lse, own, own_lse, before, before_lse, seq_lens, query_start_loc, num_seqs, period, v_scale,
    stride_lens, stride_starts, stride_o_token, stride_o_head, stride_lse,
    HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, HEAD_DIM: tl.constexpr, RETURN_LSE: tl.constexpr,
):  # fmt: skip
    """One token: the three parts by their log-sum-exps (natural).

    Parts are [num_tokens or 2 * num_tokens, HEADS, HEAD_DIM] as in `dual_chunk_queries`. A part without keys was not written.
    """
    token = tl.program_id(0)
    tokens = entry(query_start_loc, stride_starts, num_seqs)
    if token >= tokens:
        return
    seq = find_owner(token, query_start_loc, stride_starts, num_seqs)
    position = entry(seq_lens, stride_lens, seq) - entry(query_start_loc, stride_starts, seq + 1) + token
    chunk = tl.maximum(position, 0) // period
    head = tl.arange(0, HEADS_PADDED)
    d = tl.arange(0, HEAD_DIM)
    here = head < HEADS
    at = token.to(tl.int64) * HEADS + head
    far = (tokens + token).to(tl.int64) * HEADS + head
    l0 = tl.load(own_lse + at, mask=here, other=float("-inf")) * LOG2E
    l1 = tl.load(before_lse + at, mask=here & (chunk >= 1), other=float("-inf")) * LOG2E
    l2 = tl.load(before_lse + far, mask=here & (chunk >= 2), other=float("-inf")) * LOG2E
    top = tl.maximum(tl.maximum(l0, l1), l2)
    pivot = tl.where(top == float("-inf"), 0.0, top)
    w0, w1, w2 = tl.exp2(l0 - pivot), tl.exp2(l1 - pivot), tl.exp2(l2 - pivot)
    total = w0 + w1 + w2
    cell = here[:, None]
    o0 = tl.load(own + at[:, None] * HEAD_DIM + d[None, :], mask=cell, other=0.0).to(tl.float32)
    o1 = tl.load(before + at[:, None] * HEAD_DIM + d[None, :], mask=cell & (chunk >= 1), other=0.0).to(tl.float32)
    o2 = tl.load(before + far[:, None] * HEAD_DIM + d[None, :], mask=cell & (chunk >= 2), other=0.0).to(tl.float32)
    joined = o0 * w0[:, None] + o1 * w1[:, None] + o2 * w2[:, None]
    joined = joined * (v_scale / tl.where(total == 0.0, 1.0, total))[:, None]
    tl.store(
        out + token.to(tl.int64) * stride_o_token + head.to(tl.int64)[:, None] * stride_o_head + d[None, :],
        joined.to(out.dtype.element_ty),
        mask=cell,
    )
    if RETURN_LSE:
        tl.store(lse + token.to(tl.int64) * stride_lse + head, (pivot + tl.log2(total)) * LN2, mask=here)
