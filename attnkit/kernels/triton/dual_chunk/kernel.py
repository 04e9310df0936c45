# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Dual chunk attention over a paged cache of unrotated keys (arXiv 2402.17463, 2501.15383).

With period s = chunk_size - local_size, keys carry rope(k_j, j mod s) and the query depends on the distance of the chunks,
floor(i / s) - floor(j / s):

    0       rope(q_i, i mod s)                          (intra)
    1       rope(q_i, min(i mod s + s, chunk_size))     (successor)
    more    rope(q_i, min(2 s - 1, chunk_size))         (inter)

One softmax runs over all keys, chunk of keys after chunk of keys, with one running maximum and denominator: within a chunk
every row has one rotation. Rotation works on the two halves of a row (neox style), so halves are loaded as tiles of their own
and the score is the sum of two products; values come in halves too, which lets them share the keys' addresses.

A score depends on the difference of two positions alone. RELATIVE uses that: keys of a tile are turned by their place in the
tile, 0 to BLOCK_N - 1, which is the same few cosines for every tile and stays in registers, and the query by the rest, once a
tile. Otherwise every key is turned by its position in the chunk, whose cosines (float32: as many bytes as key and value
together) are read anew for every key and head; that is less arithmetic where a tile has many rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnkit.kernels.triton.rows import cut_keys, entry, find_rows, find_tile, share_of, split_outputs, write_lse, write_nothing
from attnkit.kernels.triton.tiles import LN2, LOG2E, dequantise, load_rows, matmul, plus, products, row_offsets, row_pages


@triton.jit
def rotate(low, high, cos, sin):
    """rope of a row's two halves, in float32."""
    a = low.to(tl.float32)
    b = high.to(tl.float32)
    return a * cos - b * sin, b * cos + a * sin


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
    stride_lens, stride_starts, stride_page,
    stride_q_token, stride_q_head, stride_k_block, stride_k_token, stride_k_head,
    stride_v_block, stride_v_token, stride_v_head, stride_o_token, stride_o_head, stride_table,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr, SAME_STRIDES: tl.constexpr, RELATIVE: tl.constexpr, SCALED: tl.constexpr, CAUSAL: tl.constexpr,
    FP8: tl.constexpr, RETURN_LSE: tl.constexpr,
):  # fmt: skip
    """Rows as in `paged_prefill`; SPLITS > 1 cuts the keys as `paged_decode` does and writes what `merge_splits` joins."""
    HALF: tl.constexpr = HEAD_DIM // 2
    DTYPE: tl.constexpr = query.dtype.element_ty
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    num_heads = tl.num_programs(1) * GROUP
    seq, query_start, query_len, first_row = find_tile(query_start_loc, stride_starts, num_seqs, GROUP, BLOCK_M)
    if first_row >= query_len * GROUP:
        return
    seq_len = entry(seq_lens, stride_lens, seq)
    context = seq_len - query_len
    table += seq.to(tl.int64) * stride_table
    key += kv_head.to(tl.int64) * stride_k_head
    value += kv_head.to(tl.int64) * stride_v_head

    rows = find_rows(first_row, query_start, query_len, context, kv_head, GROUP, BLOCK_M)
    # Rows past the end, and those before the first key, take the nearest position: they index inside the rope tables.
    position = tl.maximum(tl.minimum(rows.position, seq_len - 1), 0)
    half = tl.arange(0, HALF)
    at_row = query + rows.token[:, None] * stride_q_token + rows.head.to(tl.int64)[:, None] * stride_q_head
    q_low = tl.load(at_row + half[None, :], mask=rows.real[:, None], other=0.0)
    q_high = tl.load(at_row + HALF + half[None, :], mask=rows.real[:, None], other=0.0)

    factor = scale * LOG2E
    if SCALED:
        length = seq_len.to(tl.float32) / original_max_position
        factor = factor * tl.maximum(1.0, 0.1 * LN2 * tl.log2(length) + 1.0)

    begin = 0
    end = rows.highest + 1 if CAUSAL else seq_len
    if SPLITS > 1:
        begin, end = cut_keys(end, split, BLOCK_N, SPLITS)
        out, lse = split_outputs(out, lse, split, num_tokens, num_heads, stride_o_token)
        if begin >= end:
            write_nothing(lse, rows, num_heads, BLOCK_M)
            return

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc_low = tl.zeros([BLOCK_M, HALF], tl.float32)
    acc_high = tl.zeros([BLOCK_M, HALF], tl.float32)
    if RELATIVE:
        place_cos, place_sin = rotation(rope_cos, rope_sin, tl.arange(0, BLOCK_N), HALF)
    for chunk in tl.range(begin // period, tl.cdiv(end, period)):
        offset = chunk * period
        first = tl.maximum(offset, begin)
        limit = tl.minimum(offset + period, end)
        at = position % period
        apart = position // period - chunk
        at = tl.where(apart == 1, tl.minimum(at + period, chunk_size), at)
        at = tl.where(apart > 1, tl.minimum(2 * period - 1, chunk_size), at)
        cos, sin = rotation(rope_cos, rope_sin, at, HALF)
        turned_low, turned_high = rotate(q_low, q_high, cos, sin)
        tile_start = first // BLOCK_N * BLOCK_N
        # Block numbers are fetched one tile ahead, as in tiles.py.
        ahead = row_pages(tile_start, table, stride_page, first, limit, BLOCK_SIZE, BLOCK_N)
        for start in tl.range(tile_start, limit, BLOCK_N):
            start = tl.multiple_of(start, BLOCK_N)
            n = start + tl.arange(0, BLOCK_N)
            pages = ahead
            ahead = row_pages(start + BLOCK_N, table, stride_page, first, limit, BLOCK_SIZE, BLOCK_N)
            k_rows = row_offsets(start, pages, stride_k_block, stride_k_token, BLOCK_SIZE, BLOCK_N)
            k_low = dequantise(load_rows(key, k_rows, n, first, limit, HALF, HALF, True), DTYPE, FP8)
            k_high = dequantise(load_rows(key + HALF, k_rows, n, first, limit, HALF, HALF, True), DTYPE, FP8)
            if RELATIVE:
                # The tile may begin before its chunk does: turned the other way round then.
                back = start - offset
                back_at = tl.abs(back) * HALF + half
                back_cos = tl.load(rope_cos + back_at)[None, :]
                back_sin = tl.load(rope_sin + back_at)[None, :]
                back_sin = tl.where(back < 0, back_sin, -back_sin)
                q1, q2 = rotate(turned_low, turned_high, back_cos, back_sin)
                k1, k2 = rotate(k_low, k_high, place_cos, place_sin)
            else:
                q1, q2 = turned_low, turned_high
                k_cos, k_sin = rotation(rope_cos, rope_sin, tl.maximum(tl.minimum(n - offset, period - 1), 0), HALF)
                k1, k2 = rotate(k_low, k_high, k_cos, k_sin)
            q1, q2 = q1.to(DTYPE), q2.to(DTYPE)
            k1, k2 = k1.to(DTYPE), k2.to(DTYPE)
            if q_low.dtype == tl.float32:
                s = plus(products(q1, k1), products(q2, k2)) * factor
            else:
                s = matmul(q1, tl.trans(k1), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
                s = matmul(q2, tl.trans(k2), s) * factor
            visible = ((n >= first) & (n < limit))[None, :]
            if CAUSAL:
                visible &= n[None, :] <= rows.position[:, None]
            s = tl.where(visible, s, float("-inf"))
            top = tl.maximum(m, tl.max(s, 1))
            pivot = tl.where(top == float("-inf"), 0.0, top)
            p = tl.exp2(s - pivot[:, None])
            shrink = tl.exp2(m - pivot)
            total = total * shrink + tl.sum(p, 1)
            v_rows = k_rows if SAME_STRIDES else row_offsets(start, pages, stride_v_block, stride_v_token, BLOCK_SIZE, BLOCK_N)
            v_low = dequantise(load_rows(value, v_rows, n, first, limit, HALF, HALF, True), DTYPE, FP8)
            v_high = dequantise(load_rows(value + HALF, v_rows, n, first, limit, HALF, HALF, True), DTYPE, FP8)
            acc_low = matmul(p.to(DTYPE), v_low, acc_low * shrink[:, None])
            acc_high = matmul(p.to(DTYPE), v_high, acc_high * shrink[:, None])
            m = top

    share = share_of(total, v_scale)[:, None]
    at_out = out + rows.token[:, None] * stride_o_token + rows.head.to(tl.int64)[:, None] * stride_o_head + half[None, :]
    tl.store(at_out, (acc_low * share).to(out.dtype.element_ty), mask=rows.real[:, None])
    tl.store(at_out + HALF, (acc_high * share).to(out.dtype.element_ty), mask=rows.real[:, None])
    write_lse(lse, m, total, rows, num_heads, SPLITS, RETURN_LSE)
