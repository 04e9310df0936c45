"""Paged attention for TPU: prefill, chunked prefill, decode and mixed batches in one kernel.

    out = softmax(bias(softcap(softmax_scale * q k^T)) + mask) v          over the pages of each sequence

The grid walks (sequence, tile of query rows, page). The block table is prefetched as scalars, so that the pipeline fetches page
`block_table[seq, page]` directly; running maximum, denominator and accumulator stay in scratch memory across pages (online
softmax: Milakov & Gimelshein, arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691).

Query rows of one key head are laid out token-major, the heads of the group inside: row = token * group + head_in_group. A page
block holds every key head, because Mosaic wants the last two block dimensions whole; the kernel unrolls over them.

Integer division on traced values uses `jax.lax.div`: `//` asks the local TPU for its kind and fails where there is none.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
MASKED = -1e30
"""Finite stand-in for minus infinity: exp underflows to 0 and inf - inf never happens."""


def _kernel(
    block_table: Any,
    seq_lens: Any,
    query_lens: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    slopes_ref: Any,
    sinks_ref: Any,
    out_ref: Any,
    lse_ref: Any,
    max_ref: Any,
    sum_ref: Any,
    acc_ref: Any,
    *,
    softmax_scale: float,
    causal: bool,
    window: tuple[int, int],
    softcap: float,
    group: int,
    use_alibi: bool,
    use_sinks: bool,
) -> None:
    seq, tile, page = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    num_pages = pl.num_programs(2)
    kv_heads, rows, _ = q_ref.shape[1:]
    block_size = k_ref.shape[1]
    seq_len, query_len = seq_lens[seq], query_lens[seq]

    @pl.when(page == 0)
    def _start() -> None:
        max_ref[...] = jnp.full(max_ref.shape, MASKED, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
        acc_ref[...] = jnp.zeros(acc_ref.shape, jnp.float32)

    row = tile * rows + jax.lax.broadcasted_iota(jnp.int32, (rows, block_size), 0)
    token = jax.lax.div(row, jnp.int32(group))
    q_pos = seq_len - query_len + token
    k_pos = page * block_size + jax.lax.broadcasted_iota(jnp.int32, (rows, block_size), 1)
    visible = (k_pos < seq_len) & (token < query_len)
    if causal:
        visible &= k_pos <= q_pos
    if window[0] >= 0:
        visible &= k_pos >= q_pos - window[0]
    if window[1] >= 0:
        visible &= k_pos <= q_pos + window[1]

    @pl.when(page * block_size < seq_len)
    def _accumulate() -> None:
        live = page * block_size + jax.lax.broadcasted_iota(jnp.int32, (block_size, 1), 0) < seq_len
        for head in range(kv_heads):
            q = q_ref[0, head]
            # Unused slots of the last page may hold NaN, and 0 * NaN is NaN: clear them in both operands.
            k = jnp.where(live, k_ref[0, :, head, :], 0).astype(q.dtype)
            v = jnp.where(live, v_ref[0, :, head, :], 0).astype(q.dtype)
            s = softmax_scale * jax.lax.dot_general(
                q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32, precision=_precision(q.dtype)
            )
            if softcap > 0.0:
                s = softcap * jnp.tanh(s / softcap)
            if use_alibi:
                s += slopes_ref[head] * (k_pos - q_pos).astype(jnp.float32)
            s = jnp.where(visible, s, MASKED)
            old_max = max_ref[head, :, :1]
            new_max = jnp.maximum(old_max, s.max(axis=1, keepdims=True))
            p = jnp.where(visible, jnp.exp(s - new_max), 0.0)
            rescale = jnp.exp(old_max - new_max)
            sum_ref[head] = jnp.broadcast_to(rescale * sum_ref[head, :, :1] + p.sum(axis=1, keepdims=True), sum_ref.shape[1:])
            acc_ref[head] = rescale * acc_ref[head] + jax.lax.dot_general(
                p.astype(v.dtype),
                v,
                (((1,), (0,)), ((), ())),
                preferred_element_type=jnp.float32,
                precision=_precision(v.dtype),
            )
            max_ref[head] = jnp.broadcast_to(new_max, max_ref.shape[1:])

    @pl.when(page == num_pages - 1)
    def _finish() -> None:
        for head in range(kv_heads):
            top, total, acc = max_ref[head, :, :1], sum_ref[head, :, :1], acc_ref[head]
            if use_sinks:
                sink = sinks_ref[head]
                new_top = jnp.maximum(top, sink)
                rescale = jnp.exp(top - new_top)
                total = rescale * total + jnp.exp(sink - new_top)
                acc, top = rescale * acc, new_top
            empty = total == 0.0
            out_ref[0, head] = jnp.where(empty, 0.0, acc / jnp.where(empty, 1.0, total)).astype(out_ref.dtype)
            lse = jnp.where(empty, -jnp.inf, top + jnp.log(jnp.where(empty, 1.0, total)))
            lse_ref[0, head] = jnp.broadcast_to(lse, lse_ref.shape[2:])


def _precision(dtype: Any) -> Any:
    """float32 operands must not be rounded to bfloat16 on the way into the matrix unit."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


@functools.partial(
    jax.jit,
    static_argnames=("max_query_len", "max_seq_len", "softmax_scale", "causal", "window", "softcap", "interpret"),
)
def paged_attention(
    query: jax.Array,
    key_cache: jax.Array,
    value_cache: jax.Array,
    block_table: jax.Array,
    seq_lens: jax.Array,
    query_start_loc: jax.Array,
    *,
    max_query_len: int,
    max_seq_len: int,
    softmax_scale: float,
    causal: bool = True,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: jax.Array | None = None,
    sinks: jax.Array | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Attention of packed new tokens over a paged cache.

    Args:
        query: [num_tokens, num_heads, head_dim], float32 or bfloat16.
        key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim].
        block_table: [num_seqs, max_blocks] int32; entries past the sequence are not followed.
        seq_lens: [num_seqs] int32; query_start_loc: [num_seqs + 1] int32.
        max_query_len, max_seq_len: host bounds on the entries.
        softmax_scale, causal, window, softcap, alibi_slopes [num_heads], sinks [num_heads]: as in `attnkit.spec.Softmax`.
        interpret: run in Pallas' interpreter (any platform).

    Returns:
        out [num_tokens, num_heads, head_dim] in the dtype of the query, lse [num_tokens, num_heads] float32.
    """
    num_tokens, num_heads, head_dim = query.shape
    num_blocks, block_size, kv_heads, value_dim = value_cache.shape
    num_seqs = seq_lens.shape[0]
    group = num_heads // kv_heads
    pages = min(-(-max_seq_len // block_size), block_table.shape[1])
    rows = min(_round_up(max_query_len * group, 8), 256)
    tiles = -(-max_query_len * group // rows)

    # Packed -> [num_seqs, kv_heads, tokens * group, head_dim], padded to whole tiles.
    padded = -(-tiles * rows // group)
    starts = query_start_loc[:-1]
    position = jnp.minimum(starts[:, None] + jnp.arange(padded)[None, :], num_tokens - 1)
    q = query[position].reshape(num_seqs, padded, kv_heads, group, head_dim).transpose(0, 2, 1, 3, 4)
    q = q.reshape(num_seqs, kv_heads, padded * group, head_dim)[:, :, : tiles * rows]

    def per_row(values: jax.Array | None) -> jax.Array:
        """[num_heads] -> [kv_heads, rows, 1], one value a query row (rows start at a multiple of `group`, see below)."""
        if values is None:
            return jnp.zeros((kv_heads, tiles * rows, 1), jnp.float32)
        by_head = values.astype(jnp.float32).reshape(kv_heads, group)
        return jnp.tile(by_head, (1, padded))[:, : tiles * rows, None]

    last = jnp.maximum(-(-seq_lens // block_size) - 1, 0).astype(jnp.int32)
    table = jnp.take_along_axis(block_table, jnp.minimum(jnp.arange(pages)[None, :], last[:, None]), axis=1)
    table = jnp.clip(table, 0, num_blocks - 1).astype(jnp.int32)
    query_lens = (query_start_loc[1:] - starts).astype(jnp.int32)

    row_block = pl.BlockSpec((1, kv_heads, rows, head_dim), lambda b, t, p, *_: (b, 0, t, 0))
    head_block = pl.BlockSpec((kv_heads, rows, 1), lambda b, t, p, *_: (0, t, 0))
    out, lse = pl.pallas_call(
        functools.partial(
            _kernel,
            softmax_scale=softmax_scale,
            causal=causal,
            window=window,
            softcap=softcap,
            group=group,
            use_alibi=alibi_slopes is not None,
            use_sinks=sinks is not None,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(num_seqs, tiles, pages),
            in_specs=[
                row_block,
                pl.BlockSpec((1, block_size, kv_heads, head_dim), lambda b, t, p, table, *_: (table[b, p], 0, 0, 0)),
                pl.BlockSpec((1, block_size, kv_heads, value_dim), lambda b, t, p, table, *_: (table[b, p], 0, 0, 0)),
                head_block,
                head_block,
            ],
            out_specs=[
                pl.BlockSpec((1, kv_heads, rows, value_dim), lambda b, t, p, *_: (b, 0, t, 0)),
                pl.BlockSpec((1, kv_heads, rows, LANES), lambda b, t, p, *_: (b, 0, t, 0)),
            ],
            scratch_shapes=[
                pltpu.VMEM((kv_heads, rows, LANES), jnp.float32),
                pltpu.VMEM((kv_heads, rows, LANES), jnp.float32),
                pltpu.VMEM((kv_heads, rows, value_dim), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((num_seqs, kv_heads, tiles * rows, value_dim), query.dtype),
            jax.ShapeDtypeStruct((num_seqs, kv_heads, tiles * rows, LANES), jnp.float32),
        ],
        interpret=interpret,
        name="attnkit_paged_attention",
    )(table, seq_lens.astype(jnp.int32), query_lens, q, key_cache, value_cache, per_row(alibi_slopes), per_row(sinks))

    # Back to packed tokens.
    token = jnp.arange(num_tokens)
    seq = jnp.searchsorted(query_start_loc, token, side="right") - 1
    first_row = (token - query_start_loc[seq]) * group
    row = first_row[:, None] + jnp.arange(group)[None, :]
    picked = out[seq[:, None], :, row]  # [num_tokens, group, kv_heads, value_dim]
    picked_lse = lse[seq[:, None], :, row, 0]
    return (
        picked.transpose(0, 2, 1, 3).reshape(num_tokens, num_heads, value_dim),
        picked_lse.transpose(0, 2, 1).reshape(num_tokens, num_heads),
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
