# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Paged (or packed, uncached) attention for prefill, chunked prefill and mixed batches.

One program computes BLOCK_M query rows of one key/value head. A row is a (query token, query head of the group) pair, tokens
outermost, so that all heads that share keys share the tile: row r of a sequence is token r // GROUP, head r % GROUP.

The grid depends on host integers alone, cdiv-free upper bound num_tokens * GROUP // BLOCK_M + num_seqs tiles; sequence b owns
the tiles from query_start_loc[b] * GROUP // BLOCK_M + b on, found by binary search. Tiles run backwards, so that the long rows
of a causal batch start first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnkit.kernels.triton.tiles import LN2, LOG2E, attend, visible_range


@triton.jit
def find_sequence(tile, query_start_loc, num_seqs, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """The last sequence whose first tile is <= `tile`."""
    low = 0
    high = num_seqs
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_start_loc + middle) * GROUP // BLOCK_M + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit(
    do_not_specialize=["num_seqs", "window_left", "window_right", "num_nodes", "shortest", "stride_table"],
    do_not_specialize_on_alignment=["table", "seq_lens", "query_start_loc", "key_start_loc"],
)
def paged_prefill(
    out, lse, query, key, value, table, seq_lens, query_start_loc, key_start_loc, alibi_slopes, sinks, tree_mask,
    num_seqs, scale, softcap, v_scale, window_left, window_right, num_nodes, shortest,
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
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    seq = find_sequence(tile, query_start_loc, num_seqs, GROUP, BLOCK_M)
    query_start = tl.load(query_start_loc + seq)
    query_len = tl.load(query_start_loc + seq + 1) - query_start
    first_row = (tile - (query_start * GROUP // BLOCK_M + seq)) * BLOCK_M
    if first_row >= query_len * GROUP or query_len < shortest:
        return

    if PAGED:
        seq_len = tl.load(seq_lens + seq)
        key_start = 0
        table += seq.to(tl.int64) * stride_table
    else:
        key_start = tl.load(key_start_loc + seq)
        seq_len = tl.load(key_start_loc + seq + 1) - key_start
    context = seq_len - query_len

    row = first_row + tl.arange(0, BLOCK_M)
    real = row < query_len * GROUP
    node = row // GROUP
    position = context + node
    head = kv_head * GROUP + row % GROUP
    token = (query_start + node).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    q = tl.load(
        query + token[:, None] * stride_q_token + head[:, None] * stride_q_head + d[None, :],
        mask=real[:, None] & (d[None, :] < HEAD_DIM),
        other=0.0,
    )
    slope = tl.load(alibi_slopes + head) if ALIBI else 0.0
    if SINKS:
        m = tl.load(sinks + head).to(tl.float32) * LOG2E
        total = tl.full([BLOCK_M], 1.0, tl.float32)
    else:
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)

    lowest = context + first_row // GROUP
    highest = context + tl.minimum((first_row + BLOCK_M - 1) // GROUP, query_len - 1)
    first, limit = visible_range(lowest, highest, seq_len, window_left, window_right, HAS_LEFT, HAS_RIGHT)
    acc, total, m = attend(
        q, acc, total, m,
        key + kv_head.to(tl.int64) * stride_k_head, value + kv_head.to(tl.int64) * stride_v_head, table, key_start,
        position, lowest, highest, node, context, tree_mask, num_nodes, slope,
        scale, softcap, window_left, window_right, first, limit,
        stride_k_block, stride_k_token, stride_v_block, stride_v_token,
        HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_SIZE, BLOCK_N, PAGED, SAME_STRIDES,
        HAS_LEFT, HAS_RIGHT, SOFTCAP, ALIBI, TREE, FP8,
    )  # fmt: skip

    # A row that sees no key at all (possible with a window) is zero, its log-sum-exp minus infinity.
    acc = acc * (v_scale / tl.where(total == 0.0, 1.0, total))[:, None]
    dv = tl.arange(0, BLOCK_DV)
    tl.store(
        out + token[:, None] * stride_o_token + head[:, None] * stride_o_head + dv[None, :],
        acc.to(out.dtype.element_ty),
        mask=real[:, None] & (dv[None, :] < HEAD_DIM_V),
    )
    if RETURN_LSE:
        tl.store(lse + token * (tl.num_programs(1) * GROUP) + head, (m + tl.log2(total)) * LN2, mask=real)
