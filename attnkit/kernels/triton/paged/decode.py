# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Paged decode: few new tokens a sequence over a long cache, split along the keys (flash-decoding).

One program computes, for one sequence and one key/value head, all query rows (new token, head of the group) over one of SPLITS
equal runs of the keys it can see. The number of splits comes from host integers (see `configs.decode_splits`); where a split
begins comes from seq_lens on the device, so nothing is read back and a captured graph stays right as sequences grow.
With one split the result goes straight to `out`; with more, normalised partial results and their log2-sum-exp go to a float32
workspace and `merge_splits` joins them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnkit.kernels.triton.tiles import LN2, LOG2E, attend, visible_range


@triton.jit(
    do_not_specialize=["window_left", "window_right", "num_nodes", "longest", "num_tokens", "stride_table"],
    do_not_specialize_on_alignment=["table", "seq_lens", "query_start_loc"],
)
def paged_decode(
    out, lse, query, key, value, table, seq_lens, query_start_loc, alibi_slopes, sinks, tree_mask,
    num_tokens, scale, softcap, v_scale, window_left, window_right, num_nodes, longest,
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
    kv_head = tl.program_id(0)
    split = tl.program_id(1) // ROW_TILES
    first_row = tl.program_id(1) % ROW_TILES * BLOCK_M
    seq = tl.program_id(2)
    num_heads = tl.num_programs(0) * GROUP

    query_start = tl.load(query_start_loc + seq)
    query_len = tl.load(query_start_loc + seq + 1) - query_start
    if first_row >= query_len * GROUP or query_len > longest:
        return
    seq_len = tl.load(seq_lens + seq)
    context = seq_len - query_len
    table += seq.to(tl.int64) * stride_table

    row = first_row + tl.arange(0, BLOCK_M)
    real = row < query_len * GROUP
    node = row // GROUP
    position = context + node
    head = kv_head * GROUP + row % GROUP
    token = (query_start + node).to(tl.int64)

    lowest = context + first_row // GROUP
    highest = context + tl.minimum((first_row + BLOCK_M - 1) // GROUP, query_len - 1)
    first, limit = visible_range(lowest, highest, seq_len, window_left, window_right, HAS_LEFT, HAS_RIGHT)
    if SPLITS > 1:
        begin = first // BLOCK_N * BLOCK_N
        run = tl.cdiv(tl.cdiv(limit - begin, BLOCK_N), SPLITS) * BLOCK_N
        first = tl.maximum(first, begin + split * run)
        limit = tl.minimum(limit, begin + (split + 1) * run)
        lse += split.to(tl.int64) * num_tokens * num_heads
        out += split.to(tl.int64) * num_tokens * stride_o_token
        if first >= limit and (split > 0 or not SINKS):
            tl.store(lse + token * num_heads + head, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=real)
            return

    d = tl.arange(0, BLOCK_D)
    q = tl.load(
        query + token[:, None] * stride_q_token + head[:, None] * stride_q_head + d[None, :],
        mask=real[:, None] & (d[None, :] < HEAD_DIM),
        other=0.0,
    )
    slope = tl.load(alibi_slopes + head) if ALIBI else 0.0
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        # The sink counts once: in the first split.
        m = tl.where(split == 0, tl.load(sinks + head).to(tl.float32) * LOG2E, m)
        total = tl.where(split == 0, 1.0, total)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    acc, total, m = attend(
        q, acc, total, m,
        key + kv_head.to(tl.int64) * stride_k_head, value + kv_head.to(tl.int64) * stride_v_head, table, 0,
        position, lowest, highest, node, context, tree_mask, num_nodes, slope,
        scale, softcap, window_left, window_right, first, limit,
        stride_k_block, stride_k_token, stride_v_block, stride_v_token,
        HEAD_DIM, HEAD_DIM_V, BLOCK_D, BLOCK_DV, BLOCK_SIZE, BLOCK_N, True, SAME_STRIDES,
        HAS_LEFT, HAS_RIGHT, SOFTCAP, ALIBI, TREE, FP8,
    )  # fmt: skip

    acc = acc * (v_scale / tl.where(total == 0.0, 1.0, total))[:, None]
    dv = tl.arange(0, BLOCK_DV)
    tl.store(
        out + token[:, None] * stride_o_token + head[:, None] * stride_o_head + dv[None, :],
        acc.to(out.dtype.element_ty),
        mask=real[:, None] & (dv[None, :] < HEAD_DIM_V),
    )
    if SPLITS > 1:
        tl.store(lse + token * num_heads + head, m + tl.log2(total), mask=real)
    elif RETURN_LSE:
        tl.store(lse + token * num_heads + head, (m + tl.log2(total)) * LN2, mask=real)
