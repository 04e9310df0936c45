# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Multi-head latent attention on the compressed cache: scores against latent and rope parts, values are the latent rows.

    s_hj = softmax_scale * (q_latent_h . c_j + q_pe_h . k_pe_j) ;  out_h = sum_j softmax(s_h)_j c_j

All heads share the one cache row, so a tile holds BLOCK_M (token, head) rows of one sequence, and the latent tile that was
loaded for the scores is used again, untransposed, as the values. Split along the keys as in `paged_decode`; `merge_splits`
joins.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnkit.kernels.triton.rows import (
    cut_keys,
    entry,
    find_rows,
    query_span,
    share_of,
    split_outputs,
    write_lse,
    write_nothing,
    write_rows,
)
from attnkit.kernels.triton.tiles import LOG2E, dequantise, load_rows, matmul, row_offsets, row_pages


@triton.jit
def mla_tile(
    q_latent, q_rope, acc, total, m, start, pages, cache, position, first, limit, scale, stride_block, stride_token,
    LATENT: tl.constexpr, ROPE: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, FP8: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax over BLOCK_N cache rows."""
    DTYPE: tl.constexpr = q_latent.dtype
    n = start + tl.arange(0, BLOCK_N)
    rows = row_offsets(start, pages, stride_block, stride_token, BLOCK_SIZE, BLOCK_N)
    latent = dequantise(load_rows(cache, rows, n, first, limit, LATENT, LATENT, MASKED), DTYPE, FP8)
    rope = dequantise(load_rows(cache + LATENT, rows, n, first, limit, ROPE, ROPE, MASKED), DTYPE, FP8)
    s = matmul(q_latent, tl.trans(latent), tl.zeros([q_latent.shape[0], BLOCK_N], tl.float32))
    s = matmul(q_rope, tl.trans(rope), s)
    if MASKED:
        s = tl.where((n[None, :] < limit) & (n[None, :] <= position[:, None]), s, float("-inf"))
    top = tl.maximum(m, tl.max(s, 1) * (scale * LOG2E))
    pivot = tl.where(top == float("-inf"), 0.0, top) if MASKED else top
    p = tl.exp2(s * (scale * LOG2E) - pivot[:, None])
    shrink = tl.exp2(m - pivot)
    total = total * shrink + tl.sum(p, 1)
    acc = matmul(p.to(DTYPE), latent, acc * shrink[:, None])
    return acc, total, top


@triton.jit(
    do_not_specialize=["num_tokens", "stride_table"],
    do_not_specialize_on_alignment=["table", "seq_lens", "query_start_loc"],
)
def mla_decode_split(
    out, lse, query, cache, table, seq_lens, query_start_loc,
    num_tokens, scale, kv_scale, stride_lens, stride_starts, stride_page,
    stride_q_token, stride_q_head, stride_block, stride_token, stride_o_token, stride_o_head,
    stride_table,
    HEADS: tl.constexpr, LATENT: tl.constexpr, ROPE: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, FP8: tl.constexpr, RETURN_LSE: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of one sequence over one split. query [num_tokens, HEADS, LATENT + ROPE], cache [blocks, BLOCK_SIZE, same].

    Outputs as in `paged_decode`. `scale` holds the cache's float8 scale already; `kv_scale` is for the values.
    """
    first_row = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    seq = tl.program_id(2)
    query_start, query_len = query_span(query_start_loc, stride_starts, seq)
    if first_row >= query_len * HEADS:
        return
    seq_len = entry(seq_lens, stride_lens, seq)
    context = seq_len - query_len
    table += seq.to(tl.int64) * stride_table

    rows = find_rows(first_row, query_start, query_len, context, 0, HEADS, BLOCK_M)
    first = 0
    limit = rows.highest + 1
    if SPLITS > 1:
        first, limit = cut_keys(limit, split, BLOCK_N, SPLITS)
        out, lse = split_outputs(out, lse, split, num_tokens, HEADS, stride_o_token)
        if first >= limit:
            write_nothing(lse, rows, HEADS, BLOCK_M)
            return

    at_row = query + rows.token[:, None] * stride_q_token + rows.head.to(tl.int64)[:, None] * stride_q_head
    c = tl.arange(0, LATENT)
    r = tl.arange(0, ROPE)
    q_latent = tl.load(at_row + c[None, :], mask=rows.real[:, None], other=0.0)
    q_rope = tl.load(at_row + LATENT + r[None, :], mask=rows.real[:, None], other=0.0)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, LATENT], tl.float32)

    whole = tl.maximum(tl.minimum(limit, rows.lowest + 1) // BLOCK_N * BLOCK_N, first)
    ahead = row_pages(first, table, stride_page, first, limit, BLOCK_SIZE, BLOCK_N)
    for at in tl.range(first, whole, BLOCK_N):
        start = tl.multiple_of(at, BLOCK_N)
        pages = ahead
        ahead = row_pages(start + BLOCK_N, table, stride_page, first, limit, BLOCK_SIZE, BLOCK_N)
        acc, total, m = mla_tile(
            q_latent, q_rope, acc, total, m, start, pages, cache, rows.position, first, limit, scale,
            stride_block, stride_token, LATENT, ROPE, BLOCK_SIZE, BLOCK_N, FP8, False,
        )  # fmt: skip
    for at in tl.range(whole, limit, BLOCK_N):
        start = tl.multiple_of(at, BLOCK_N)
        pages = row_pages(start, table, stride_page, first, limit, BLOCK_SIZE, BLOCK_N)
        acc, total, m = mla_tile(
            q_latent, q_rope, acc, total, m, start, pages, cache, rows.position, first, limit, scale,
            stride_block, stride_token, LATENT, ROPE, BLOCK_SIZE, BLOCK_N, FP8, True,
        )  # fmt: skip

    acc = acc * share_of(total, kv_scale)[:, None]
    write_rows(out, acc, rows, stride_o_token, stride_o_head, LATENT, LATENT)
    write_lse(lse, m, total, rows, HEADS, SPLITS, RETURN_LSE)
