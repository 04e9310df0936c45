# mypy: disable-error-code="assignment"
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""MLA decode for sm_90: a warp that fetches, two warpgroups that multiply, in Gluon. Latent rows of 512 + 64, 16-bit caches.

    s_hj = softmax_scale * (q_latent_h . c_j + q_pe_h . k_pe_j) ;  out_h = sum_j softmax(s_h)_j c_j

64 rows (token, head) of 512 float32 sums fill the registers of two warpgroups, so each keeps the sums of half the columns, and
both need every probability. They take the score tiles in turn (the plan of FlashMLA's dense decode, DeepSeek 2025,
https://github.com/deepseek-ai/FlashMLA, written anew): warpgroup 0 multiplies the scores of the even tiles and warpgroup 1
those of the odd ones, each publishes its probabilities for the other, and while one is in its softmax the tensor cores work for
the other. The published tile lies where the tile's rope part was: nobody needs that after the scores, and shared memory is full
(queries 72 KiB, two tiles of 72 KiB).

Tile j's running maximum is the larger of tile j - 1's and its own, so the maxima travel from one warpgroup to the other and back.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma, warpgroup_mma_wait

from attnkit.kernels.triton.hopper_fetch import shaped_as, start_copy

LN2 = gl.constexpr(0.6931471805599453)
ROWS = gl.constexpr(64)
"""Query rows of a program: the M of a wgmma."""
TILE = gl.constexpr(64)
"""Keys of a tile; as wide as the rope part, whose place the probabilities take."""
HALF = gl.constexpr(256)
"""Latent columns of one warpgroup."""
ROPE = gl.constexpr(64)
COLUMNS = gl.constexpr(HALF // 64)


@gluon.jit
def _extent(seq_lens, query_start_loc, splits, HEADS: gl.constexpr):
    """What this program computes, as all its warps see it.

    Returns (query_start, query_len, first_row, context, first, limit, tiles): keys [first, limit) in `tiles` tiles; none where
    there is nothing to do.
    """
    first_row = gl.program_id(0) * ROWS
    seq = gl.program_id(2)
    query_start = gl.load(query_start_loc + seq)
    query_len = gl.load(query_start_loc + seq + 1) - query_start
    context = gl.load(seq_lens + seq) - query_len
    limit = context + gl.minimum((first_row + ROWS - 1) // HEADS, query_len - 1) + 1
    run = ((limit + TILE - 1) // TILE + splits - 1) // splits * TILE
    first = gl.program_id(1) * run
    limit = gl.minimum(limit, first + run)
    tiles = gl.maximum(limit - first + TILE - 1, 0) // TILE
    tiles = gl.where(first_row < query_len * HEADS, tiles, 0)
    return query_start, query_len, first_row, context, first, limit, tiles


@gluon.jit
def _clear(columns, at, unused, COUNT: gl.constexpr):
    """Zero the rows from `unused` on of COUNT pieces [TILE, 64]: what lies in unused slots of a cache may be NaN."""
    part: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    slot = gl.arange(0, TILE, gl.SliceLayout(1, part))
    for c in range(0, COUNT):
        piece = columns.index(at + c)
        found = piece.load(part)
        piece.store(gl.where((slot < unused)[:, None], found, gl.zeros([TILE, 64], found.dtype, part)))


@gluon.jit
def _scores(
    q_left, q_right, q_rope, left, right, rope, left_columns, right_columns, left_full, right_full, stage: gl.constexpr,
    phase, start, limit,
):  # fmt: skip
    """q . k of a tile: float32 [ROWS, TILE]."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    mbarrier.wait(left_full.index(stage), phase)
    if start + TILE > limit:
        mbarrier.wait(right_full.index(stage), phase)
        _clear(left_columns, stage * COLUMNS, limit - start, COLUMNS)
        _clear(right_columns, stage * COLUMNS, limit - start, COLUMNS)
        _clear(rope, stage, limit - start, 1)
        fence_async_shared()
    s = gl.zeros([ROWS, TILE], gl.float32, layout)
    s = warpgroup_mma(q_left, left.index(stage).permute((1, 0)), s, use_acc=False, is_async=True)
    mbarrier.wait(right_full.index(stage), phase)
    s = warpgroup_mma(q_right, right.index(stage).permute((1, 0)), s, is_async=True)
    s = warpgroup_mma(q_rope, rope.index(stage).permute((1, 0)), s, is_async=True)
    return warpgroup_mma_wait(0, deps=(s,))


@gluon.jit
def _top(m):
    """The maximum to subtract: a row that has seen no key yet has -inf, which taken from -inf would be NaN."""
    return gl.where(m == float("-inf"), 0.0, m)


@gluon.jit
def _softmax(s, m, total, start, visible, scale):
    """p of a tile, the new maximum and denominator, and the factor for what was summed so far."""
    layout: gl.constexpr = s.type.layout
    n = start + gl.arange(0, TILE, gl.SliceLayout(0, layout))
    s = gl.where(n[None, :] < visible[:, None], s, float("-inf"))
    top = gl.maximum(m, gl.max(s, 1) * scale)
    pivot = _top(top)
    p = gl.exp2(s * scale - pivot[:, None])
    shrink = gl.exp2(m - pivot)
    return p, top, total * shrink + gl.sum(p, 1), shrink


@gluon.jit
def _shrunk(acc, shrink):
    return acc * gl.convert_layout(shrink, gl.SliceLayout(1, acc.type.layout))[:, None]


@gluon.jit
def _publish(p, m, rope, peaks, published, stage: gl.constexpr):
    """Probabilities and maximum of a tile, for the other warpgroup."""
    rope.index(stage).store(p)
    peaks.index(stage).store(m)
    fence_async_shared()
    mbarrier.arrive(published.index(stage), count=1)


@gluon.jit
def _write(
    WG: gl.constexpr, out, lse, acc, m, total, sums, summed, query_start, query_len, first_row, kv_scale, num_tokens,
    stride_o_token, stride_o_head, HEADS: gl.constexpr, SPLIT: gl.constexpr, RETURN_LSE: gl.constexpr,
):  # fmt: skip
    """This warpgroup's half of the columns; both need the sum of both halves of the tiles."""
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
        out + (token * stride_o_token + row % HEADS * stride_o_head)[:, None] + column[None, :],
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
def _multiply(
    WG: gl.constexpr, out, lse, q_left, q_right, q_rope, left, right, rope, left_columns, right_columns,
    q_full, left_full, right_full, left_empty, right_empty, peaks, published, sums, summed,
    seq_lens, query_start_loc, splits, scale, kv_scale, num_tokens, stride_o_token, stride_o_head,
    HEADS: gl.constexpr, SPLIT: gl.constexpr, RETURN_LSE: gl.constexpr,
):  # fmt: skip
    """The warpgroup of the columns [WG * HALF, WG * HALF + HALF), and of the scores of tiles 2 t + WG."""
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    score_row: gl.constexpr = gl.SliceLayout(1, score_layout)
    p_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    DTYPE: gl.constexpr = q_left.dtype
    query_start, query_len, first_row, context, first, limit, tiles = _extent(seq_lens, query_start_loc, splits, HEADS)
    row = first_row + gl.arange(0, ROWS, score_row)
    visible = gl.minimum(context + row // HEADS + 1, limit)
    m = gl.full([ROWS], float("-inf"), gl.float32, score_row)
    total = gl.zeros([ROWS], gl.float32, score_row)
    acc = gl.zeros([ROWS, HALF], gl.float32, out_layout)
    if tiles > 0:
        mbarrier.wait(q_full.index(0), 0)
    for pair in range(0, (tiles + 1) // 2):
        phase = pair & 1
        start = first + pair * (2 * TILE)
        both = 2 * pair + 1 < tiles
        if WG == 0:
            s = _scores(
                q_left, q_right, q_rope, left, right, rope, left_columns, right_columns, left_full, right_full, 0, phase,
                start, limit,
            )  # fmt: skip
            fresh, m, total, shrink = _softmax(s, m, total, start, visible, scale)
            p = fresh.to(DTYPE)
            _publish(p, m, rope, peaks, published, 0)
            acc = warpgroup_mma(gl.convert_layout(p, p_layout), left.index(0), _shrunk(acc, shrink), is_async=True)
            acc = warpgroup_mma_wait(0, deps=(acc,))
            mbarrier.arrive(left_empty.index(0), count=1)
            if both:
                mbarrier.wait(published.index(1), phase)
                theirs = peaks.index(1).load(score_row)
                shrink = gl.exp2(m - _top(theirs))
                m = theirs
                total = total * shrink
                acc = warpgroup_mma(rope.index(1), left.index(1), _shrunk(acc, shrink), is_async=True)
                acc = warpgroup_mma_wait(0, deps=(acc,))
                mbarrier.arrive(left_empty.index(1), count=1)
        else:
            if both:
                s = _scores(
                    q_left, q_right, q_rope, left, right, rope, left_columns, right_columns, left_full, right_full, 1, phase,
                    start + TILE, limit,
                )  # fmt: skip
                mbarrier.wait(published.index(0), phase)
                theirs = peaks.index(0).load(score_row)
                shrink = gl.exp2(m - _top(theirs))
                acc = warpgroup_mma(rope.index(0), right.index(0), _shrunk(acc, shrink), is_async=True)
                fresh, m, total, shrink = _softmax(s, theirs, total * shrink, start + TILE, visible, scale)
                p = fresh.to(DTYPE)
                _publish(p, m, rope, peaks, published, 1)
                acc = warpgroup_mma_wait(0, deps=(acc,))
                mbarrier.arrive(right_empty.index(0), count=1)
                acc = warpgroup_mma(gl.convert_layout(p, p_layout), right.index(1), _shrunk(acc, shrink), is_async=True)
                acc = warpgroup_mma_wait(0, deps=(acc,))
                mbarrier.arrive(right_empty.index(1), count=1)
            else:
                mbarrier.wait(published.index(0), phase)
                theirs = peaks.index(0).load(score_row)
                shrink = gl.exp2(m - _top(theirs))
                m = theirs
                total = total * shrink
                acc = warpgroup_mma(rope.index(0), right.index(0), _shrunk(acc, shrink), is_async=True)
                acc = warpgroup_mma_wait(0, deps=(acc,))
    _write(
        WG, out, lse, acc, m, total, sums, summed, query_start, query_len, first_row, kv_scale, num_tokens,
        stride_o_token, stride_o_head, HEADS, SPLIT, RETURN_LSE,
    )  # fmt: skip


@gluon.jit
def _copy(view, blocks, block_rows, inside, column, full, pieces, at, WIDTH: gl.constexpr, CHUNK: gl.constexpr):
    """Start the copies of WIDTH columns of a tile."""
    CHUNKS: gl.constexpr = TILE // CHUNK
    for c in gl.static_range(CHUNKS):
        for h in gl.static_range(WIDTH // 64):
            start_copy(view, [blocks[c] * block_rows + inside, column + h * 64], full, pieces.index((at + h) * CHUNKS + c))


@gluon.jit
def _fetch(
    query_map, cache_map, q_left, q_right, q_rope, left, right, rope, q_full, left_full, right_full, left_empty, right_empty,
    table, seq_lens, query_start_loc, splits, block_rows, stride_table,
    HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr, CHUNK: gl.constexpr,
):  # fmt: skip
    """The warp that fetches queries and cache rows, in pieces of 64 columns."""
    query_start, _, first_row, _, first, limit, tiles = _extent(seq_lens, query_start_loc, splits, HEADS)
    pages = table + gl.program_id(2).to(gl.int64) * stride_table
    if tiles > 0:
        at = query_start * HEADS + first_row
        mbarrier.expect(q_full.index(0), ROWS * (2 * HALF + ROPE) * 2)
        for h in gl.static_range(COLUMNS):
            start_copy(query_map, [at, h * 64], q_full.index(0), q_left.index(h))
            start_copy(query_map, [at, HALF + h * 64], q_full.index(0), q_right.index(h))
        start_copy(query_map, [at, 2 * HALF], q_full.index(0), q_rope)
    for tile in range(0, tiles):
        stage = tile % 2
        phase = ((tile // 2) & 1) ^ 1
        start = first + tile * TILE
        inside = start % BLOCK_SIZE if BLOCK_SIZE > CHUNK else 0
        blocks = ()
        for c in gl.static_range(TILE // CHUNK):
            # The table may end at `limit`; what is fetched beyond is cleared before use.
            blocks = blocks + (gl.load(pages + gl.minimum(start + c * CHUNK, limit - 1) // BLOCK_SIZE),)  # noqa: RUF005
        mbarrier.wait(left_empty.index(stage), phase)
        mbarrier.expect(left_full.index(stage), TILE * HALF * 2)
        _copy(cache_map, blocks, block_rows, inside, 0, left_full.index(stage), left, stage * COLUMNS, HALF, CHUNK)
        mbarrier.wait(right_empty.index(stage), phase)
        mbarrier.expect(right_full.index(stage), TILE * (HALF + ROPE) * 2)
        _copy(cache_map, blocks, block_rows, inside, HALF, right_full.index(stage), right, stage * COLUMNS, HALF, CHUNK)
        _copy(cache_map, blocks, block_rows, inside, 2 * HALF, right_full.index(stage), rope, stage, ROPE, CHUNK)


@gluon.jit(
    do_not_specialize=["splits", "num_tokens", "block_rows", "stride_table"],
    do_not_specialize_on_alignment=["table", "seq_lens", "query_start_loc"],
)  # fmt: skip
def hopper_mla_decode(
    out, lse, query_map, cache_map, table, seq_lens, query_start_loc,
    splits, num_tokens, scale, kv_scale, block_rows, stride_o_token, stride_o_head, stride_table,
    DTYPE: gl.constexpr, HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr, CHUNK: gl.constexpr,
    SPLIT: gl.constexpr, RETURN_LSE: gl.constexpr,
):  # fmt: skip
    """64 rows of one sequence over one split; `scale` holds log2 e and the cache's scale, `kv_scale` is for the values.

    Outputs as in `mla_decode_split`: with SPLIT, out and lse have the split as outermost dimension and lse is in log2.
    """
    flat: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    CHUNKS: gl.constexpr = TILE // CHUNK
    # Pieces lie one after another within a column of 64: read as one tile, that is the tensor cores' layout.
    q_left = gl.allocate_shared_memory(DTYPE, [COLUMNS, ROWS, 64], flat)
    q_right = gl.allocate_shared_memory(DTYPE, [COLUMNS, ROWS, 64], flat)
    q_rope = gl.allocate_shared_memory(DTYPE, [ROWS, ROPE], flat)
    left = gl.allocate_shared_memory(DTYPE, [2 * COLUMNS * CHUNKS, CHUNK, 64], flat)
    right = gl.allocate_shared_memory(DTYPE, [2 * COLUMNS * CHUNKS, CHUNK, 64], flat)
    rope = gl.allocate_shared_memory(DTYPE, [2 * CHUNKS, CHUNK, 64], flat)
    q_full = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    left_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    right_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    left_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    right_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    published = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    summed = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    peaks = gl.allocate_shared_memory(gl.float32, [2, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    sums = gl.allocate_shared_memory(gl.float32, [2, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    mbarrier.init(q_full.index(0), count=1)
    for i in gl.static_range(2):
        mbarrier.init(left_full.index(i), count=1)
        mbarrier.init(right_full.index(i), count=1)
        mbarrier.init(left_empty.index(i), count=1)
        mbarrier.init(right_empty.index(i), count=1)
        mbarrier.init(published.index(i), count=1)
        mbarrier.init(summed.index(i), count=1)
    fence_async_shared()
    # Views, and compile-time constants, only stay what they are in a tuple that is written in the call itself.
    q_left_tile = shaped_as(q_left, [1, ROWS, HALF]).index(0)
    q_right_tile = shaped_as(q_right, [1, ROWS, HALF]).index(0)
    left_tiles = shaped_as(left, [2, TILE, HALF])
    right_tiles = shaped_as(right, [2, TILE, HALF])
    rope_tiles = shaped_as(rope, [2, TILE, ROPE])
    left_columns = shaped_as(left, [2 * COLUMNS, TILE, 64])
    right_columns = shaped_as(right, [2 * COLUMNS, TILE, 64])
    gl.warp_specialize(
        [
            (_multiply, (
                gl.constexpr(0), out, lse, q_left_tile, q_right_tile, q_rope, left_tiles, right_tiles, rope_tiles,
                left_columns, right_columns, q_full, left_full, right_full, left_empty, right_empty, peaks, published,
                sums, summed, seq_lens, query_start_loc, splits, scale, kv_scale, num_tokens, stride_o_token, stride_o_head,
                HEADS, SPLIT, RETURN_LSE,
            )),
            (_multiply, (
                gl.constexpr(1), out, lse, q_left_tile, q_right_tile, q_rope, left_tiles, right_tiles, rope_tiles,
                left_columns, right_columns, q_full, left_full, right_full, left_empty, right_empty, peaks, published,
                sums, summed, seq_lens, query_start_loc, splits, scale, kv_scale, num_tokens, stride_o_token, stride_o_head,
                HEADS, SPLIT, RETURN_LSE,
            )),
            (_fetch, (
                query_map, cache_map, q_left, q_right, q_rope, left, right, rope, q_full, left_full, right_full,
                left_empty, right_empty, table, seq_lens, query_start_loc, splits, block_rows, stride_table,
                HEADS, BLOCK_SIZE, CHUNK,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
