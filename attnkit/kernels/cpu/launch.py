"""A call of attnkit on the compiled CPU kernels, and a write into a cache: pointers and strides; rows are read in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnkit.errors import UnsupportedError
from attnkit.kernels.cpu import library
from attnkit.spec import MlaDecode, PagedAttention, Softmax, VarlenAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


def attend(call: PagedAttention | VarlenAttention | MlaDecode) -> tuple[Tensor, Tensor | None, str]:
    """Compute `call` on as many threads as torch uses.

    Caches are read in place, whatever their strides, as long as the numbers of a row lie side by side.

    Returns:
        out [num_tokens, num_heads, head_dim_v] (`call.out` where it can be written to directly), lse [num_tokens, num_heads]
        float32 or None, the name of the kernel.

    Raises:
        UnsupportedError: a cache whose rows are not contiguous.
        CpuKernelsError: the kernels are not compiled here.
    """
    import torch

    if isinstance(call, MlaDecode):
        out, lse, kernel = attend(_over_latents(call))
        return out, lse, kernel + "_mla"
    softmax, query = call.softmax, call.query if call.query.stride(2) == 1 else call.query.contiguous()
    tokens, heads, dim = query.shape
    paged = isinstance(call, PagedAttention)
    key, value = (call.key_cache, call.value_cache) if isinstance(call, PagedAttention) else (call.key, call.value)
    for name, rows in (("key", key), ("value", value)):
        if rows.stride(-1) != 1:
            raise UnsupportedError(f"the CPU kernels need contiguous {name} rows; their elements are {rows.stride(-1)} apart")
    out = call.out
    if out is None or out.stride(2) != 1:
        out = query.new_empty(tokens, heads, value.shape[-1])
    lse = torch.empty(tokens, heads, dtype=torch.float32) if call.return_lse else None
    starts = call.query_start_loc
    slopes, sinks = (None if x is None else x.float() for x in (softmax.alibi_slopes, softmax.sinks))
    right = 0 if softmax.causal else softmax.window[1]
    k_strides, v_strides = key.stride(), value.stride()
    if isinstance(call, PagedAttention):
        table, lens, key_starts = call.block_table, call.seq_lens, None
        block_size, key_scale, value_scale = key.shape[1], call.k_scale, call.v_scale
    else:
        table, lens, key_starts = None, None, call.key_start_loc
        k_strides, v_strides = (0, *k_strides), (0, *v_strides)
        block_size, key_scale, value_scale = 1, 1.0, 1.0
    kernel = library.attention(
        library.Call(
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            out.data_ptr(),
            _pointer(lse),
            _pointer(table),
            _pointer(lens),
            _pointer(key_starts),
            starts.data_ptr(),
            _pointer(slopes),
            _pointer(sinks),
            query.stride(0),
            query.stride(1),
            *k_strides[:3],
            *v_strides[:3],
            out.stride(0),
            out.stride(1),
            *((0, 0) if table is None else table.stride()),
            *(0 if x is None else x.stride(0) for x in (lens, key_starts, starts, slopes, sinks)),
            starts.shape[0] - 1,
            heads,
            key.shape[-2],
            dim,
            value.shape[-1],
            block_size,
            softmax.window[0],
            right,
            library.dtype_number(query),
            library.dtype_number(key),
            torch.get_num_threads(),
            0,
            softmax.softmax_scale * key_scale,
            softmax.softcap,
            value_scale,
        )
    )
    return out, lse, kernel + ("" if paged else "_varlen")


def store(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor) -> None:
    """Write new keys and values into a paged cache, bit by bit as they are, whatever the strides of its rows.

    Args:
        key, value: [num_tokens, num_kv_heads, head_dim (head_dim_v)], of the caches' dtype.
        key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim (head_dim_v)].
        slots: [num_tokens] int64, block * block_size + place in the block; negative: padding, which is not written.

    Raises:
        UnsupportedError: rows that are not contiguous, or of another dtype than their cache.
        CpuKernelsError: the kernels are not compiled here.
    """
    import torch

    for name, rows, cache in (("key", key, key_cache), ("value", value, value_cache)):
        if not rows.dtype == cache.dtype == key.dtype or rows.shape[1:] != cache.shape[2:]:
            raise UnsupportedError(
                f"a {name} cache of {tuple(cache.shape)} {cache.dtype} cannot take {tuple(rows.shape)} {rows.dtype}"
            )
        if rows.stride(2) != 1 or cache.stride(3) != 1:
            raise UnsupportedError(f"the CPU kernels need contiguous {name} rows")
    slots = slots.to(torch.int64).contiguous()
    strides = (*key.stride()[:2], *value.stride()[:2], *key_cache.stride()[:3], *value_cache.stride()[:3])
    library.store(
        library.Store(
            key.data_ptr(),
            value.data_ptr(),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            slots.data_ptr(),
            *(stride * key.element_size() for stride in strides),
            slots.shape[0],
            key.shape[1],
            key.shape[2] * key.element_size(),
            value.shape[2] * value.element_size(),
            key_cache.shape[1],
            torch.get_num_threads(),
        )
    )


def _over_latents(call: MlaDecode) -> PagedAttention:
    """MLA's one key head: a whole row of the cache is the key, its latent part the value."""
    rows = call.kv_cache.unsqueeze(2)
    return PagedAttention(
        call.query,
        rows,
        rows[..., : call.kv_lora_rank],
        call.block_table,
        call.seq_lens,
        call.query_start_loc,
        call.max_query_len,
        call.max_seq_len,
        Softmax(call.softmax_scale),
        call.kv_scale,
        call.kv_scale,
        call.return_lse,
        call.out,
    )


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else int(tensor.data_ptr())
