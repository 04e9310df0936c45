# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: SIM108 (compile-time branches)
"""Paged decode in which every warp keeps a softmax of its own: `paged_decode` where a decode is bound by instructions.

A tile of keys is cut into WARPS runs of neighbouring keys. The runs are the batch of three-dimensional products, which Triton
gives to one warp each: maximum, denominator and numerator of a run stay in one warp's registers, no step of the loop waits for
another warp (but for the copies into shared memory), and the runs are joined once, when all keys are done. The splits and the
workspace are those of `paged_decode`.

A float8 cache is read as uint16, two neighbouring columns an element (PAIRED). Elements of one byte cannot be transposed on the
way from shared memory to the matrix unit, and `paged_decode` loads its values byte by byte; two bytes can. An element becomes
two float16, exactly, and the products are taken over even and odd columns. Keys, values, queries and probabilities are float16
then, whatever the query's dtype: a query row is multiplied by the power of two that brings its largest element to [2^14, 2^15),
and the probabilities are those times 2^15, so neither overflows, and what is rounded more coarsely than in 11 bits is smaller
than 2^-28 of the row's largest.
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
from attnkit.kernels.triton.tiles import (
    FP8_E4M3_PAIRS,
    FP8_E5M2_PAIRS,
    FP8_NONE,
    INTERPRET,
    LOG2E,
    Form,
    Keys,
    Mask,
    Scores,
    dequantise,
    visible_keys,
    visible_range,
    whole_tiles,
)

HEADROOM = tl.constexpr(15.0)
"""Log2 of the largest float16 probability."""


@triton.jit
def halves_of_e4m3(x):
    """Low and high byte of uint16 as float16, by the conversion of sm_89 and later: 2 instructions for 2 values."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 low, high;
        .reg .b16 low_pair, high_pair, unused;
        prmt.b32 low, $2, 0, 0x4420;
        prmt.b32 high, $2, 0, 0x4431;
        mov.b32 {low_pair, unused}, low;
        mov.b32 {high_pair, unused}, high;
        cvt.rn.f16x2.e4m3x2 $0, low_pair;
        cvt.rn.f16x2.e4m3x2 $1, high_pair;
        }""",
        "=r,=r,r",
        [x],
        dtype=(tl.float16, tl.float16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def halves_of_e5m2(x):
    """The same for e5m2, which is the upper byte of a float16."""
    return tl.inline_asm_elementwise(
        """prmt.b32 $0, $2, 0, 0x2404;
        prmt.b32 $1, $2, 0, 0x3414;""",
        "=r,=r,r",
        [x],
        dtype=(tl.float16, tl.float16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def unpair(x, FP8: tl.constexpr):
    """uint16, two float8 each -> (even columns, odd columns), float16."""
    if FP8 == FP8_E4M3_PAIRS:
        even, odd = halves_of_e4m3(x)
    elif FP8 == FP8_E5M2_PAIRS:
        even, odd = halves_of_e5m2(x)
    else:
        even = dequantise((x & 0xFF).to(tl.uint8), tl.float16, FP8)
        odd = dequantise((x >> 8).to(tl.uint8), tl.float16, FP8)
    return even, odd


@triton.jit
def as_half(q):
    """q [M, D] -> float16 q * 2^a [M, D] and 2^-a [M] float32, where 2^a brings the largest of a row to [2^14, 2^15)."""
    q = q.to(tl.float32)
    biased = (tl.max(tl.abs(q), 1).to(tl.int32, bitcast=True) >> 23) & 0xFF
    power = tl.minimum(14 + 127 - biased, 126)
    up = ((127 + power) << 23).to(tl.float32, bitcast=True)
    down = ((127 - power) << 23).to(tl.float32, bitcast=True)
    return (q * up[:, None]).to(tl.float16), down


@triton.jit
def dots(a, b, acc):
    """a [W, M, K] @ b [W, K, N] + acc, float32."""
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def run_pages(start, table, stride_page, first, limit, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, WARPS: tl.constexpr):
    """Cache block of each key [W, N] of the tile at `start`, or of each run [W, 1] where a run never leaves its block.

    Outside [first, limit) the table is not read.
    """
    RUN: tl.constexpr = BLOCK_N // WARPS
    n = start + tl.arange(0, WARPS)[:, None] * RUN
    if BLOCK_SIZE % RUN == 0:
        pages = tl.load(table + (n // BLOCK_SIZE).to(tl.int64) * stride_page, mask=(n + RUN > first) & (n < limit), other=0)
    else:
        n = n + tl.arange(0, RUN)[None, :]
        pages = tl.load(table + (n // BLOCK_SIZE).to(tl.int64) * stride_page, mask=(n >= first) & (n < limit), other=0)
    return pages


@triton.jit
def load_runs(
    base, pages, start, first, limit, stride_block, stride_token,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, WARPS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Rows [W, N, PADDED] of the cache; columns past WIDTH and (masked) keys outside [first, limit) are zero."""
    RUN: tl.constexpr = BLOCK_N // WARPS
    n = tl.arange(0, WARPS)[:, None] * RUN + tl.arange(0, RUN)[None, :]
    d = tl.arange(0, PADDED)[None, None, :]
    # What does not change from tile to tile is one tensor of pointers, and a step adds the block's offset.
    if BLOCK_N % BLOCK_SIZE == 0:
        slot = n % BLOCK_SIZE
    else:
        slot = (start + n) % BLOCK_SIZE
    pointers = base + (slot.to(tl.int64) * stride_token)[:, :, None] + d + (pages.to(tl.int64) * stride_block)[:, :, None]
    keep = ((start + n >= first) & (start + n < limit))[:, :, None]
    if MASKED:
        if WIDTH == PADDED:
            tile = tl.load(pointers, mask=keep, other=0)
        else:
            tile = tl.load(pointers, mask=keep & (d < WIDTH), other=0)
    elif WIDTH == PADDED:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=d < WIDTH, other=0)
    return tile


@triton.jit
def warp_tile(
    q_even, q_odd, even, odd, total, m, start, pages, rows, keys, scores, mask, form, WARPS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax over BLOCK_N keys, BLOCK_N // WARPS for each warp.

    q_even, q_odd [W, M, BLOCK_D], even, odd [W, M, BLOCK_DV], total, m [W, M]; scale [M]: score in log2 units of a product.
    Without PAIRED the odd ones are not used. Widths count elements of the cache as it is read.
    """
    PAIRED: tl.constexpr = form.FP8 != FP8_NONE
    RUN: tl.constexpr = form.BLOCK_N // WARPS
    M: tl.constexpr = q_even.shape[1]
    DTYPE: tl.constexpr = q_even.dtype
    factor = scores.scale
    first = mask.first
    limit = mask.limit
    n = (start + tl.arange(0, WARPS)[:, None] * RUN + tl.arange(0, RUN)[None, :])[:, None, :]

    k = load_runs(
        keys.key, pages, start, first, limit, keys.stride_k_block, keys.stride_k_token,
        form.HEAD_DIM, form.BLOCK_D, form.BLOCK_SIZE, form.BLOCK_N, WARPS, MASKED,
    )  # fmt: skip
    s = tl.zeros([WARPS, M, RUN], tl.float32)
    if PAIRED:
        k_even, k_odd = unpair(k, form.FP8)
        s = dots(q_even, tl.permute(k_even, (0, 2, 1)), s)
        s = dots(q_odd, tl.permute(k_odd, (0, 2, 1)), s)
    else:
        s = dots(q_even, tl.permute(k, (0, 2, 1)), s)

    BENT: tl.constexpr = form.SOFTCAP or form.ALIBI
    if form.SOFTCAP:
        s = scores.softcap * LOG2E * (1.0 - 2.0 / (1.0 + tl.exp2(s * (factor / scores.softcap * 2.0)[None, :, None])))
    elif form.ALIBI:
        s = s * factor[None, :, None]
    if form.ALIBI:
        s += scores.slope[None, :, None] * LOG2E * (n - rows.position[None, :, None]).to(tl.float32)
    if MASKED:
        position, node = rows.position[None, :, None], rows.node[None, :, None]
        s = tl.where(visible_keys(n, position, node, rows.context, mask, form), s, float("-inf"))

    highest = tl.max(s, 2)
    if not BENT:
        highest = highest * factor[None, :]
    if PAIRED:
        highest = highest - HEADROOM
    top = tl.maximum(m, highest)
    # A row that has seen no key yet keeps -inf as its maximum; subtracting it from -inf would be NaN.
    pivot = tl.where(top == float("-inf"), 0.0, top) if MASKED else top
    if BENT:
        p = tl.exp2(s - pivot[:, :, None])
    else:
        p = tl.exp2(s * factor[None, :, None] - pivot[:, :, None])
    shrink = tl.exp2(m - pivot)
    total = total * shrink + tl.sum(p, 2)
    p = p.to(DTYPE)

    v = load_runs(
        keys.value, pages, start, first, limit, keys.stride_v_block, keys.stride_v_token,
        form.HEAD_DIM_V, form.BLOCK_DV, form.BLOCK_SIZE, form.BLOCK_N, WARPS, MASKED,
    )  # fmt: skip
    if PAIRED:
        v_even, v_odd = unpair(v, form.FP8)
        even = dots(p, v_even, even * shrink[:, :, None])
        odd = dots(p, v_odd, odd * shrink[:, :, None])
    else:
        even = dots(p, v, even * shrink[:, :, None])
    return even, odd, total, top


@triton.jit
def warp_attend(q_even, q_odd, even, odd, m, total, rows, keys, scores, mask, form, WARPS: tl.constexpr):
    """`attend` in runs: the tiles that all rows see whole, then those that need a mask. Returns (even, odd, total, m)."""
    begin, full_lo, full_hi, end = whole_tiles(rows, mask, form)
    first = mask.first
    limit = mask.limit

    # Block numbers are fetched one tile ahead, so that no load of the loop waits for another load of the same step.
    ahead = run_pages(full_lo, keys.table, keys.stride_page, first, limit, form.BLOCK_SIZE, form.BLOCK_N, WARPS)
    for at in tl.range(full_lo, full_hi, form.BLOCK_N):
        start = tl.multiple_of(at, form.BLOCK_N)
        pages = ahead
        ahead = run_pages(
            start + form.BLOCK_N, keys.table, keys.stride_page, first, limit, form.BLOCK_SIZE, form.BLOCK_N, WARPS
        )
        even, odd, total, m = warp_tile(
            q_even, q_odd, even, odd, total, m, start, pages, rows, keys, scores, mask, form, WARPS, False
        )

    left = (full_lo - begin) // form.BLOCK_N
    right = tl.maximum(end - full_hi, 0) // form.BLOCK_N
    for i in tl.range(0, left + right, num_stages=1):
        at = tl.where(i < left, begin + i * form.BLOCK_N, full_hi + (i - left) * form.BLOCK_N)
        start = tl.multiple_of(at, form.BLOCK_N)
        pages = run_pages(start, keys.table, keys.stride_page, first, limit, form.BLOCK_SIZE, form.BLOCK_N, WARPS)
        even, odd, total, m = warp_tile(
            q_even, q_odd, even, odd, total, m, start, pages, rows, keys, scores, mask, form, WARPS, True
        )
    return even, odd, total, m


@triton.jit(
    do_not_specialize=["window_left", "window_right", "num_nodes", "longest", "num_tokens", "stride_table"],
    do_not_specialize_on_alignment=["table", "seq_lens", "query_start_loc"],
)
def warp_decode(
    out, lse, query, key, value, table, seq_lens, query_start_loc, alibi_slopes, sinks, tree_mask,
    num_tokens, scale, softcap, v_scale, window_left, window_right, num_nodes, longest,
    stride_lens, stride_starts, stride_page, stride_slope, stride_sink, stride_node, stride_edge,
    stride_q_token, stride_q_head, stride_k_block, stride_k_token, stride_k_head,
    stride_v_block, stride_v_token, stride_v_head, stride_o_token, stride_o_head, stride_table,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WARPS: tl.constexpr, SPLITS: tl.constexpr,
    ROW_TILES: tl.constexpr, SAME_STRIDES: tl.constexpr, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, SINKS: tl.constexpr, TREE: tl.constexpr, FP8: tl.constexpr, RETURN_LSE: tl.constexpr,
):  # fmt: skip
    """One split of one sequence and key head; arguments, grid and results of `paged_decode`.

    FP8: FP8_NONE, or key and value are uint16, two float8 each, and their strides count those.
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
        # Runs that differ by one tile at most: no split is left with what the others do not want.
        tiles = tl.cdiv(limit - begin, BLOCK_N)
        first = tl.maximum(first, begin + here.split * tiles // SPLITS * BLOCK_N)
        limit = tl.minimum(limit, begin + (here.split + 1) * tiles // SPLITS * BLOCK_N)
        out, lse = split_outputs(out, lse, here.split, num_tokens, here.num_heads, stride_o_token)
        if first >= limit and (here.split > 0 or not SINKS):
            write_nothing(lse, rows, here.num_heads, BLOCK_M)
            return

    PAIRED: tl.constexpr = FP8 != FP8_NONE
    COLUMNS: tl.constexpr = BLOCK_D // 2 if PAIRED else BLOCK_D
    COLUMNS_V: tl.constexpr = BLOCK_DV // 2 if PAIRED else BLOCK_DV
    WIDTH: tl.constexpr = HEAD_DIM // 2 if PAIRED else HEAD_DIM
    WIDTH_V: tl.constexpr = HEAD_DIM_V // 2 if PAIRED else HEAD_DIM_V
    q = load_queries(query, rows, stride_q_token, stride_q_head, HEAD_DIM, BLOCK_D)
    factor = tl.zeros([BLOCK_M], tl.float32) + scale * LOG2E
    odd = 0.0
    if PAIRED:
        q, down = as_half(q)
        factor = factor * down
        q_even, q_odd = tl.split(tl.reshape(q, [BLOCK_M, COLUMNS, 2]))
        q_even = tl.broadcast_to(q_even[None, :, :], [WARPS, BLOCK_M, COLUMNS])
        q_odd = tl.broadcast_to(q_odd[None, :, :], [WARPS, BLOCK_M, COLUMNS])
        odd = tl.zeros([WARPS, BLOCK_M, COLUMNS_V], tl.float32)
    else:
        q_even = tl.broadcast_to(q[None, :, :], [WARPS, BLOCK_M, COLUMNS])
        q_odd = q_even
    even = tl.zeros([WARPS, BLOCK_M, COLUMNS_V], tl.float32)
    slope = entry(alibi_slopes, stride_slope, rows.head).to(tl.float32) if ALIBI else 0.0
    m = tl.full([WARPS, BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([WARPS, BLOCK_M], tl.float32)
    if SINKS:
        # The sink counts once: in the first warp of the first split.
        once = (here.split == 0) & (tl.arange(0, WARPS)[:, None] == 0)
        m = tl.where(once, (entry(sinks, stride_sink, rows.head).to(tl.float32) * LOG2E)[None, :], m)
        total = tl.where(once, 1.0, total)

    if SAME_STRIDES:
        stride_v_block = stride_k_block
        stride_v_token = stride_k_token
    key += here.kv_head.to(tl.int64) * stride_k_head
    value += here.kv_head.to(tl.int64) * stride_v_head
    keys = Keys(key, value, table, 0, stride_page, stride_k_block, stride_k_token, stride_v_block, stride_v_token)
    scores = Scores(factor, softcap, slope)
    mask = Mask(window_left, window_right, tree_mask, stride_node, stride_edge, num_nodes, first, limit)
    even, odd, total, m = warp_attend(
        q_even, q_odd, even, odd, m, total, rows, keys, scores, mask,
        Form(
            WIDTH, WIDTH_V, COLUMNS, COLUMNS_V, BLOCK_SIZE, BLOCK_N, True, SAME_STRIDES,
            HAS_LEFT, HAS_RIGHT, SOFTCAP, ALIBI, TREE, FP8,
        ),
        WARPS,
    )  # fmt: skip

    # Join the warps.
    top = tl.max(m, 0)
    pivot = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp2(m - pivot[None, :])
    total = tl.sum(total * weight, 0)
    share = weight * share_of(total, v_scale)[None, :]
    acc = tl.sum(even * share[:, :, None], 0)
    if PAIRED:
        acc = tl.reshape(tl.join(acc, tl.sum(odd * share[:, :, None], 0)), [BLOCK_M, BLOCK_DV])
    write_rows(out, acc, rows, stride_o_token, stride_o_head, HEAD_DIM_V, BLOCK_DV)
    write_lse(lse, top, total, rows, here.num_heads, SPLITS, RETURN_LSE)
