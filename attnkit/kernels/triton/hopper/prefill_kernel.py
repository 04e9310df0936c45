# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Prefill for sm_90, paged or packed: a warp that fetches, warpgroups that multiply, in Gluon.

What plain Triton leaves on the table there: its loads are issued by the warps that multiply, and softmax and tensor cores take
turns. Here (the plan of FlashAttention-3, Shah et al. 2024, arXiv:2407.08608)

- one warp fetches key and value tiles with the tensor memory accelerator, page by page, into rings of shared memory;
- two warpgroups take 64 query rows each; within one, the scores of tile j + 1 are multiplied while those of tile j go through
  exp2 and into the values;
- the grid is persistent: programs take work from a counter, the longest rows first, and while one tile is being written the
  warp that fetches is at the next.

Measured and left out: turns between the warpgroups (no gain), keys and values fetched by a warp each (slower with small
blocks), three warpgroups for heads of 64 (slower).

A row is a (query token, query head of the group) pair, as in rows.py, and the tiles of a batch are numbered as there.

    s_ij = softmax_scale * q_i . k_j ;  o_i = sum_j exp(s_ij - m_i) v_j / l_i

How work is shared and fetched: fetch.py.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma, warpgroup_mma_wait

from attnkit.kernels.triton.hopper.fetch import extent, fetch, hear, shaped_as

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)
ROWS = gl.constexpr(64)
"""Query rows of one warpgroup: the M of a wgmma."""


@gluon.jit
def _scores(q, keys, key_full, count, BLOCK_N: gl.constexpr, STAGES: gl.constexpr):
    """Start q @ k^T of the tile number `count`; the accumulator to wait for."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    stage = count % STAGES
    mbarrier.wait(key_full.index(stage), (count // STAGES) & 1)
    zero = gl.zeros([ROWS, BLOCK_N], gl.float32, layout)
    return warpgroup_mma(q, keys.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def _softmax(s, m, total, start, position, seq_len, scale, window_left, window_right,
             BLOCK_N: gl.constexpr, MASKED: gl.constexpr, HAS_LEFT: gl.constexpr, HAS_RIGHT: gl.constexpr):  # fmt: skip
    """p of a tile, the new maximum and denominator, and the factor for what was summed so far."""
    layout: gl.constexpr = s.type.layout
    if MASKED:
        n = start + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))
        visible = n[None, :] < seq_len
        if HAS_LEFT:
            visible &= n[None, :] >= position[:, None] - window_left
        if HAS_RIGHT:
            visible &= n[None, :] <= position[:, None] + window_right
        s = gl.where(visible, s, float("-inf"))
    top = gl.maximum(m, gl.max(s, 1) * scale)
    # A row that has seen no key yet keeps -inf as its maximum; subtracting it from -inf would be NaN.
    pivot = gl.where(top == float("-inf"), 0.0, top) if MASKED else top
    p = gl.exp2(s * scale - pivot[:, None])
    shrink = gl.exp2(m - pivot)
    total = total * shrink + gl.sum(p, 1)
    return p, top, total, shrink


@gluon.jit
def _step(
    q, keys, values, key_full, key_empty, value_full, value_empty, count, at, acc, p, m, total, position, seq_len, scale,
    window_left, window_right, D: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    MASKED: gl.constexpr, HAS_LEFT: gl.constexpr, HAS_RIGHT: gl.constexpr,
):  # fmt: skip
    """Scores of key tile `at` (number `count`) and their softmax, while the values of the tile before are summed."""
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    row: gl.constexpr = gl.SliceLayout(1, out_layout)
    before = (count - 1) % STAGES
    s = _scores(q, keys, key_full, count, BLOCK_N, STAGES)
    acc = warpgroup_mma(p, values.index(before), acc, is_async=True)
    s = warpgroup_mma_wait(1, deps=(s,))
    mbarrier.arrive(key_empty.index(count % STAGES), count=1)
    fresh, m, total, shrink = _softmax(
        s, m, total, at * BLOCK_N, position, seq_len, scale, window_left, window_right, BLOCK_N, MASKED, HAS_LEFT, HAS_RIGHT
    )
    # Waiting here for the values that the next step takes keeps the assembler from moving the softmax behind the product's end.
    mbarrier.wait(value_full.index(count % STAGES), (count // STAGES) & 1)
    # Packed only after the product has ended, as it would want registers that the product still reads.
    acc, p, fresh = warpgroup_mma_wait(0, deps=(acc, p, fresh))
    mbarrier.arrive(value_empty.index(before), count=1)
    acc = acc * gl.convert_layout(shrink, row)[:, None]
    p = gl.convert_layout(fresh.to(p.dtype), gl.DotOperandLayout(0, out_layout, 2))
    return acc, p, m, total


@gluon.jit
def _load_queries(
    query, kv_head, query_start, query_len, first_row, runs, stride_q_token, stride_q_head,
    WG: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, IO: gl.constexpr,
):  # fmt: skip
    """The 64 query rows of this warpgroup, in registers."""
    row = first_row + WG * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, IO))
    token = (query_start + row // GROUP).to(gl.int64)
    head = kv_head * GROUP + row % GROUP
    d = gl.arange(0, D, gl.SliceLayout(0, IO))
    return gl.load(
        query + (token * stride_q_token + head.to(gl.int64) * stride_q_head)[:, None] + d[None, :],
        mask=((row < query_len * GROUP) & runs)[:, None],
        other=0.0,
    )


@gluon.jit
def _multiply(
    WG: gl.constexpr, out, lse, query, queries, keys, values, key_full, key_empty, value_full, value_empty, slots, told, heard,
    seq_lens, query_start_loc, key_start_loc, tiles, items, num_seqs, scale, v_scale, window_left, window_right,
    shortest, heads, stride_lens, stride_starts, stride_key_starts,
    stride_q_token, stride_q_head, stride_o_token, stride_o_head,
    GROUP: gl.constexpr, D: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    PREFETCH: gl.constexpr, PAGED: gl.constexpr, HAS_LEFT: gl.constexpr, HAS_RIGHT: gl.constexpr, RETURN_LSE: gl.constexpr,
):  # fmt: skip
    """One of the warpgroups that multiply: rows WG * 64 to WG * 64 + 63 of each tile."""
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    score_row: gl.constexpr = gl.SliceLayout(1, score_layout)
    ACROSS: gl.constexpr = D // 8
    DOWN: gl.constexpr = 256 // D
    io: gl.constexpr = gl.BlockedLayout([1, 8], [DOWN, ACROSS], [4, 1], [1, 0])
    DTYPE: gl.constexpr = query.dtype.element_ty
    q_tile = queries.index(WG)
    count = 0
    turn = 0
    work = hear(slots, told, heard, turn)
    kv_head, _, query_start, query_len, first_row, context, seq_len, _first, limit, begin, end, _, real = extent(
        gl.minimum(work, items - 1), tiles, items, seq_lens, query_start_loc, key_start_loc, stride_lens, stride_starts,
        stride_key_starts, num_seqs, window_left, window_right, shortest, GROUP, BLOCK_M, BLOCK_N, PAGED, HAS_LEFT, HAS_RIGHT,
    )  # fmt: skip
    q = _load_queries(
        query, kv_head, query_start, query_len, first_row, end > begin, stride_q_token, stride_q_head, WG, GROUP, D, io
    )
    while work < items:
        position = context + (first_row + WG * ROWS + gl.arange(0, ROWS, score_row)) // GROUP
        m = gl.full([ROWS], float("-inf"), gl.float32, score_row)
        total = gl.zeros([ROWS], gl.float32, score_row)
        acc = gl.zeros([ROWS, D], gl.float32, out_layout)
        runs = end > begin
        if runs:
            q_tile.store(q)
            fence_async_shared()

            # Key tiles [begin, end), last first. Those every row sees whole: [full_lo, full_hi), never the first one taken.
            full_lo = begin
            full_hi = limit // BLOCK_N
            if HAS_LEFT:
                highest = context + gl.minimum((first_row + BLOCK_M - 1) // GROUP, query_len - 1)
                full_lo = gl.maximum((gl.maximum(highest - window_left, 0) + BLOCK_N - 1) // BLOCK_N, begin)
            if HAS_RIGHT:
                full_hi = gl.minimum(full_hi, (context + first_row // GROUP + window_right + 1) // BLOCK_N)
            full_hi = gl.minimum(gl.maximum(full_hi, begin), end - 1)
            full_lo = gl.minimum(full_lo, full_hi)

            s = _scores(q_tile, keys, key_full, count, BLOCK_N, STAGES)
            s = warpgroup_mma_wait(0, deps=(s,))
            mbarrier.arrive(key_empty.index(count % STAGES), count=1)
            fresh, m, total, _nothing_to_shrink = _softmax(
                s, m, total, (end - 1) * BLOCK_N, position, seq_len, scale, window_left, window_right,
                BLOCK_N, True, HAS_LEFT, HAS_RIGHT,
            )  # fmt: skip
            p = gl.convert_layout(fresh.to(DTYPE), gl.DotOperandLayout(0, out_layout, 2))
            mbarrier.wait(value_full.index(count % STAGES), (count // STAGES) & 1)
            count += 1
            for back in range(0, end - 1 - full_hi):
                acc, p, m, total = _step(
                    q_tile, keys, values, key_full, key_empty, value_full, value_empty, count, end - 2 - back, acc, p, m, total,
                    position, seq_len, scale, window_left, window_right, D, BLOCK_N, STAGES, True, HAS_LEFT, HAS_RIGHT,
                )  # fmt: skip
                count += 1
            for back in range(0, full_hi - full_lo):
                acc, p, m, total = _step(
                    q_tile, keys, values, key_full, key_empty, value_full, value_empty, count, full_hi - 1 - back, acc, p, m,
                    total, position, seq_len, scale, window_left, window_right, D, BLOCK_N, STAGES, False, HAS_LEFT, HAS_RIGHT,
                )  # fmt: skip
                count += 1
            if HAS_LEFT:
                for back in range(0, full_lo - begin):
                    acc, p, m, total = _step(
                        q_tile, keys, values, key_full, key_empty, value_full, value_empty, count, full_lo - 1 - back, acc, p,
                        m, total, position, seq_len, scale, window_left, window_right, D, BLOCK_N, STAGES,
                        True, HAS_LEFT, HAS_RIGHT,
                    )  # fmt: skip
                    count += 1
            last = (count - 1) % STAGES
            acc = warpgroup_mma(p, values.index(last), acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=(acc,))
            mbarrier.arrive(value_empty.index(last), count=1)

        # PREFETCH: the next item's queries are on their way while this one's result is written.
        row_start = query_start
        row_len = query_len
        row_first = first_row
        row_head = kv_head
        written = real
        turn += 1
        work = hear(slots, told, heard, turn)
        kv_head, _, query_start, query_len, first_row, context, seq_len, _first, limit, begin, end, _, real = extent(
            gl.minimum(work, items - 1), tiles, items, seq_lens, query_start_loc, key_start_loc, stride_lens, stride_starts,
            stride_key_starts, num_seqs, window_left, window_right, shortest,
            GROUP, BLOCK_M, BLOCK_N, PAGED, HAS_LEFT, HAS_RIGHT,
        )  # fmt: skip
        if PREFETCH:
            q = _load_queries(
                query, kv_head, query_start, query_len, first_row, end > begin, stride_q_token, stride_q_head, WG, GROUP, D, io
            )
        if written:
            # A row that sees no key at all (a window, or more queries than keys) is zero, its log-sum-exp minus infinity.
            factor = v_scale / gl.where(total == 0.0, 1.0, total)
            acc = acc * gl.convert_layout(factor, gl.SliceLayout(1, out_layout))[:, None]
            row = row_first + WG * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, io))
            token = (row_start + row // GROUP).to(gl.int64)
            head = row_head * GROUP + row % GROUP
            d = gl.arange(0, D, gl.SliceLayout(0, io))
            gl.store(
                out + (token * stride_o_token + head.to(gl.int64) * stride_o_head)[:, None] + d[None, :],
                gl.convert_layout(acc.to(DTYPE), io),
                mask=(row < row_len * GROUP)[:, None],
            )
            if RETURN_LSE:
                at = row_first + WG * ROWS + gl.arange(0, ROWS, score_row)
                gl.store(
                    lse + (row_start + at // GROUP).to(gl.int64) * heads + row_head * GROUP + at % GROUP,
                    (m + gl.log2(total)) * LN2,
                    mask=at < row_len * GROUP,
                )
        if not PREFETCH:
            q = _load_queries(
                query, kv_head, query_start, query_len, first_row, end > begin, stride_q_token, stride_q_head, WG, GROUP, D, io
            )


@gluon.jit(
    do_not_specialize=["tiles", "items", "num_seqs", "window_left", "window_right", "shortest", "stride_table", "heads",
                       "key_block_rows", "key_head_rows", "key_head_columns",
                       "value_block_rows", "value_head_rows", "value_head_columns"],
    do_not_specialize_on_alignment=["taken", "table", "seq_lens", "query_start_loc", "key_start_loc"],
)  # fmt: skip
def hopper_prefill(
    out, lse, query, key_map, value_map, taken, table, seq_lens, query_start_loc, key_start_loc,
    tiles, items, num_seqs, scale, v_scale, window_left, window_right, shortest, heads,
    key_block_rows, key_head_rows, key_head_columns, value_block_rows, value_head_rows, value_head_columns,
    stride_lens, stride_starts, stride_key_starts, stride_q_token, stride_q_head, stride_o_token, stride_o_head, stride_table,
    stride_page,
    GROUP: gl.constexpr, D: gl.constexpr, BLOCK_SIZE: gl.constexpr, BLOCK_N: gl.constexpr, CHUNK: gl.constexpr,
    STAGES: gl.constexpr, GROUPS: gl.constexpr, PREFETCH: gl.constexpr, PAGED: gl.constexpr,
    HAS_LEFT: gl.constexpr, HAS_RIGHT: gl.constexpr, RETURN_LSE: gl.constexpr,
):  # fmt: skip
    """out[t, h] = softmax(scale * q . K^T + mask) V; `scale` includes log2 e, `taken` is zero.

    Sequences with fewer than `shortest` new tokens are left alone: the decode kernel computes them.
    """
    DTYPE: gl.constexpr = query.dtype.element_ty
    BLOCK_M: gl.constexpr = GROUPS * ROWS
    HALVES: gl.constexpr = D // 64
    CHUNKS: gl.constexpr = BLOCK_N // CHUNK
    flat: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    # Pages lie one after another within a column of 64: read as one tile [BLOCK_N, D], that is the tensor cores' layout.
    queries = gl.allocate_shared_memory(DTYPE, [GROUPS, ROWS, D], flat)
    keys = gl.allocate_shared_memory(DTYPE, [STAGES * HALVES * CHUNKS, CHUNK, 64], flat)
    values = gl.allocate_shared_memory(DTYPE, [STAGES * HALVES * CHUNKS, CHUNK, 64], flat)
    key_tiles = shaped_as(keys, [STAGES, BLOCK_N, D])
    value_tiles = shaped_as(values, [STAGES, BLOCK_N, D])
    value_pieces = shaped_as(values, [STAGES * HALVES * (BLOCK_N // 16), 16, 64])
    key_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    key_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    value_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    raw = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    slots = gl.allocate_shared_memory(gl.int32, [2, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    told = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    heard = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(key_full.index(i), count=1)
        mbarrier.init(key_empty.index(i), count=GROUPS)
        mbarrier.init(value_full.index(i), count=1)
        mbarrier.init(value_empty.index(i), count=GROUPS)
    mbarrier.init(raw.index(0), count=1)
    for i in gl.static_range(2):
        mbarrier.init(told.index(i), count=1)
        mbarrier.init(heard.index(i), count=GROUPS)
    fence_async_shared()
    # Compile-time constants stay so only in a tuple that is written in the call itself.
    gl.warp_specialize(
        [
            (_multiply, (
                gl.constexpr(0), out, lse, query, queries, key_tiles, value_tiles, key_full, key_empty, value_full, value_empty,
                slots, told, heard, seq_lens, query_start_loc, key_start_loc, tiles, items, num_seqs, scale, v_scale,
                window_left, window_right, shortest, heads, stride_lens, stride_starts, stride_key_starts,
                stride_q_token, stride_q_head, stride_o_token, stride_o_head,
                GROUP, D, BLOCK_M, BLOCK_N, STAGES, PREFETCH, PAGED, HAS_LEFT, HAS_RIGHT, RETURN_LSE,
            )),
            (_multiply, (
                gl.constexpr(1), out, lse, query, queries, key_tiles, value_tiles, key_full, key_empty, value_full, value_empty,
                slots, told, heard, seq_lens, query_start_loc, key_start_loc, tiles, items, num_seqs, scale, v_scale,
                window_left, window_right, shortest, heads, stride_lens, stride_starts, stride_key_starts,
                stride_q_token, stride_q_head, stride_o_token, stride_o_head,
                GROUP, D, BLOCK_M, BLOCK_N, STAGES, PREFETCH, PAGED, HAS_LEFT, HAS_RIGHT, RETURN_LSE,
            )),
            (fetch, (
                key_map, value_map, keys, values, value_pieces, key_full, key_empty, value_full, value_empty, raw,
                taken, slots, told, heard, table, seq_lens, query_start_loc, key_start_loc, tiles, items, num_seqs,
                window_left, window_right, shortest, stride_lens, stride_starts, stride_key_starts, stride_table, stride_page,
                key_block_rows, key_head_rows, key_head_columns,
                value_block_rows, value_head_rows, value_head_columns,
                GROUP, D, BLOCK_SIZE, BLOCK_M, BLOCK_N, CHUNK, STAGES, PAGED, HAS_LEFT, HAS_RIGHT,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
