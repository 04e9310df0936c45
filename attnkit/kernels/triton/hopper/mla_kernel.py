# mypy: disable-error-code="assignment"
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""MLA decode for sm_90: a warp that fetches, two warpgroups that multiply, in Gluon. Latent rows of 512 + 64, 16-bit caches.

    s_hj = softmax_scale * (q_latent_h . c_j + q_pe_h . k_pe_j) ;  out_h = sum_j softmax(s_h)_j c_j

64 rows (token, head) of 512 float32 sums fill the registers of two warpgroups, so each keeps the sums of half the columns, and
both need every probability. The plan is that of FlashMLA's dense decode (DeepSeek 2025, https://github.com/deepseek-ai/FlashMLA),
written anew. Tiles come in pairs, a and b; warpgroup 0 multiplies the scores of a, warpgroup 1 those of b:

    warpgroup 0, left half               warpgroup 1, right half
    s_a, maximum m_a  ->                 s_b, m_b = max(m_a, own)
    sums p_a v_a                         sums p_b v_b;  p_b, m_b ->
    p_a, brought to m_b ->
    sums p_b v_b                         sums p_a v_a

Each begins with its own tile, so that half of either tile is free for the next pair while the other halves are still at work;
shared memory holds no more than two tiles (72 KiB each) beside the queries (72 KiB). What is published lies where the tile's
rope part was, which nobody needs after the scores.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma, warpgroup_mma_wait

from attnkit.kernels.triton.hopper.fetch import shaped_as, start_copy

LN2 = gl.constexpr(0.6931471805599453)
ROWS = gl.constexpr(64)
"""Query rows of a program: the M of a wgmma."""
TILE = gl.constexpr(64)
"""Keys of a tile; as wide as the rope part, whose place the probabilities take."""
HALF = gl.constexpr(256)
"""Latent columns of one warpgroup."""
ROPE = gl.constexpr(64)
COLUMNS = gl.constexpr(HALF // 64)
"""Pieces of 64 columns in a half."""
PIECES = gl.constexpr(2 * COLUMNS + 1)
"""Pieces of a tile: left half, right half, rope."""


@gluon.jit
def _extent(seq_lens, query_start_loc, stride_lens, stride_starts, splits, HEADS: gl.constexpr):
    """What this program computes, as all its warps see it.

    Returns (query_start, query_len, first_row, context, first, limit, tiles): keys [first, limit) in `tiles` tiles; none where
    there is nothing to do.
    """
    first_row = gl.program_id(0) * ROWS
    seq = gl.program_id(2)
    at = query_start_loc + seq.to(gl.int64) * stride_starts
    query_start = gl.load(at)
    query_len = gl.load(at + stride_starts) - query_start
    context = gl.load(seq_lens + seq.to(gl.int64) * stride_lens) - query_len
    limit = gl.maximum(context + gl.minimum((first_row + ROWS - 1) // HEADS, query_len - 1) + 1, 0)
    run = ((limit + TILE - 1) // TILE + splits - 1) // splits * TILE
    first = gl.program_id(1) * run
    limit = gl.minimum(limit, first + run)
    tiles = gl.maximum(limit - first + TILE - 1, 0) // TILE
    tiles = gl.where(first_row < query_len * HEADS, tiles, 0)
    return query_start, query_len, first_row, context, first, limit, tiles


@gluon.jit
def _there(full, stage: gl.constexpr, SIDE: gl.constexpr, phase):
    """Wait for half of a tile."""
    for c in gl.static_range(COLUMNS):
        mbarrier.wait(full.index(stage * PIECES + SIDE * COLUMNS + c), phase)


@gluon.jit
def _scores(queries, keys, rope, full, stage: gl.constexpr, phase):
    """q . k of a tile: float32 [ROWS, TILE], multiplied piece by piece in the order in which `_fetch` brings them.

    Of b the right half comes first. Keys beyond the limit may give NaN; `_masked` leaves them out.
    """
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    s = gl.zeros([ROWS, TILE], gl.float32, layout)
    for c in gl.static_range(2 * COLUMNS):
        piece = (c + stage * COLUMNS) % (2 * COLUMNS)
        mbarrier.wait(full.index(stage * PIECES + piece), phase)
        key = keys.index(stage * 2 * COLUMNS + piece).permute((1, 0))
        s = warpgroup_mma(queries.index(piece), key, s, use_acc=c > 0, is_async=True)
    mbarrier.wait(full.index(stage * PIECES + 2 * COLUMNS), phase)
    s = warpgroup_mma(queries.index(2 * COLUMNS), rope.index(stage).permute((1, 0)), s, is_async=True)
    return warpgroup_mma_wait(0, deps=(s,))


@gluon.jit
def _clean(cleaned, start, limit):
    """Before the values of the last tile are multiplied: unused slots of a cache may hold NaN, and 0 * NaN is NaN."""
    if start + TILE > limit:
        mbarrier.wait(cleaned.index(0), 0)


@gluon.jit
def _pivot(m):
    """The maximum to subtract: a row that has seen no key yet has -inf, which taken from -inf would be NaN."""
    return gl.where(m == float("-inf"), 0.0, m)


@gluon.jit
def _masked(s, start, visible, whole):
    """Scores of the keys that a row sees; of a tile that every row sees whole, as they are."""
    if start + TILE > whole:
        n = start + gl.arange(0, TILE, gl.SliceLayout(0, s.type.layout))
        s = gl.where(n[None, :] < visible[:, None], s, float("-inf"))
    return s


@gluon.jit
def _shrunk(acc, shrink):
    return acc * gl.convert_layout(shrink, gl.SliceLayout(1, acc.type.layout))[:, None]


@gluon.jit
def _write(
    WG: gl.constexpr, out, lse, acc, m, total, sums, summed, query_start, query_len, first_row, kv_scale, num_tokens,
    stride_o_token, stride_o_head, HEADS: gl.constexpr, SPLIT: gl.constexpr, RETURN_LSE: gl.constexpr,
):  # fmt: skip
    """This warpgroup's half of the columns; `total` is of its own tiles, both need the other's too."""
    score_row: gl.constexpr = m.type.layout
    layout: gl.constexpr = acc.type.layout
    sums.index(WG).store(total)
    mbarrier.arrive(summed.index(WG), count=1)
    mbarrier.wait(summed.index(1 - WG), 0)
    total += sums.index(1 - WG).load(score_row)
    if SPLIT:
        out += gl.program_id(1).to(gl.int64) * num_tokens * stride_o_token
        lse += gl.program_id(1).to(gl.int64) * num_tokens * HEADS
    acc = _shrunk(acc, kv_scale / gl.where(total == 0.0, 1.0, total))
    row = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    token = (query_start + row // HEADS).to(gl.int64)
    column = WG * HALF + gl.arange(0, HALF, gl.SliceLayout(0, layout))
    gl.store(
        out + (token * stride_o_token + (row % HEADS).to(gl.int64) * stride_o_head)[:, None] + column[None, :],
        acc.to(out.dtype.element_ty),
        mask=(row < query_len * HEADS)[:, None],
    )
    if (SPLIT or RETURN_LSE) and WG == 0:
        at = first_row + gl.arange(0, ROWS, score_row)
        value = m + gl.log2(total)
        if not SPLIT:
            value = value * LN2
        gl.store(lse + query_start.to(gl.int64) * HEADS + at, value, mask=at < query_len * HEADS)


@gluon.jit
def _nothing_yet(first_row, context, limit, HEADS: gl.constexpr):
    """Where a warpgroup begins: keys below `visible` [ROWS] are a row's, those below `whole` all rows'; then m, total, acc."""
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    row: gl.constexpr = gl.SliceLayout(1, score_layout)
    visible = gl.minimum(context + (first_row + gl.arange(0, ROWS, row)) // HEADS + 1, limit)
    whole = gl.minimum(context + first_row // HEADS + 1, limit)
    m = gl.full([ROWS], float("-inf"), gl.float32, row)
    return visible, whole, m, gl.zeros([ROWS], gl.float32, row), gl.zeros([ROWS, HALF], gl.float32, out_layout)


@gluon.jit
def _left(
    out, lse, queries, keys, wide, rope, q_full, full, left_empty, cleaned, peaks, told, published, sums, summed,
    seq_lens, query_start_loc, stride_lens, stride_starts, splits, scale, kv_scale, num_tokens, stride_o_token, stride_o_head,
    HEADS: gl.constexpr, SPLIT: gl.constexpr, RETURN_LSE: gl.constexpr,
):  # fmt: skip
    """Warpgroup 0: the scores of every tile a, and the left half of the columns."""
    query_start, query_len, first_row, context, first, limit, tiles = _extent(
        seq_lens, query_start_loc, stride_lens, stride_starts, splits, HEADS
    )
    visible, whole, m, total, acc = _nothing_yet(first_row, context, limit, HEADS)
    score_row: gl.constexpr = m.type.layout
    if tiles > 0:
        mbarrier.wait(q_full.index(0), 0)
    for pair in range(0, (tiles + 1) // 2):
        phase = pair & 1
        start = first + pair * (2 * TILE)
        s = _masked(_scores(queries, keys, rope, full, 0, phase), start, visible, whole)
        peak = gl.maximum(m, gl.max(s, 1) * scale)
        peaks.index(0).store(peak)
        mbarrier.arrive(told.index(0), count=1)
        p = gl.exp2(s * scale - _pivot(peak)[:, None])
        shrink = gl.exp2(m - _pivot(peak))
        mine = gl.convert_layout(p.to(queries.dtype), gl.DotOperandLayout(0, acc.type.layout, 2))
        _clean(cleaned, start, limit)
        own = warpgroup_mma(mine, wide.index(0), _shrunk(acc, shrink), is_async=True)
        total = total * shrink + gl.sum(p, 1)
        if 2 * pair + 1 < tiles:
            mbarrier.wait(published.index(1), phase)
            m = peaks.index(1).load(score_row)
            shrink = gl.exp2(peak - _pivot(m))
            rope.index(0).store((p * shrink[:, None]).to(queries.dtype))
            fence_async_shared()
            mbarrier.arrive(published.index(0), count=1)
            total = total * shrink
            _there(full, 1, 0, phase)
            _clean(cleaned, start + TILE, limit)
            acc = warpgroup_mma_wait(0, deps=(own,))
            mbarrier.arrive(left_empty.index(0), count=1)
            theirs = warpgroup_mma(rope.index(1), wide.index(2), _shrunk(acc, shrink), is_async=True)
            acc = warpgroup_mma_wait(0, deps=(theirs,))
            mbarrier.arrive(left_empty.index(1), count=1)
        else:
            m = peak
            rope.index(0).store(p.to(queries.dtype))
            fence_async_shared()
            mbarrier.arrive(published.index(0), count=1)
            acc = warpgroup_mma_wait(0, deps=(own,))
    _write(
        0, out, lse, acc, m, total, sums, summed, query_start, query_len, first_row, kv_scale, num_tokens,
        stride_o_token, stride_o_head, HEADS, SPLIT, RETURN_LSE,
    )  # fmt: skip


@gluon.jit
def _right(
    out, lse, queries, keys, wide, rope, q_full, full, right_empty, cleaned, peaks, told, published, sums, summed,
    seq_lens, query_start_loc, stride_lens, stride_starts, splits, scale, kv_scale, num_tokens, stride_o_token, stride_o_head,
    HEADS: gl.constexpr, SPLIT: gl.constexpr, RETURN_LSE: gl.constexpr,
):  # fmt: skip
    """Warpgroup 1: the scores of every tile b, and the right half of the columns."""
    query_start, query_len, first_row, context, first, limit, tiles = _extent(
        seq_lens, query_start_loc, stride_lens, stride_starts, splits, HEADS
    )
    visible, whole, m, total, acc = _nothing_yet(first_row, context, limit, HEADS)
    score_row: gl.constexpr = m.type.layout
    if tiles > 0:
        mbarrier.wait(q_full.index(0), 0)
    for pair in range(0, (tiles + 1) // 2):
        phase = pair & 1
        start = first + pair * (2 * TILE) + TILE
        if 2 * pair + 1 < tiles:
            s = _masked(_scores(queries, keys, rope, full, 1, phase), start, visible, whole)
            peak = gl.max(s, 1) * scale
            mbarrier.wait(told.index(0), phase)
            peak = gl.maximum(peak, peaks.index(0).load(score_row))
            p = gl.exp2(s * scale - _pivot(peak)[:, None])
            packed = p.to(queries.dtype)
            rope.index(1).store(packed)
            peaks.index(1).store(peak)
            fence_async_shared()
            mbarrier.arrive(published.index(1), count=1)
            shrink = gl.exp2(m - _pivot(peak))
            m = peak
            _clean(cleaned, start, limit)
            mine = gl.convert_layout(packed, gl.DotOperandLayout(0, acc.type.layout, 2))
            own = warpgroup_mma(mine, wide.index(3), _shrunk(acc, shrink), is_async=True)
            total = total * shrink + gl.sum(p, 1)
            _there(full, 0, 1, phase)
            acc = warpgroup_mma_wait(0, deps=(own,))
            mbarrier.arrive(right_empty.index(1), count=1)
        else:
            mbarrier.wait(told.index(0), phase)
            peak = peaks.index(0).load(score_row)
            shrink = gl.exp2(m - _pivot(peak))
            m = peak
            total = total * shrink
            acc = _shrunk(acc, shrink)
            _there(full, 0, 1, phase)
            _clean(cleaned, start - TILE, limit)
        mbarrier.wait(published.index(0), phase)
        theirs = warpgroup_mma(rope.index(0), wide.index(1), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(theirs,))
        mbarrier.arrive(right_empty.index(0), count=1)
    _write(
        1, out, lse, acc, m, total, sums, summed, query_start, query_len, first_row, kv_scale, num_tokens,
        stride_o_token, stride_o_head, HEADS, SPLIT, RETURN_LSE,
    )  # fmt: skip


@gluon.jit
def _pages(pages, stride_page, start, limit, BLOCK_SIZE: gl.constexpr, CHUNK: gl.constexpr):
    """The cache block of each chunk of the tile at token `start`. The table may end at `limit`."""
    blocks = ()
    for c in gl.static_range(TILE // CHUNK):
        at = gl.minimum(start + c * CHUNK, limit - 1) // BLOCK_SIZE
        blocks = blocks + (gl.load(pages + at.to(gl.int64) * stride_page),)  # noqa: RUF005
    return blocks


@gluon.jit
def _copy(
    cache_map, blocks, block_rows, inside, memory, at, full, stage: gl.constexpr, FIRST: gl.constexpr, COUNT: gl.constexpr,
    CHUNK: gl.constexpr,
):  # fmt: skip
    """Start the copies of the pieces FIRST to FIRST + COUNT - 1 of a tile, into `memory` from piece `at` on."""
    CHUNKS: gl.constexpr = TILE // CHUNK
    for h in gl.static_range(COUNT):
        barrier = full.index(stage * PIECES + FIRST + h)
        mbarrier.expect(barrier, TILE * 64 * 2)
        for c in gl.static_range(CHUNKS):
            where = [blocks[c] * block_rows + inside, (FIRST + h) * 64]
            start_copy(cache_map, where, barrier, memory.index((at + h) * CHUNKS + c))


@gluon.jit
def _clear(strips, full, cleaned, tiles, unused):
    """Zero the values of the last tile from row `unused` on, 16 rows of 64 columns at a time."""
    part: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    DOWN: gl.constexpr = TILE // 16
    stage = (tiles - 1) % 2
    phase = ((tiles - 1) // 2) & 1
    for c in range(0, 2 * COLUMNS):
        mbarrier.wait(full.index(stage * PIECES + c), phase)
        for r in range(unused // 16, DOWN):
            strip = strips.index((stage * 2 * COLUMNS + c) * DOWN + r)
            found = strip.load(part)
            slot = r * 16 + gl.arange(0, 16, gl.SliceLayout(1, part))
            strip.store(gl.where((slot < unused)[:, None], found, gl.zeros([16, 64], found.dtype, part)))
    fence_async_shared()
    mbarrier.arrive(cleaned.index(0), count=1)


@gluon.jit
def _fetch(
    query_map, cache_map, queries, places, strips, rope, q_full, full, left_empty, right_empty, cleaned,
    table, seq_lens, query_start_loc, splits, block_rows, stride_lens, stride_starts, stride_table, stride_page,
    HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr, CHUNK: gl.constexpr,
):  # fmt: skip
    """The warp that fetches queries and cache rows: each half of a tile as soon as its place is free."""
    query_start, _, first_row, _, first, limit, tiles = _extent(
        seq_lens, query_start_loc, stride_lens, stride_starts, splits, HEADS
    )
    pages = table + gl.program_id(2).to(gl.int64) * stride_table
    if tiles > 0:
        mbarrier.expect(q_full.index(0), ROWS * PIECES * 64 * 2)
        for h in gl.static_range(PIECES):
            start_copy(query_map, [query_start * HEADS + first_row, h * 64], q_full.index(0), queries.index(h))
    for pair in range(0, (tiles + 1) // 2):
        phase = (pair & 1) ^ 1
        start = first + pair * (2 * TILE)
        both = 2 * pair + 1 < tiles
        inside_a = start % BLOCK_SIZE if BLOCK_SIZE > CHUNK else 0
        inside_b = (start + TILE) % BLOCK_SIZE if BLOCK_SIZE > CHUNK else 0
        a = _pages(pages, stride_page, start, limit, BLOCK_SIZE, CHUNK)
        b = _pages(pages, stride_page, start + TILE, limit, BLOCK_SIZE, CHUNK)
        mbarrier.wait(left_empty.index(0), phase)
        _copy(cache_map, a, block_rows, inside_a, places, 0, full, 0, 0, COLUMNS, CHUNK)
        if both:
            mbarrier.wait(right_empty.index(1), phase)
            _copy(cache_map, b, block_rows, inside_b, places, 3 * COLUMNS, full, 1, COLUMNS, COLUMNS, CHUNK)
        mbarrier.wait(right_empty.index(0), phase)
        _copy(cache_map, a, block_rows, inside_a, places, COLUMNS, full, 0, COLUMNS, COLUMNS, CHUNK)
        _copy(cache_map, a, block_rows, inside_a, rope, 0, full, 0, 2 * COLUMNS, 1, CHUNK)
        if both:
            mbarrier.wait(left_empty.index(1), phase)
            _copy(cache_map, b, block_rows, inside_b, places, 2 * COLUMNS, full, 1, 0, COLUMNS, CHUNK)
            _copy(cache_map, b, block_rows, inside_b, rope, 1, full, 1, 2 * COLUMNS, 1, CHUNK)
    if (tiles > 0) & (first + tiles * TILE > limit):
        _clear(strips, full, cleaned, tiles, limit - (first + (tiles - 1) * TILE))


@gluon.jit(
    do_not_specialize=["splits", "num_tokens", "block_rows", "stride_table"],
    do_not_specialize_on_alignment=["table", "seq_lens", "query_start_loc"],
)  # fmt: skip
def hopper_mla_decode(
    out, lse, query_map, cache_map, table, seq_lens, query_start_loc,
    splits, num_tokens, scale, kv_scale, block_rows, stride_lens, stride_starts, stride_o_token, stride_o_head,
    stride_table, stride_page,
    HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr, CHUNK: gl.constexpr,
    SPLIT: gl.constexpr, RETURN_LSE: gl.constexpr,
):  # fmt: skip
    """64 rows of one sequence over one split; `scale` holds log2 e and the cache's scale, `kv_scale` is for the values.

    Outputs as in `mla_decode_split`: with SPLIT, out and lse have the split as outermost dimension and lse is in log2.
    """
    DTYPE: gl.constexpr = cache_map.dtype
    flat: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    CHUNKS: gl.constexpr = TILE // CHUNK
    # Pieces of 64 columns, two halves of four a tile. Four one after another are, read as one, the tensor cores' layout.
    queries = gl.allocate_shared_memory(DTYPE, [PIECES, ROWS, 64], flat)
    places = gl.allocate_shared_memory(DTYPE, [4 * COLUMNS * CHUNKS, CHUNK, 64], flat)
    rope_places = gl.allocate_shared_memory(DTYPE, [2 * CHUNKS, CHUNK, 64], flat)
    keys = shaped_as(places, [4 * COLUMNS, TILE, 64])
    wide = shaped_as(places, [4, TILE, HALF])
    strips = shaped_as(places, [4 * COLUMNS * (TILE // 16), 16, 64])
    rope = shaped_as(rope_places, [2, TILE, ROPE])
    q_full = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [2 * PIECES, 1], mbarrier.MBarrierLayout())
    left_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    right_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    cleaned = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    told = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    published = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    summed = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    peaks = gl.allocate_shared_memory(gl.float32, [2, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    sums = gl.allocate_shared_memory(gl.float32, [2, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    mbarrier.init(q_full.index(0), count=1)
    mbarrier.init(told.index(0), count=1)
    mbarrier.init(cleaned.index(0), count=1)
    for i in gl.static_range(2 * PIECES):
        mbarrier.init(full.index(i), count=1)
    for i in gl.static_range(2):
        mbarrier.init(left_empty.index(i), count=1)
        mbarrier.init(right_empty.index(i), count=1)
        mbarrier.init(published.index(i), count=1)
        mbarrier.init(summed.index(i), count=1)
    fence_async_shared()
    # Compile-time constants stay so only in a tuple that is written in the call itself.
    gl.warp_specialize(
        [
            (_left, (
                out, lse, queries, keys, wide, rope, q_full, full, left_empty, cleaned, peaks, told, published, sums, summed,
                seq_lens, query_start_loc, stride_lens, stride_starts, splits, scale, kv_scale, num_tokens,
                stride_o_token, stride_o_head, HEADS, SPLIT, RETURN_LSE,
            )),
            (_right, (
                out, lse, queries, keys, wide, rope, q_full, full, right_empty, cleaned, peaks, told, published, sums, summed,
                seq_lens, query_start_loc, stride_lens, stride_starts, splits, scale, kv_scale, num_tokens,
                stride_o_token, stride_o_head, HEADS, SPLIT, RETURN_LSE,
            )),
            (_fetch, (
                query_map, cache_map, queries, places, strips, rope_places, q_full, full, left_empty, right_empty, cleaned,
                table, seq_lens, query_start_loc, splits, block_rows, stride_lens, stride_starts, stride_table, stride_page,
                HEADS, BLOCK_SIZE, CHUNK,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
