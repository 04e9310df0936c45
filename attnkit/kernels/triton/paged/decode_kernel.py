# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Paged decode: few new tokens a sequence over a long cache, split along the keys (flash-decoding).

One program computes, for one sequence and one key/value head, all query rows (new token, head of the group) over one of SPLITS
equal runs of the keys it can see. The number of splits comes from host integers (`tile_sizes.decode_splits`); where a split
begins comes from seq_lens on the device, so nothing is read back and a captured graph stays right as sequences grow.
With one split the result goes straight to `out`; with more, normalised partial results and their log2-sum-exp go to a float32
workspace and `merge_splits` joins them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnkit.kernels.triton.rows import (
    entry,
    find_program,
    find_rows,
    load_queries,
    share_of,
    split_outputs,
    write_lse,
    write_nothing,
    write_rows,
)
from attnkit.kernels.triton.tiles import LOG2E, Form, Keys, Mask, Scores, attend, visible_range


@triton.jit(
    do_not_specialize=["window_left", "window_right", "num_nodes", "longest", "num_tokens", "stride_table"],
    do_not_specialize_on_alignment=["table", "seq_lens", "query_start_loc"],
)
def paged_decode(
    out, lse, query, key, value, table, seq_lens, query_start_loc, alibi_slopes, sinks, tree_mask,
    num_tokens, scale, softcap, v_scale, window_left, window_right, num_nodes, longest,
    stride_lens, stride_starts, stride_page, stride_slope, stride_sink, stride_node, stride_edge,
    stride_q_token, stride_q_head, stride_k_block, stride_k_token, stride_k_head,
    stride_v_block, stride_v_token, stride_v_head, stride_o_token, stride_o_head, stride_table,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, ROW_TILES: tl.constexpr,
    SAME_STRIDES: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, SINKS: tl.constexpr, TREE: tl.constexpr, FP8: tl.constexpr, RETURN_LSE: tl.constexpr,
):  # fmt: skip
    """One split of one sequence and key head.

    SPLITS == 1: `out` [num_tokens, heads, HEAD_DIM_V] and, with RETURN_LSE, `lse` [num_tokens, heads], natural log.
    SPLITS > 1: `out` [SPLITS, num_tokens, heads, HEAD_DIM_V] float32 and `lse` [SPLITS, num_tokens, heads] in log2.
    Sequences with more than `longest` new tokens are left alone: the prefill kernel computes them.
    """
    here = find_program(query_start_loc, stride_starts, GROUP, BLOCK_M, ROW_TILES)
    if here.first_row >= here.query_len * GROUP or here.query_len > longest:
        return
    seq_len = entry(seq_lens, stride_lens, here.seq)
    context = seq_len - here.query_len
    table += here.seq.to(tl.int64) * stride_table
    rows = find_rows(here.first_row, here.query_start, here.query_len, context, here.kv_head, GROUP, BLOCK_M)
    first, limit = visible_range(rows, seq_len, window_left, window_right, HAS_LEFT, HAS_RIGHT)
    if SPLITS > 1:
        begin = first // BLOCK_N * BLOCK_N
        run = tl.cdiv(tl.cdiv(limit - begin, BLOCK_N), SPLITS) * BLOCK_N
        first = tl.maximum(first, begin + here.split * run)
        limit = tl.minimum(limit, begin + (here.split + 1) * run)
        out, lse = split_outputs(out, lse, here.split, num_tokens, here.num_heads, stride_o_token)
        if first >= limit and (here.split > 0 or not SINKS):
            write_nothing(lse, rows, here.num_heads, BLOCK_M)
            return

    q = load_queries(query, rows, stride_q_token, stride_q_head, HEAD_DIM, BLOCK_D)
    slope = entry(alibi_slopes, stride_slope, rows.head).to(tl.float32) if ALIBI else 0.0
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        # The sink counts once: in the first split.
        m = tl.where(here.split == 0, entry(sinks, stride_sink, rows.head).to(tl.float32) * LOG2E, m)
        total = tl.where(here.split == 0, 1.0, total)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    acc, total, m = attend(
        q, acc, total, m, rows,
        Keys(
            key + here.kv_head.to(tl.int64) * stride_k_head, value + here.kv_head.to(tl.int64) * stride_v_head, table, 0,
            stride_page, stride_k_block, stride_k_token, stride_v_block, stride_v_token,
        ),
        Scores(scale, softcap, slope),
        Mask(window_left, window_right, tree_mask, stride_node, stride_edge, num_nodes, first, limit),
        Form(
            HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_SIZE, BLOCK_N, True, SAME_STRIDES,
            HAS_LEFT, HAS_RIGHT, SOFTCAP, ALIBI, TREE, FP8,
        ),
    )  # fmt: skip

    acc = acc * share_of(total, v_scale)[:, None]
    write_rows(out, acc, rows, stride_o_token, stride_o_head, HEAD_DIM_V, BLOCK_DV)
    write_lse(lse, m, total, rows, here.num_heads, SPLITS, RETURN_LSE)
