# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Dual chunk attention over a paged cache of unrotated keys (arXiv 2402.17463, 2501.15383).

With period s = chunk_size - local_size, keys carry rope(k_j, j mod s) and the query depends on the distance of the chunks,
floor(i / s) - floor(j / s):

    0       rope(q_i, i mod s)                          (intra)
    1       rope(q_i, min(i mod s + s, chunk_size))     (successor)
    more    rope(q_i, min(2 s - 1, chunk_size))         (inter)

One softmax runs over all keys: three passes over the three runs of keys, one running maximum and denominator. A pass covers the
keys that have its distance to any row of the tile; where a tile's rows lie in two chunks, the runs overlap and a mask on the
distance decides. Rotation works on the two halves of a row (neox style), so halves are loaded as tiles of their own and the
score is the sum of two products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnkit.kernels.triton.paged_prefill import find_sequence
from attnkit.kernels.triton.tiles import LN2, LOG2E, dequantise, load_rows, matmul, plus, products, row_offsets, row_pages


@triton.jit
def rotate(low, high, cos, sin):
    """rope of a row's two halves, in float32, back in the rows' dtype."""
    a = low.to(tl.float32)
    b = high.to(tl.float32)
    return (a * cos - b * sin).to(low.dtype), (b * cos + a * sin).to(low.dtype)


@triton.jit
def rotation(rope_cos, rope_sin, at, HALF: tl.constexpr):
    """cos and sin rows [len(at), HALF] of positions `at`."""
    d = tl.arange(0, HALF)
    index = at[:, None] * HALF + d[None, :]
    return tl.load(rope_cos + index), tl.load(rope_sin + index)


@triton.jit(
    do_not_specialize=["num_seqs", "num_tokens", "period", "chunk_size", "stride_table"],
    do_not_specialize_on_alignment=["table", "seq_lens", "query_start_loc"],
)
def dual_chunk_attention(
    out, lse, query, key, value, table, seq_lens, query_start_loc, rope_cos, rope_sin,
    num_seqs, num_tokens, scale, v_scale, period, chunk_size, original_max_position,
    stride_q_token, stride_q_head, stride_k_block, stride_k_token, stride_k_head,
    stride_v_block, stride_v_token, stride_v_head, stride_o_token, stride_o_head, stride_table,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr, SCALED: tl.constexpr, CAUSAL: tl.constexpr, FP8: tl.constexpr, RETURN_LSE: tl.constexpr,
):  # fmt: skip
    """Rows as in `paged_prefill`; SPLITS > 1 cuts the keys as `paged_decode` does and writes what `merge_splits` joins."""
    HALF: tl.constexpr = HEAD_DIM // 2
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    num_heads = tl.num_programs(1) * GROUP
    seq = find_sequence(tile, query_start_loc, num_seqs, GROUP, BLOCK_M)
    query_start = tl.load(query_start_loc + seq)
    query_len = tl.load(query_start_loc + seq + 1) - query_start
    first_row = (tile - (query_start * GROUP // BLOCK_M + seq)) * BLOCK_M
    if first_row >= query_len * GROUP:
        return
    seq_len = tl.load(seq_lens + seq)
    context = seq_len - query_len
    table += seq.to(tl.int64) * stride_table
    key += kv_head.to(tl.int64) * stride_k_head
    value += kv_head.to(tl.int64) * stride_v_head

    row = first_row + tl.arange(0, BLOCK_M)
    real = row < query_len * GROUP
    # Rows past the end copy the last real row's position, so that they index inside the rope tables.
    position = tl.minimum(context + row // GROUP, seq_len - 1)
    head = kv_head * GROUP + row % GROUP
    token = (query_start + row // GROUP).to(tl.int64)
    half = tl.arange(0, HALF)
    at_row = query + token[:, None] * stride_q_token + head[:, None] * stride_q_head
    q_low = tl.load(at_row + half[None, :], mask=real[:, None], other=0.0)
    q_high = tl.load(at_row + HALF + half[None, :], mask=real[:, None], other=0.0)

    factor = scale * LOG2E
    if SCALED:
        length = seq_len.to(tl.float32) / original_max_position
        factor = factor * tl.maximum(1.0, 0.1 * LN2 * tl.log2(length) + 1.0)

    first_chunk = (context + first_row // GROUP) // period
    highest = context + tl.minimum((first_row + BLOCK_M - 1) // GROUP, query_len - 1)
    last_chunk = highest // period
    begin = 0
    end = highest + 1 if CAUSAL else seq_len
    if SPLITS > 1:
        run = tl.cdiv(tl.cdiv(end, BLOCK_N), SPLITS) * BLOCK_N
        begin = split * run
        end = tl.minimum(end, begin + run)
        lse += split.to(tl.int64) * num_tokens * num_heads
        out += split.to(tl.int64) * num_tokens * stride_o_token
        if begin >= end:
            tl.store(lse + token * num_heads + head, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=real)
            return

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_DIM], tl.float32)
    row_chunk = position // period
    for distance in tl.static_range(3):
        if distance == 0:
            at = position % period
            first = first_chunk * period
            limit = seq_len
        elif distance == 1:
            at = tl.minimum(position % period + period, chunk_size)
            first = (first_chunk - 1) * period
            limit = last_chunk * period
        else:
            at = tl.minimum(position * 0 + 2 * period - 1, chunk_size)
            first = 0
            limit = (last_chunk - 1) * period
        first = tl.maximum(first, begin)
        limit = tl.minimum(limit, end)
        cos, sin = rotation(rope_cos, rope_sin, at, HALF)
        q1, q2 = rotate(q_low, q_high, cos, sin)
        for start in tl.range(first // BLOCK_N * BLOCK_N, limit, BLOCK_N):
            start = tl.multiple_of(start, BLOCK_N)
            n = start + tl.arange(0, BLOCK_N)
            pages = row_pages(start, table, first, limit, BLOCK_SIZE, BLOCK_N)
            k_rows = row_offsets(start, pages, stride_k_block, stride_k_token, BLOCK_SIZE, BLOCK_N)
            k_low = dequantise(load_rows(key, k_rows, n, first, limit, HALF, HALF, True), q_low.dtype, FP8)
            k_high = dequantise(load_rows(key + HALF, k_rows, n, first, limit, HALF, HALF, True), q_low.dtype, FP8)
            k_cos, k_sin = rotation(rope_cos, rope_sin, n % period, HALF)
            k1, k2 = rotate(k_low, k_high, k_cos, k_sin)
            if q_low.dtype == tl.float32:
                s = plus(products(q1, k1), products(q2, k2)) * factor
            else:
                s = matmul(q1, tl.trans(k1), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
                s = matmul(q2, tl.trans(k2), s) * factor
            apart = row_chunk[:, None] - (n // period)[None, :]
            if distance == 0:
                visible = apart <= 0
            elif distance == 1:
                visible = apart == 1
            else:
                visible = apart >= 2
            visible &= (n >= first)[None, :] & (n < limit)[None, :]
            if CAUSAL:
                visible &= n[None, :] <= position[:, None]
            s = tl.where(visible, s, float("-inf"))
            top = tl.maximum(m, tl.max(s, 1))
            pivot = tl.where(top == float("-inf"), 0.0, top)
            p = tl.exp2(s - pivot[:, None])
            shrink = tl.exp2(m - pivot)
            total = total * shrink + tl.sum(p, 1)
            v_rows = row_offsets(start, pages, stride_v_block, stride_v_token, BLOCK_SIZE, BLOCK_N)
            v = dequantise(load_rows(value, v_rows, n, first, limit, HEAD_DIM, HEAD_DIM, True), q_low.dtype, FP8)
            acc = matmul(p.to(v.dtype), v, acc * shrink[:, None])
            m = top

    acc = acc * (v_scale / tl.where(total == 0.0, 1.0, total))[:, None]
    d = tl.arange(0, HEAD_DIM)
    tl.store(
        out + token[:, None] * stride_o_token + head[:, None] * stride_o_head + d[None, :],
        acc.to(out.dtype.element_ty),
        mask=real[:, None],
    )
    if SPLITS > 1:
        tl.store(lse + token * num_heads + head, m + tl.log2(total), mask=real)
    elif RETURN_LSE:
        tl.store(lse + token * num_heads + head, (m + tl.log2(total)) * LN2, mask=real)
