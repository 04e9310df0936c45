# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# ruff: noqa: SIM108, SIM109 (compile-time branches)
"""The online softmax over key/value tiles: the loop that every attention kernel of this package runs.

For a tile of query rows i and a run of keys j:

    s_ij = softmax_scale * q_i . k_j        (then softcap, ALiBi, mask)
    m_i  = max_j s_ij ;  l_i = sum_j exp(s_ij - m_i) ;  o_i = sum_j exp(s_ij - m_i) v_j / l_i

Scores are kept in units of log2 (scale * log2 e folded into one factor), so that the exponential is the hardware's exp2.
Keys that every row of the tile sees run through a loop without any mask; only the tiles on the diagonal, on the window's edge
and at the end of the sequence are masked, and there rows that must not be read are loaded as zero: unused cache slots may hold
NaN, and 0 * NaN is NaN.

Float32 inputs get exact products on the scalar units, where `tl.dot` is one chain of multiply-adds that rounds at the size of
the running sum in every step. Over a head of 64 to 256 that chain, not exp2 and not the scale (both go into one fused
multiply-add), was the kernels' error: where |q.k| is in the hundreds, a mean of 5e-7 to 8e-7 of the output, in the worst draw
2e-6 to 3e-6. Summed in chains of LONGEST_SUM over even and odd columns, joined in pairs, it is 2e-7, that of a CPU's vectorised
sum. Values are summed tile by tile for the same reason. tests/kernels/float32_cases.py measures it; sixteen-bit code has none
of this.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import triton
import triton.language as tl

INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""The interpreter computes bfloat16 `tl.dot` wrongly; there operands go up to float32 first (their values stay rounded)."""

LONGEST_SUM = tl.constexpr(16)
"""Float32 products of a score that are summed one after another; `tl.dot` takes no fewer."""

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

FP8_NONE = tl.constexpr(0)
FP8_NATIVE = tl.constexpr(1)
FP8_E4M3_BITS = tl.constexpr(2)
FP8_E4M3FNUZ_BITS = tl.constexpr(3)
FP8_E5M2_BITS = tl.constexpr(4)
FP8_E5M2FNUZ_BITS = tl.constexpr(5)
FP8_E4M3_PAIRS = tl.constexpr(6)
"""Two in a uint16, converted by NVIDIA's instructions: `warp_decode` alone."""
FP8_E5M2_PAIRS = tl.constexpr(7)


class Keys(NamedTuple):
    """Keys and values of one head, in a cache (`table` of its sequence) or packed one after another from row `start` on."""

    key: Any
    value: Any
    table: Any
    start: Any
    stride_page: Any
    stride_k_block: Any
    stride_k_token: Any
    stride_v_block: Any
    stride_v_token: Any


class Scores(NamedTuple):
    """What becomes of q . k: scale, softcap, and ALiBi's slope of each row."""

    scale: Any
    softcap: Any
    slope: Any


class Mask(NamedTuple):
    """Which keys a row sees: a window about its position; of a tree's tokens, those that `tree` [num_nodes, num_nodes] says.

    [first, limit) are the keys that some row of the program may see.
    """

    window_left: Any
    window_right: Any
    tree: Any
    stride_node: Any
    stride_edge: Any
    num_nodes: Any
    first: Any
    limit: Any


class Form(NamedTuple):
    """What is fixed when a kernel is compiled. To be written in the call itself: of a variable they are run-time numbers."""

    HEAD_DIM: Any
    HEAD_DIM_V: Any
    BLOCK_D: Any
    BLOCK_DV: Any
    BLOCK_SIZE: Any
    BLOCK_N: Any
    PAGED: Any
    SAME_STRIDES: Any
    HAS_LEFT: Any
    HAS_RIGHT: Any
    SOFTCAP: Any
    ALIBI: Any
    TREE: Any
    FP8: Any


@triton.jit
def plus(a, b):
    """a + b, written so that the compiler does not make `b` the start of the chain of multiply-adds that computes `a`."""
    return tl.fma(a, tl.full(a.shape, 1.0, tl.float32), b)


@triton.jit
def matmul(a, b, acc):
    """a [M, K] @ b [K, N] + acc in float32; float32 operands keep full precision."""
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    if a.dtype == tl.float32:
        acc = plus(tl.dot(a, b, input_precision="ieee"), acc)
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def products(q, k):
    """q [M, D] @ k [N, D]^T in float32; float32 operands are summed in chains of LONGEST_SUM, joined in pairs (see above)."""
    if q.dtype == tl.float32 and q.shape[1] > LONGEST_SUM:
        HALVED: tl.constexpr = q.shape[1] // 2
        q_even, q_odd = tl.split(tl.reshape(q, [q.shape[0], HALVED, 2]))
        k_even, k_odd = tl.split(tl.reshape(k, [k.shape[0], HALVED, 2]))
        s = plus(products(q_even, k_even), products(q_odd, k_odd))
    elif q.dtype == tl.float32:
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
    else:
        s = matmul(q, tl.trans(k), tl.zeros([q.shape[0], k.shape[0]], tl.float32))
    return s


@triton.jit
def dequantise(x, DTYPE: tl.constexpr, FP8: tl.constexpr):
    """A cache tile in the query's dtype. The float8 scale is not applied here: it is folded into score scale and output.

    The bit forms take uint8 and need no float8 instruction: a float8 is a float16 with its mantissa cut and, for e4m3, a
    narrower exponent, so moving the bits into place and multiplying by the difference of the biases is exact.
    """
    if FP8 == FP8_NONE or FP8 == FP8_NATIVE:
        y = x.to(DTYPE)
    else:
        bits = x.to(tl.uint16)
        if FP8 == FP8_E4M3_BITS:
            half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
        elif FP8 == FP8_E4M3FNUZ_BITS:
            half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True) * 128.0
        elif FP8 == FP8_E5M2FNUZ_BITS:
            half = (bits << 8).to(tl.float16, bitcast=True) * 0.5
        else:
            half = (bits << 8).to(tl.float16, bitcast=True)
        y = half.to(DTYPE)
    return y


@triton.jit
def row_pages(start, table, stride_page, first, limit, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Cache block of each of the BLOCK_N tokens from `start` (one number where the whole tile lies in one block).

    Outside [first, limit) the table is not read: it may end there, or name blocks that were given back.
    """
    if BLOCK_SIZE % BLOCK_N == 0:
        at = table + (start // BLOCK_SIZE).to(tl.int64) * stride_page
        pages = tl.load(at, mask=(start + BLOCK_N > first) & (start < limit), other=0)
    else:
        n = start + tl.arange(0, BLOCK_N)
        at = table + (n // BLOCK_SIZE).to(tl.int64) * stride_page
        pages = tl.load(at, mask=(n >= first) & (n < limit), other=0)
    return pages


@triton.jit
def row_offsets(start, pages, stride_block, stride_token, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Element offset [BLOCK_N] of each token's row in a paged cache."""
    if BLOCK_SIZE % BLOCK_N == 0:
        slot = start % BLOCK_SIZE + tl.arange(0, BLOCK_N)
        offsets = pages.to(tl.int64) * stride_block + slot.to(tl.int64) * stride_token
    else:
        n = start + tl.arange(0, BLOCK_N)
        offsets = pages.to(tl.int64) * stride_block + (n % BLOCK_SIZE).to(tl.int64) * stride_token
    return offsets


@triton.jit
def load_rows(base, rows, n, first, limit, WIDTH: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr):
    """Rows [BLOCK_N, PADDED] of the cache; columns past WIDTH and (masked) tokens outside [first, limit) are zero."""
    d = tl.arange(0, PADDED)
    pointers = base + rows[:, None] + d[None, :]
    if MASKED:
        keep = (n >= first) & (n < limit)
        if WIDTH == PADDED:
            tile = tl.load(pointers, mask=keep[:, None], other=0.0)
        else:
            tile = tl.load(pointers, mask=keep[:, None] & (d[None, :] < WIDTH), other=0.0)
    elif WIDTH == PADDED:
        tile = tl.load(pointers)
    else:
        tile = tl.load(pointers, mask=d[None, :] < WIDTH, other=0.0)
    return tile


@triton.jit
def tanh(x, EXACT: tl.constexpr):
    """1 - 2 / (1 + e^2x), which never overflows into NaN. EXACT: near 0, where that cancels, an odd polynomial (Cephes)."""
    y = 1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * LOG2E)))
    if EXACT:
        z = x * x
        p = ((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1
        y = tl.where(tl.abs(x) < 0.625, x + x * z * (p * z - 3.33332819422e-1), y)
    return y


@triton.jit
def bend_scores(s, scale, softcap, slope, position, n, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, EXACT: tl.constexpr):
    """Scaled scores in log2 units, with softcap and ALiBi."""
    if SOFTCAP:
        s = softcap * LOG2E * tanh(s * (scale / softcap), EXACT)
    else:
        s = s * (scale * LOG2E)
    if ALIBI:
        s += slope[:, None] * LOG2E * (n[None, :] - position[:, None]).to(tl.float32)
    return s


@triton.jit
def visible_keys(n, position, node, context, mask, form):
    """Which keys `n` the rows of this position and node see; the three broadcast."""
    visible = (n >= mask.first) & (n < mask.limit)
    if form.HAS_LEFT:
        visible &= n >= position - mask.window_left
    if form.HAS_RIGHT:
        visible &= n <= position + mask.window_right
    if form.TREE:
        drafted = (n >= context) & (n - context < mask.num_nodes)
        at = mask.tree + node * mask.stride_node + (n - context) * mask.stride_edge
        edge = tl.load(at, mask=drafted & (node < mask.num_nodes), other=0)
        visible &= (n < context) | (edge != 0)
    return visible


@triton.jit
def attend_tile(q, acc, total, m, start, pages, rows, keys, scores, mask, form, MASKED: tl.constexpr):
    """One step of the online softmax: keys start .. start + BLOCK_N - 1, of which [first, limit) exist for this tile."""
    DTYPE: tl.constexpr = q.dtype
    scale = scores.scale
    first = mask.first
    limit = mask.limit
    n = start + tl.arange(0, form.BLOCK_N)
    if form.PAGED:
        k_rows = row_offsets(start, pages, keys.stride_k_block, keys.stride_k_token, form.BLOCK_SIZE, form.BLOCK_N)
    else:
        k_rows = (keys.start + n).to(tl.int64) * keys.stride_k_token
    k = dequantise(load_rows(keys.key, k_rows, n, first, limit, form.HEAD_DIM, form.BLOCK_D, MASKED), DTYPE, form.FP8)
    s = products(q, k)

    BENT: tl.constexpr = form.SOFTCAP or form.ALIBI
    EXACT: tl.constexpr = q.dtype == tl.float32
    if BENT:
        s = bend_scores(s, scale, scores.softcap, scores.slope, rows.position, n, form.SOFTCAP, form.ALIBI, EXACT)
    if MASKED:
        visible = visible_keys(n[None, :], rows.position[:, None], rows.node[:, None], rows.context, mask, form)
        s = tl.where(visible, s, float("-inf"))

    if BENT:
        top = tl.maximum(m, tl.max(s, 1))
    else:
        top = tl.maximum(m, tl.max(s, 1) * (scale * LOG2E))
    # A row that has seen no key yet keeps -inf as its maximum; subtracting it from -inf would be NaN.
    pivot = tl.where(top == float("-inf"), 0.0, top) if MASKED else top
    if BENT:
        p = tl.exp2(s - pivot[:, None])
    else:
        p = tl.exp2(s * (scale * LOG2E) - pivot[:, None])
    shrink = tl.exp2(m - pivot)
    total = total * shrink + tl.sum(p, 1)
    acc = acc * shrink[:, None]

    if form.SAME_STRIDES:
        v_rows = k_rows
    elif form.PAGED:
        v_rows = row_offsets(start, pages, keys.stride_v_block, keys.stride_v_token, form.BLOCK_SIZE, form.BLOCK_N)
    else:
        v_rows = (keys.start + n).to(tl.int64) * keys.stride_v_token
    v = dequantise(load_rows(keys.value, v_rows, n, first, limit, form.HEAD_DIM_V, form.BLOCK_DV, MASKED), DTYPE, form.FP8)
    acc = matmul(p.to(DTYPE), v, acc)
    return acc, total, top


@triton.jit
def whole_tiles(rows, mask, form):
    """(begin, full_lo, full_hi, end): key tiles reach from begin to end; all rows see those of [full_lo, full_hi) whole."""
    begin = mask.first // form.BLOCK_N * form.BLOCK_N
    end = tl.cdiv(mask.limit, form.BLOCK_N) * form.BLOCK_N
    full_lo = tl.cdiv(mask.first, form.BLOCK_N) * form.BLOCK_N
    full_hi = mask.limit // form.BLOCK_N * form.BLOCK_N
    if form.HAS_LEFT:
        full_lo = tl.maximum(full_lo, tl.cdiv(rows.highest - mask.window_left, form.BLOCK_N) * form.BLOCK_N)
    if form.HAS_RIGHT:
        full_hi = tl.minimum(full_hi, (rows.lowest + mask.window_right + 1) // form.BLOCK_N * form.BLOCK_N)
    if form.TREE:
        full_hi = tl.minimum(full_hi, rows.context // form.BLOCK_N * form.BLOCK_N)
    full_lo = tl.minimum(full_lo, end)
    full_hi = tl.maximum(full_hi, full_lo)
    return begin, full_lo, full_hi, end


@triton.jit
def attend(q, acc, total, m, rows, keys, scores, mask, form):
    """Run the tile of rows over the keys of `mask`: first the tiles all rows see whole, then those that need a mask.

    Returns (acc, total, m): numerator, denominator and running maximum in log2 units.
    """
    begin, full_lo, full_hi, end = whole_tiles(rows, mask, form)

    # Block numbers are fetched one tile ahead, so that no load of the loop waits for another load of the same step.
    ahead = (
        row_pages(full_lo, keys.table, keys.stride_page, mask.first, mask.limit, form.BLOCK_SIZE, form.BLOCK_N)
        if form.PAGED
        else 0
    )
    for at in tl.range(full_lo, full_hi, form.BLOCK_N):
        start = tl.multiple_of(at, form.BLOCK_N)
        pages = ahead
        if form.PAGED:
            ahead = row_pages(
                start + form.BLOCK_N, keys.table, keys.stride_page, mask.first, mask.limit, form.BLOCK_SIZE, form.BLOCK_N
            )
        acc, total, m = attend_tile(q, acc, total, m, start, pages, rows, keys, scores, mask, form, False)

    left = (full_lo - begin) // form.BLOCK_N
    right = tl.maximum(end - full_hi, 0) // form.BLOCK_N
    for i in tl.range(0, left + right):
        at = tl.where(i < left, begin + i * form.BLOCK_N, full_hi + (i - left) * form.BLOCK_N)
        start = tl.multiple_of(at, form.BLOCK_N)
        pages = (
            row_pages(start, keys.table, keys.stride_page, mask.first, mask.limit, form.BLOCK_SIZE, form.BLOCK_N)
            if form.PAGED
            else 0
        )
        acc, total, m = attend_tile(q, acc, total, m, start, pages, rows, keys, scores, mask, form, True)
    return acc, total, m


@triton.jit
def visible_range(rows, seq_len, window_left, window_right, HAS_LEFT: tl.constexpr, HAS_RIGHT: tl.constexpr):
    """Keys [first, limit) that at least one of the rows sees."""
    first = 0
    limit = seq_len
    if HAS_LEFT:
        first = tl.maximum(rows.lowest - window_left, 0)
    if HAS_RIGHT:
        limit = tl.minimum(seq_len, rows.highest + window_right + 1)
    return first, limit
