# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Paged (or packed, uncached) attention for prefill, chunked prefill and mixed batches.

One program computes BLOCK_M query rows of one key/value head (rows.py). The grid depends on host integers alone: num_tokens *
GROUP // BLOCK_M + num_seqs tiles, an upper bound without a rounding up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnkit.kernels.triton.rows import entry, find_rows, find_tile, load_queries, query_span, share_of, write_lse, write_rows
from attnkit.kernels.triton.tiles import LOG2E, Form, Keys, Mask, Scores, attend, visible_range


@triton.jit(
    do_not_specialize=["num_seqs", "window_left", "window_right", "num_nodes", "shortest", "stride_table"],
    do_not_specialize_on_alignment=["table", "seq_lens", "query_start_loc", "key_start_loc"],
)
def paged_prefill(
    out, lse, query, key, value, table, seq_lens, query_start_loc, key_start_loc, alibi_slopes, sinks, tree_mask,
    num_seqs, scale, softcap, v_scale, window_left, window_right, num_nodes, shortest,
    stride_lens, stride_starts, stride_key_starts, stride_page, stride_slope, stride_sink, stride_node, stride_edge,
    stride_q_token, stride_q_head, stride_k_block, stride_k_token, stride_k_head,
    stride_v_block, stride_v_token, stride_v_head, stride_o_token, stride_o_head, stride_table,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PAGED: tl.constexpr,
    SAME_STRIDES: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, SINKS: tl.constexpr, TREE: tl.constexpr, FP8: tl.constexpr, RETURN_LSE: tl.constexpr,
):  # fmt: skip
    """out[t, h] = softmax(scale * q . K^T + mask) V over the sequence of token t; lse[t, h] its natural log denominator.

    Sequences with fewer than `shortest` new tokens are left alone: the decode kernel computes them.
    """
    seq, query_start, query_len, first_row = find_tile(query_start_loc, stride_starts, num_seqs, GROUP, BLOCK_M)
    kv_head = tl.program_id(1)
    if first_row >= query_len * GROUP or query_len < shortest:
        return

    if PAGED:
        seq_len = entry(seq_lens, stride_lens, seq)
        key_start = 0
        table += seq.to(tl.int64) * stride_table
    else:
        key_start, seq_len = query_span(key_start_loc, stride_key_starts, seq)

    rows = find_rows(first_row, query_start, query_len, seq_len - query_len, kv_head, GROUP, BLOCK_M)
    q = load_queries(query, rows, stride_q_token, stride_q_head, HEAD_DIM, BLOCK_D)
    slope = entry(alibi_slopes, stride_slope, rows.head).to(tl.float32) if ALIBI else 0.0
    if SINKS:
        m = entry(sinks, stride_sink, rows.head).to(tl.float32) * LOG2E
        total = tl.full([BLOCK_M], 1.0, tl.float32)
    else:
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)

    first, limit = visible_range(rows, seq_len, window_left, window_right, HAS_LEFT, HAS_RIGHT)
    acc, total, m = attend(
        q, acc, total, m, rows,
        Keys(
            key + kv_head.to(tl.int64) * stride_k_head, value + kv_head.to(tl.int64) * stride_v_head, table, key_start,
            stride_page, stride_k_block, stride_k_token, stride_v_block, stride_v_token,
        ),
        Scores(scale, softcap, slope),
        Mask(window_left, window_right, tree_mask, stride_node, stride_edge, num_nodes, first, limit),
        Form(
            HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_SIZE, BLOCK_N, PAGED, SAME_STRIDES,
            HAS_LEFT, HAS_RIGHT, SOFTCAP, ALIBI, TREE, FP8,
        ),
    )  # fmt: skip

    acc = acc * share_of(total, v_scale)[:, None]
    write_rows(out, acc, rows, stride_o_token, stride_o_head, HEAD_DIM_V, BLOCK_DV)
    write_lse(lse, m, total, rows, tl.num_programs(1) * GROUP, 1, RETURN_LSE)
