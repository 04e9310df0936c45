"""The contract of a call, checked in one place for every backend: what a call of spec.py may hold.

Looks at shapes, strides, dtypes, devices and host numbers, so that nothing waits for a device; what the index tensors hold is
looked at where they lie on the CPU. A call that passes is honoured by a backend, or refused for what that does not claim.

Every message names the argument, what it is, and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any

from attnkit.errors import UsageError
from attnkit.spec import (
    Batch,
    Call,
    DifferentialAttention,
    DualChunkAttention,
    MlaDecode,
    PagedAttention,
    Softmax,
    TreeAttention,
    VarlenAttention,
    dtype_name,
)

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

_FLOATS = frozenset({"float32", "float16", "bfloat16", "float64"})
_FLOAT8 = frozenset({"float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"})


def check(call: Call) -> None:
    """Does a call hold what spec.py says?

    Raises:
        UsageError: names the argument, says what was given and what is allowed.
    """
    batch = call.batch
    _dims(batch.query, "query", "num_tokens, num_heads, head_dim")
    starts = batch.query_start_loc
    _dims(starts, "query_start_loc", "num_seqs + 1")
    _int32(starts, "query_start_loc")
    num_seqs = starts.shape[0] - 1
    if num_seqs < 0:
        raise UsageError("query_start_loc is empty; it has num_seqs + 1 entries")
    for name in ("max_query_len", "max_seq_len"):
        most = getattr(batch, name)
        if not (isinstance(most, int) and most >= 0):
            raise UsageError(f"{name} must be a Python int from 0 on, not {_given(most)}")
    if isinstance(batch, VarlenAttention):
        _check_varlen(batch, num_seqs)
    else:
        _check_cache(batch, num_seqs)
    _check_heads(call, batch)
    _check_softmax(batch)
    _check_devices(call)
    if batch.out is not None:
        _check_out(call, batch.out)
    if isinstance(call, TreeAttention):
        _check_tree(call)
    if isinstance(call, DualChunkAttention):
        _check_rope(call)
    if isinstance(call, DifferentialAttention):
        _check_difference(call)
    if starts.device.type == "cpu":
        _check_indices(batch)


def check_write(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor, k_scale: float, v_scale: float
) -> None:
    """Are the arguments of `attnkit.api.write_kv_cache` consistent?

    Raises:
        UsageError: as of `check`.
    """
    for name, new, cache, scale in (("key", key, key_cache, k_scale), ("value", value, value_cache, v_scale)):
        _dims(new, name, "num_tokens, num_kv_heads, head_dim")
        if not (cache.dim() == 4 and cache.shape[2:] == new.shape[1:] and cache.shape[1] > 0):
            raise UsageError(
                f"{name}_cache {_shape(cache)} does not hold rows of {name} {_shape(new)}: expected "
                f"[num_blocks, block_size, {new.shape[1]}, {new.shape[2]}]"
            )
        if _overlaps(cache):
            raise UsageError(f"{name}_cache has a stride of 0: several of its elements are one; strides {cache.stride()}")
        _scale(scale, f"{name[0]}_scale", cache)
    if not (slot_mapping.dim() == 1 and slot_mapping.shape[0] == key.shape[0] == value.shape[0]):
        raise UsageError(
            f"slot_mapping {_shape(slot_mapping)} must have one entry a token of key {_shape(key)} and value {_shape(value)}"
        )
    dtype = dtype_name(slot_mapping)
    if dtype not in ("int32", "int64"):
        raise UsageError(f"slot_mapping must be int32 or int64, not {dtype}")
    rest = {"value": value, "key_cache": key_cache, "value_cache": value_cache, "slot_mapping": slot_mapping}
    for name, tensor in rest.items():
        if tensor.device != key.device:
            raise UsageError(f"{name} is on {tensor.device}, key on {key.device}")
    slots = min(key_cache.shape[0] * key_cache.shape[1], value_cache.shape[0] * value_cache.shape[1])
    if slot_mapping.device.type == "cpu" and slot_mapping.numel():
        last = int(slot_mapping.max())
        if last >= slots:
            raise UsageError(f"slot_mapping holds {last}; the caches have slots 0 to {slots - 1}")


def _check_varlen(batch: VarlenAttention, num_seqs: int) -> None:
    width, dtype = batch.query.shape[2], batch.query.dtype
    if not (batch.key.dim() == 3 and batch.key.shape[2] == width):
        raise UsageError(
            f"key {_shape(batch.key)} must be [num_kv_tokens, num_kv_heads, {width}], as query {_shape(batch.query)} has it"
        )
    if not (batch.value.dim() == 3 and batch.value.shape[:2] == batch.key.shape[:2]):
        raise UsageError(f"value {_shape(batch.value)} must have the tokens and heads of key {_shape(batch.key)}")
    for name in ("key", "value"):
        found = getattr(batch, name)
        if found.dtype != dtype:
            raise UsageError(f"{name} is {dtype_name(found)}; it must be {dtype_name(batch.query)}, as query is")
    if batch.key_start_loc.shape != batch.query_start_loc.shape:
        raise UsageError(f"key_start_loc {_shape(batch.key_start_loc)} must be [{num_seqs + 1}], as query_start_loc is")
    _int32(batch.key_start_loc, "key_start_loc")


def _check_cache(batch: PagedAttention | MlaDecode, num_seqs: int) -> None:
    width = batch.query.shape[2]
    if isinstance(batch, MlaDecode):
        cache = batch.kv_cache
        if not (cache.dim() == 3 and cache.shape[2] == width):
            raise UsageError(
                f"kv_cache {_shape(cache)} must be [num_blocks, block_size, {width}], as query {_shape(batch.query)} is"
            )
        if not (isinstance(batch.kv_lora_rank, int) and 0 < batch.kv_lora_rank <= width):
            raise UsageError(f"kv_lora_rank {batch.kv_lora_rank} must lie in 1..{width}")
        _cache_dtype(cache, "kv_cache", batch.query)
        _scale(batch.kv_scale, "kv_scale", cache)
    else:
        cache = batch.key_cache
        if not (cache.dim() == 4 and cache.shape[3] == width):
            raise UsageError(
                f"key_cache {_shape(cache)} must be [num_blocks, block_size, num_kv_heads, {width}], "
                f"as query {_shape(batch.query)} has it"
            )
        if not (batch.value_cache.dim() == 4 and batch.value_cache.shape[:3] == cache.shape[:3]):
            raise UsageError(
                f"value_cache {_shape(batch.value_cache)} must have the blocks and heads of key_cache {_shape(cache)}"
            )
        _cache_dtype(cache, "key_cache", batch.query)
        if batch.value_cache.dtype != cache.dtype:
            raise UsageError(f"value_cache is {dtype_name(batch.value_cache)}; it must be {dtype_name(cache)}, as key_cache is")
        _scale(batch.k_scale, "k_scale", cache)
        _scale(batch.v_scale, "v_scale", cache)
    if cache.shape[1] <= 0:
        raise UsageError(f"a cache {_shape(cache)} has blocks of no token; block_size must be 1 or more")
    table, lens = batch.block_table, batch.seq_lens
    if not (table.dim() == 2 and table.shape[0] == num_seqs):
        raise UsageError(
            f"block_table {_shape(table)} must be [{num_seqs}, max_blocks]: query_start_loc has {num_seqs} sequences"
        )
    if tuple(lens.shape) != (num_seqs,):
        raise UsageError(f"seq_lens {_shape(lens)} must be [{num_seqs}]: query_start_loc has {num_seqs} sequences")
    _int32(table, "block_table")
    _int32(lens, "seq_lens")
    if batch.max_seq_len > table.shape[1] * cache.shape[1]:
        raise UsageError(
            f"max_seq_len {batch.max_seq_len} is more than block_table {_shape(table)} x {cache.shape[1]} tokens a block hold"
        )


def _check_heads(call: Call, batch: Batch) -> None:
    heads, width = batch.query.shape[1:]
    keys = (
        batch.key if isinstance(batch, VarlenAttention) else batch.kv_cache if isinstance(batch, MlaDecode) else batch.key_cache
    )
    kv_heads = 1 if isinstance(batch, MlaDecode) else keys.shape[-2]
    if not (heads > 0 and width > 0):
        raise UsageError(f"query {_shape(batch.query)} must have a head and a column at least")
    if not (kv_heads > 0 and heads % kv_heads == 0):
        raise UsageError(f"the number of query heads, {heads}, is not a multiple of the number of key heads, {kv_heads}")
    if isinstance(call, DifferentialAttention):
        if kv_heads % 2 != 0:
            raise UsageError(f"differential attention pairs heads: {kv_heads} key heads are not even")
        if batch.return_lse:
            raise UsageError("differential attention has two softmaxes and returns no log-sum-exp")


def _check_softmax(batch: Batch) -> None:
    if isinstance(batch, MlaDecode):
        _number(batch.softmax_scale, "softmax_scale", "a finite number")
        return
    softmax: Softmax = batch.softmax
    heads = batch.query.shape[1]
    _number(softmax.softmax_scale, "softmax_scale", "a finite number")
    _number(softmax.softcap, "softcap", "a finite number, 0 for none", 0.0)
    window = softmax.window
    if not (isinstance(window, tuple) and len(window) == 2 and all(isinstance(side, int) and side >= -1 for side in window)):
        raise UsageError(f"window {window!r} must be two integers, tokens to the left and to the right, -1 for unlimited")
    for name in ("alibi_slopes", "sinks"):
        given = getattr(softmax, name)
        if given is not None:
            if tuple(given.shape) != (heads,):
                raise UsageError(f"{name} {_shape(given)} must be [{heads}], one a query head")
            if dtype_name(given) not in _FLOATS:
                raise UsageError(f"{name} must be float32, not {dtype_name(given)}")


def _check_devices(call: Call) -> None:
    home = call.batch.query.device
    for name, tensor in _tensors(call):
        if tensor.device != home:
            raise UsageError(f"{name} is on {tensor.device}, query on {home}")


def _tensors(call: Call) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a call, with its argument's name."""
    holders = {id(holder): holder for holder in (call, call.batch, call.batch.softmax)}.values()
    for holder in holders:
        for name, value in vars(holder).items():
            if hasattr(value, "device"):
                yield name, value


def _check_out(call: Call, out: Tensor) -> None:
    shape = list(call.out_shape)
    query = call.batch.query
    if not (list(out.shape) == shape and out.dtype == query.dtype):
        raise UsageError(f"out {_shape(out)} {out.dtype} must be {shape} {query.dtype}")
    if _overlaps(out):
        raise UsageError(f"out has a stride of 0: several of its elements are one; shape {shape}, strides {out.stride()}")
    if out.numel():
        for name, tensor in _tensors(call):
            if name != "out" and tensor.data_ptr() == out.data_ptr():
                raise UsageError(f"out lies where {name} does; it must be apart from what is read")


def _check_tree(call: TreeAttention) -> None:
    mask = call.tree_mask
    if not (mask.dim() == 2 and mask.shape[0] == mask.shape[1] and dtype_name(mask) == "bool"):
        raise UsageError(f"tree_mask must be a square bool matrix, not {_shape(mask)} {mask.dtype}")
    nodes, longest = mask.shape[0], call.paged.max_query_len
    if nodes < longest:
        raise UsageError(f"tree_mask has {nodes} nodes, max_query_len is {longest}")


def _check_rope(call: DualChunkAttention) -> None:
    for name in ("chunk_size", "local_size"):
        size = getattr(call, name)
        if not (isinstance(size, int) and size >= 0):
            raise UsageError(f"{name} must be a number of tokens, not {_given(size)}")
    period, half = call.chunk_size - call.local_size, call.paged.query.shape[2] // 2
    if period <= 0:
        raise UsageError(f"local_size {call.local_size} must be smaller than chunk_size {call.chunk_size}")
    trained = call.original_max_position
    if not (trained is None or (isinstance(trained, int) and trained > 0)):
        raise UsageError(f"original_max_position must be positive, not {trained}")
    needed = max(min(2 * period, call.chunk_size + 1), period)
    for name, table in (("rope_cos", call.rope_cos), ("rope_sin", call.rope_sin)):
        if not (table.dim() == 2 and table.shape[0] >= needed and table.shape[1] == half):
            raise UsageError(
                f"{name} {_shape(table)} must be [at least {needed}, {half}] for chunk_size {call.chunk_size}, "
                f"local_size {call.local_size}"
            )


def _check_difference(call: DifferentialAttention) -> None:
    _number(call.lambda_full, "lambda_full", "a finite number")
    _number(call.lambda_init, "lambda_init", "a finite number")
    _number(call.eps, "eps", "a finite number from 0 on", 0.0)
    weight, width = call.norm_weight, call.out_shape[2]
    if weight is not None:
        if tuple(weight.shape) != (width,):
            raise UsageError(f"norm_weight {_shape(weight)} must be [{width}], twice the width of a value")
        if dtype_name(weight) not in _FLOATS:
            raise UsageError(f"norm_weight must be a floating dtype, not {dtype_name(weight)}")


def _check_indices(batch: Batch) -> None:
    """What index tensors on the CPU hold."""
    lens = _check_starts(batch.query_start_loc, "query", batch.query.shape[0], batch.max_query_len, "max_query_len")
    if isinstance(batch, VarlenAttention):
        _check_starts(batch.key_start_loc, "key", batch.key.shape[0], batch.max_seq_len, "max_seq_len")
        return
    seq_lens, table = batch.seq_lens.tolist(), batch.block_table
    for length in seq_lens:
        if not (0 <= length <= batch.max_seq_len):
            raise UsageError(f"seq_lens holds {length}; lengths lie in 0..{batch.max_seq_len}, max_seq_len")
    blocks, size = (batch.kv_cache if isinstance(batch, MlaDecode) else batch.key_cache).shape[:2]
    if table.numel():
        least, most = table.aminmax()
        if int(least) >= 0 and int(most) < blocks:
            return
    # Entries past a sequence's end and those of sequences without new tokens are never read, and may be anything.
    for seq, (new, length) in enumerate(zip(lens, seq_lens, strict=True)):
        for at, block in enumerate(table[seq, : -(-length // size)].tolist() if new else ()):
            if not (0 <= block < blocks):
                raise UsageError(f"block_table[{seq}, {at}] is {block}; the cache has {blocks} blocks")


def _check_starts(starts: Tensor, of: str, tokens: int, most: int, limit: str) -> list[int]:
    """`of`_start_loc, a prefix sum on the CPU; the lengths of the sequences."""
    ends = starts.tolist()
    if ends[0] != 0:
        raise UsageError(f"{of}_start_loc starts with {ends[0]}, not with 0")
    if ends[-1] > tokens:
        raise UsageError(f"{of}_start_loc ends with {ends[-1]}; {of} has {tokens} tokens")
    lens = [end - begin for begin, end in pairwise(ends)]
    for length in lens:
        if not (0 <= length <= most):
            raise UsageError(f"{of}_start_loc has a sequence of {length} tokens; lengths lie in 0..{most}, {limit}")
    return lens


def _cache_dtype(cache: Tensor, name: str, query: Tensor) -> None:
    dtype = dtype_name(cache)
    if not (cache.dtype == query.dtype or dtype in _FLOAT8):
        raise UsageError(
            f"{name} is {dtype}; it must be {dtype_name(query)}, as query is, or float8 ({', '.join(sorted(_FLOAT8))})"
        )


def _scale(scale: Any, name: str, cache: Tensor) -> None:
    _number(scale, name, "a finite number above 0, of the whole cache")
    if scale <= 0:
        raise UsageError(f"{name} must be a finite number above 0, not {scale}")
    float8 = cache.element_size() == 1
    if not (float8 or scale == 1.0):
        raise UsageError(f"a {name} of {scale} needs a float8 cache; this one is {cache.dtype}")


def _number(value: Any, name: str, allowed: str, least: float = -math.inf) -> None:
    ok = isinstance(value, Real) and math.isfinite(value) and float(value) >= least
    if not ok:
        raise UsageError(f"{name} must be {allowed}, not {_given(value)}")


def _given(value: Any) -> str:
    return f"a tensor {_shape(value)}" if hasattr(value, "shape") else repr(value)


def _dims(tensor: Tensor, name: str, dims: str) -> None:
    if tensor.dim() != dims.count(",") + 1:
        raise UsageError(f"{name} must be [{dims}], not {_shape(tensor)}")


def _int32(tensor: Tensor, name: str) -> None:
    dtype = dtype_name(tensor)
    if dtype != "int32":
        raise UsageError(f"{name} must be int32, not {dtype}")


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements are one because a dimension does not move."""
    return any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
