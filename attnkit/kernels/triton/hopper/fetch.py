# mypy: disable-error-code="assignment"
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The sm_90 prefill's work: which tile comes next, where it lies, and the warp that fetches its keys and values.

Never reads what it must not: page numbers outside the visible range are replaced by visible ones, and of the value tile at the
end of a sequence the unused slots, which may hold NaN, are zeroed.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

RENAMED = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))
"""Triton 3.9 has other names for views of shared memory and for loads by the copy engine."""
start_copy = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


@gluon.jit
def shaped_as(memory, shape: gl.constexpr):
    """The same shared memory in another shape."""
    if RENAMED:
        view = memory.reinterpret(memory.dtype, shape, memory.layout)
    else:
        view = memory._reinterpret(memory.dtype, shape, memory.layout)
    return view


@gluon.jit
def _find_sequence(tile, query_start_loc, stride_starts, num_seqs, GROUP: gl.constexpr, BLOCK_M: gl.constexpr):
    """The last sequence whose first tile is <= `tile`, or the first; as in rows.py, which Gluon cannot call."""
    low = 0
    high = num_seqs
    while low < high:
        middle = (low + high) // 2
        if gl.load(query_start_loc + middle.to(gl.int64) * stride_starts) * GROUP // BLOCK_M + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return gl.maximum(low - 1, 0)


@gluon.jit
def _tell(slots, told, heard, turn, work):
    """The warp that fetches says which work item comes as number `turn`, once all have heard the one two before."""
    one: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    mbarrier.wait(heard.index(turn % 2), ((turn // 2) & 1) ^ 1)
    slots.index(turn % 2).store(gl.full([1], 0, gl.int32, one) + work)
    mbarrier.arrive(told.index(turn % 2), count=1)


@gluon.jit
def hear(slots, told, heard, turn):
    """Which work item comes as number `turn`."""
    one: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    mbarrier.wait(told.index(turn % 2), (turn // 2) & 1)
    work = gl.max(slots.index(turn % 2).load(one), 0)
    mbarrier.arrive(heard.index(turn % 2), count=1)
    return work


@gluon.jit
def extent(
    work, tiles, items, seq_lens, query_start_loc, key_start_loc, stride_lens, stride_starts, stride_key_starts, num_seqs,
    window_left, window_right, shortest, GROUP: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, PAGED: gl.constexpr,
    HAS_LEFT: gl.constexpr, HAS_RIGHT: gl.constexpr,
):  # fmt: skip
    """Where a work item is, as all warps see it: heads outermost, and the long rows of a causal batch first.

    Returns (kv_head, seq, query_start, query_len, first_row, context, seq_len, first, limit, begin, end, key_start, real): keys
    [first, limit) are visible to some row of the tile, and lie in the key tiles [begin, end). Where `real` is false the tile is
    not to be written; where it has no keys it is, with zeros.
    """
    tile = tiles - 1 - work % tiles
    kv_head = work // tiles
    seq = _find_sequence(tile, query_start_loc, stride_starts, num_seqs, GROUP, BLOCK_M)
    at = query_start_loc + seq.to(gl.int64) * stride_starts
    query_start = gl.load(at)
    query_len = gl.load(at + stride_starts) - query_start
    first_row = (tile - (query_start * GROUP // BLOCK_M + seq)) * BLOCK_M
    real = (first_row >= 0) & (first_row < query_len * GROUP) & (query_len >= shortest) & (work < items)
    if PAGED:
        key_start = 0
        seq_len = gl.load(seq_lens + seq.to(gl.int64) * stride_lens)
    else:
        at = key_start_loc + seq.to(gl.int64) * stride_key_starts
        key_start = gl.load(at)
        seq_len = gl.load(at + stride_key_starts) - key_start
    context = seq_len - query_len
    first = 0
    limit = seq_len
    if HAS_LEFT:
        first = gl.maximum(context + first_row // GROUP - window_left, 0)
    if HAS_RIGHT:
        limit = gl.minimum(seq_len, context + gl.minimum((first_row + BLOCK_M - 1) // GROUP, query_len - 1) + window_right + 1)
    begin = first // BLOCK_N
    end = gl.where(real, (limit + BLOCK_N - 1) // BLOCK_N, begin)
    return kv_head, seq, query_start, query_len, first_row, context, seq_len, first, limit, begin, end, key_start, real


@gluon.jit
def _blocks(
    pages, stride_page, key_start, start, first, limit,
    BLOCK_SIZE: gl.constexpr, BLOCK_N: gl.constexpr, CHUNK: gl.constexpr, PAGED: gl.constexpr,
):  # fmt: skip
    """The cache block of each chunk of the tile at token `start`; of packed keys, its first row.

    The table is not read outside [first, limit): it may end there. To be called before waiting for room in the ring, so that
    the table's latency is not added to that of the copies.
    """
    if PAGED:
        blocks = ()
        for c in gl.static_range(BLOCK_N // CHUNK):
            at = gl.minimum(gl.maximum(start + c * CHUNK, first), limit - 1)
            blocks = blocks + (gl.load(pages + (at // BLOCK_SIZE).to(gl.int64) * stride_page),)  # noqa: RUF005 - the compiler knows no star here
    else:
        blocks = (key_start + start,)
    return blocks


@gluon.jit
def _copy(
    blocks, block_rows, row, column, view, ring, barrier, stage, D: gl.constexpr, BLOCK_N: gl.constexpr, CHUNK: gl.constexpr
):
    """Start the copies of a tile, which `barrier` counts."""
    HALVES: gl.constexpr = D // 64
    CHUNKS: gl.constexpr = BLOCK_N // CHUNK
    mbarrier.expect(barrier, BLOCK_N * D * 2)
    for c in gl.static_range(CHUNKS):
        for h in gl.static_range(HALVES):
            at = [blocks[c] * block_rows + row, column + h * 64]
            piece = ring.index((stage * HALVES + h) * CHUNKS + c)
            start_copy(view, at, barrier, piece)


@gluon.jit
def fetch(
    key_map, value_map, keys, values, pieces, key_full, key_empty, value_full, value_empty, raw, taken, slots, told, heard,
    table, seq_lens, query_start_loc, key_start_loc, tiles, items, num_seqs, window_left, window_right, shortest,
    stride_lens, stride_starts, stride_key_starts, stride_table, stride_page,
    key_block_rows, key_head_rows, key_head_columns, value_block_rows, value_head_rows, value_head_columns,
    GROUP: gl.constexpr, D: gl.constexpr, BLOCK_SIZE: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
    CHUNK: gl.constexpr, STAGES: gl.constexpr, PAGED: gl.constexpr, HAS_LEFT: gl.constexpr, HAS_RIGHT: gl.constexpr,
):  # fmt: skip
    """The warp that fetches; it also takes the work items from the counter and tells the others.

    Of a value tile that reaches past the end of its sequence, the rest is zeroed before the others hear of it.
    """
    DOWN: gl.constexpr = BLOCK_N // 16
    PIECES: gl.constexpr = DOWN * (D // 64)
    part: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    count = 0
    ends = 0
    turn = 0
    work = gl.program_id(0)
    while work < items:
        _tell(slots, told, heard, turn, work)
        following = gl.atomic_add(taken, 1) + gl.num_programs(0)
        kv_head, seq, _, _, _, _, seq_len, first, limit, begin, end, key_start, _ = extent(
            work, tiles, items, seq_lens, query_start_loc, key_start_loc, stride_lens, stride_starts, stride_key_starts,
            num_seqs, window_left, window_right, shortest, GROUP, BLOCK_M, BLOCK_N, PAGED, HAS_LEFT, HAS_RIGHT,
        )  # fmt: skip
        pages = table
        if PAGED:
            pages += seq.to(gl.int64) * stride_table
        for back in range(0, end - begin):
            stage = count % STAGES
            phase = ((count // STAGES) & 1) ^ 1
            start = (end - 1 - back) * BLOCK_N
            inside = start % BLOCK_SIZE if BLOCK_SIZE > CHUNK else 0
            blocks = _blocks(pages, stride_page, key_start, start, first, limit, BLOCK_SIZE, BLOCK_N, CHUNK, PAGED)
            mbarrier.wait(key_empty.index(stage), phase)
            _copy(
                blocks, key_block_rows, kv_head * key_head_rows + inside, kv_head * key_head_columns,
                key_map, keys, key_full.index(stage), stage, D, BLOCK_N, CHUNK,
            )  # fmt: skip
            mbarrier.wait(value_empty.index(stage), phase)
            if start + BLOCK_N <= seq_len:
                _copy(
                    blocks, value_block_rows, kv_head * value_head_rows + inside, kv_head * value_head_columns,
                    value_map, values, value_full.index(stage), stage, D, BLOCK_N, CHUNK,
                )  # fmt: skip
            else:
                _copy(
                    blocks, value_block_rows, kv_head * value_head_rows + inside, kv_head * value_head_columns,
                    value_map, values, raw.index(0), stage, D, BLOCK_N, CHUNK,
                )  # fmt: skip
                mbarrier.wait(raw.index(0), ends & 1)
                ends += 1
                for row in range((seq_len - start) // 16, DOWN):
                    for column in range(0, D // 64):
                        piece = pieces.index(stage * PIECES + column * DOWN + row)
                        found = piece.load(part)
                        slot = start + row * 16 + gl.arange(0, 16, gl.SliceLayout(1, part))
                        piece.store(gl.where((slot < seq_len)[:, None], found, gl.zeros([16, 64], found.dtype, part)))
                fence_async_shared()
                mbarrier.arrive(value_full.index(stage), count=1)
            count += 1
        work = following
        turn += 1
    _tell(slots, told, heard, turn, items)
