# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""What the attention kernels begin and end with: finding a program's query rows, cutting keys into splits, writing results.

A row is a (query token, query head of the group) pair, tokens outermost, so that all heads that share keys share a tile: row r
of a sequence is token r // GROUP, head r % GROUP.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from attnkit.kernels.triton.tiles import LN2


class Rows(NamedTuple):
    """A program's rows: [BLOCK_M] each, and what they have in common.

    Args:
        real: false past the end of the sequence.
        node: new token of the sequence.
        position: of that token in the sequence.
        head: query head.
        token: row of query and out, int64.
        lowest, highest: smallest and largest position of a real row.
        context: tokens of the sequence before its new ones.
    """

    real: Any
    node: Any
    position: Any
    head: Any
    token: Any
    lowest: Any
    highest: Any
    context: Any


@triton.jit
def find_sequence(tile, query_start_loc, stride_starts, num_seqs, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """The last sequence whose first tile is <= `tile`; the first one where there is none."""
    low = 0
    high = num_seqs
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_start_loc + middle.to(tl.int64) * stride_starts) * GROUP // BLOCK_M + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return tl.maximum(low - 1, 0)


@triton.jit
def query_span(query_start_loc, stride_starts, seq):
    """Where the new tokens of a sequence begin, and how many there are."""
    at = query_start_loc + seq.to(tl.int64) * stride_starts
    start = tl.load(at)
    return start, tl.load(at + stride_starts) - start


@triton.jit
def entry(tensor, stride, index):
    """tensor[index] of a tensor of any stride, in 64 bits: a view's last entry may lie far away."""
    return tl.load(tensor + index.to(tl.int64) * stride)


class Program(NamedTuple):
    """What a decode's program computes: rows from `first_row` on of one sequence and key head, over one split of the keys."""

    kv_head: Any
    split: Any
    seq: Any
    first_row: Any
    num_heads: Any
    query_start: Any
    query_len: Any


@triton.jit
def find_program(query_start_loc, stride_starts, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, ROW_TILES: tl.constexpr):
    """The program of a decode, whose grid is (key heads, splits * ROW_TILES, sequences)."""
    kv_head = tl.program_id(0)
    split = tl.program_id(1) // ROW_TILES
    first_row = tl.program_id(1) % ROW_TILES * BLOCK_M
    seq = tl.program_id(2)
    num_heads = tl.num_programs(0) * GROUP
    query_start, query_len = query_span(query_start_loc, stride_starts, seq)
    return Program(kv_head, split, seq, first_row, num_heads, query_start, query_len)


@triton.jit
def find_tile(query_start_loc, stride_starts, num_seqs, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """(seq, query_start, query_len, first_row) of the program, where tiles of all sequences are numbered in one row.

    Sequence b owns the tiles from query_start_loc[b] * GROUP // BLOCK_M + b on; some own more than they need. Tiles run
    backwards, so that the long rows of a causal batch start first.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    seq = find_sequence(tile, query_start_loc, stride_starts, num_seqs, GROUP, BLOCK_M)
    query_start, query_len = query_span(query_start_loc, stride_starts, seq)
    first_row = (tile - (query_start * GROUP // BLOCK_M + seq)) * BLOCK_M
    return seq, query_start, query_len, tl.where(first_row < 0, query_len * GROUP, first_row)


@triton.jit
def find_rows(first_row, query_start, query_len, context, kv_head, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """The rows from `first_row` on of a sequence and key head."""
    row = first_row + tl.arange(0, BLOCK_M)
    real = row < query_len * GROUP
    node = row // GROUP
    position = context + node
    head = kv_head * GROUP + row % GROUP
    token = (query_start + node).to(tl.int64)
    lowest = context + first_row // GROUP
    highest = context + tl.minimum((first_row + BLOCK_M - 1) // GROUP, query_len - 1)
    return Rows(real, node, position, head, token, lowest, highest, context)


@triton.jit
def load_queries(query, rows, stride_q_token, stride_q_head, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK_M, BLOCK_D]; rows that are not real and columns past HEAD_DIM are zero."""
    d = tl.arange(0, BLOCK_D)
    return tl.load(
        query + rows.token[:, None] * stride_q_token + rows.head.to(tl.int64)[:, None] * stride_q_head + d[None, :],
        mask=rows.real[:, None] & (d[None, :] < HEAD_DIM),
        other=0.0,
    )


@triton.jit
def cut_keys(limit, split, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr):
    """The keys of [0, limit) that belong to `split`: equal runs of tiles; the last splits may be left with none."""
    limit = tl.maximum(limit, 0)
    run = tl.cdiv(tl.cdiv(limit, BLOCK_N), SPLITS) * BLOCK_N
    first = split * run
    return first, tl.minimum(limit, first + run)


@triton.jit
def split_outputs(out, lse, split, num_tokens, num_heads, stride_o_token):
    """Where a split writes its part."""
    lse += split.to(tl.int64) * num_tokens * num_heads
    out += split.to(tl.int64) * num_tokens * stride_o_token
    return out, lse


@triton.jit
def write_nothing(lse, rows, num_heads, BLOCK_M: tl.constexpr):
    """Of a split without keys, minus infinity: `merge_splits` does not read its output then."""
    nothing = tl.full([BLOCK_M], float("-inf"), tl.float32)
    tl.store(lse + rows.token * num_heads + rows.head, nothing, mask=rows.real)


@triton.jit
def share_of(total, v_scale):
    """What a numerator is multiplied by. A row that sees no key (possible with a window) is zero."""
    return v_scale / tl.where(total == 0.0, 1.0, total)


@triton.jit
def write_rows(out, acc, rows, stride_o_token, stride_o_head, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """acc [BLOCK_M, PADDED] to `out`, whose rows have WIDTH columns."""
    d = tl.arange(0, PADDED)
    tl.store(
        out + rows.token[:, None] * stride_o_token + rows.head.to(tl.int64)[:, None] * stride_o_head + d[None, :],
        acc.to(out.dtype.element_ty),
        mask=rows.real[:, None] & (d[None, :] < WIDTH),
    )


@triton.jit
def write_lse(lse, m, total, rows, num_heads, SPLITS: tl.constexpr, RETURN_LSE: tl.constexpr):
    """The rows' log-sum-exp: of a split in log2, for `merge_splits`; else natural, where asked for."""
    if SPLITS > 1:
        tl.store(lse + rows.token * num_heads + rows.head, m + tl.log2(total), mask=rows.real)
    elif RETURN_LSE:
        tl.store(lse + rows.token * num_heads + rows.head, (m + tl.log2(total)) * LN2, mask=rows.real)
