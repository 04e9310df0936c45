"""The functions users call: check the arguments, choose a backend, run it.

    from attnkit.api import paged_attention
    result = paged_attention(query, key_cache, value_cache, block_table, seq_lens, query_start_loc, softmax_scale=0.125)

Every function takes `backend=NAME` (any spelling). A named backend works or raises `UnsupportedError` with the reasons; nothing
replaces it. Without a name, `attnkit.select` chooses for the device of the query, and the choice is kept per kind of call.

Shapes and dtypes are those of `attnkit.spec`. Inconsistent shapes or dtypes raise `UsageError` with the shapes that were given.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from attnkit.backends import registry
from attnkit.backends.installed import installed_versions
from attnkit.backends.versions import Installed
from attnkit.errors import NoBackendError, UsageError
from attnkit.hardware.device import Device
from attnkit.kernels import cache as cache_writer
from attnkit.select.choose import select
from attnkit.spec import (
    NO_WINDOW,
    AttentionOutput,
    AttentionSpec,
    Batch,
    Call,
    DifferentialAttention,
    DualChunkAttention,
    MlaDecode,
    PagedAttention,
    Softmax,
    TreeAttention,
    VarlenAttention,
)

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


def run(call: Call, backend: str | None = None) -> AttentionOutput:
    """Run a call of spec.py, checked, on the backend named or chosen.

    Raises:
        UsageError: inconsistent shapes, or no such backend. UnsupportedError: the named backend cannot run this.
        NoBackendError: nothing can; the message has every reason.
    """
    check(call)
    name = choose(call) if backend is None else registry.canonical(backend)
    return registry.get(name).run(call)


def choose(call: Call) -> str:
    """The backend that `attnkit.select.choose` takes for this kind of call on the device of its tensors."""
    from attnkit.backends.torch_device import device_of

    return _chosen(device_of(call.batch.query), call.spec())


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    *,
    softmax_scale: float,
    max_query_len: int | None = None,
    max_seq_len: int | None = None,
    causal: bool = True,
    window: tuple[int, int] = NO_WINDOW,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    return_lse: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> AttentionOutput:
    """Attention of new tokens over a paged cache that holds their keys and values: prefill, decode, mixed batches.

    Args: as `attnkit.spec.PagedAttention` and `attnkit.spec.Softmax`. max_query_len and max_seq_len are read from the
    tensors where None, which waits for the device.
    """
    softmax = Softmax(softmax_scale, causal, window, softcap, alibi_slopes, sinks)
    longest = _longest(query_start_loc, "query_start_loc") if max_query_len is None else max_query_len
    total = _largest(seq_lens) if max_seq_len is None else max_seq_len
    call = PagedAttention(
        query,
        key_cache,
        value_cache,
        block_table,
        seq_lens,
        query_start_loc,
        longest,
        total,
        softmax,
        k_scale,
        v_scale,
        return_lse,
        out,
    )
    return run(call, backend)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    key_start_loc: Tensor | None = None,
    *,
    softmax_scale: float,
    max_query_len: int | None = None,
    max_seq_len: int | None = None,
    causal: bool = True,
    window: tuple[int, int] = NO_WINDOW,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> AttentionOutput:
    """Attention over packed sequences without a cache. key_start_loc None: keys are packed as the queries are.

    Args: as `attnkit.spec.VarlenAttention` and `attnkit.spec.Softmax`.
    """
    key_start_loc = query_start_loc if key_start_loc is None else key_start_loc
    softmax = Softmax(softmax_scale, causal, window, softcap, alibi_slopes, sinks)
    longest = _longest(query_start_loc, "query_start_loc") if max_query_len is None else max_query_len
    total = _longest(key_start_loc, "key_start_loc") if max_seq_len is None else max_seq_len
    call = VarlenAttention(query, key, value, query_start_loc, key_start_loc, longest, total, softmax, return_lse, out)
    return run(call, backend)


attention = varlen_attention


def mla_decode(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    *,
    kv_lora_rank: int,
    softmax_scale: float,
    max_query_len: int | None = None,
    max_seq_len: int | None = None,
    kv_scale: float = 1.0,
    return_lse: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> AttentionOutput:
    """Multi-head latent attention over the compressed cache, absorbed form. Args: as `attnkit.spec.MlaDecode`."""
    longest = _longest(query_start_loc, "query_start_loc") if max_query_len is None else max_query_len
    total = _largest(seq_lens) if max_seq_len is None else max_seq_len
    call = MlaDecode(
        query,
        kv_cache,
        block_table,
        seq_lens,
        query_start_loc,
        longest,
        total,
        kv_lora_rank,
        softmax_scale,
        kv_scale,
        return_lse,
        out,
    )
    return run(call, backend)


def tree_attention(paged: PagedAttention, tree_mask: Tensor, *, backend: str | None = None) -> AttentionOutput:
    """Verification of a speculative tree. Args: as `attnkit.spec.TreeAttention`."""
    return run(TreeAttention(paged, tree_mask), backend)


def dual_chunk_attention(
    paged: PagedAttention,
    *,
    chunk_size: int,
    local_size: int,
    rope_cos: Tensor,
    rope_sin: Tensor,
    original_max_position: int | None = None,
    backend: str | None = None,
) -> AttentionOutput:
    """Dual chunk attention over a cache of unrotated keys. Args: as `attnkit.spec.DualChunkAttention`."""
    return run(DualChunkAttention(paged, chunk_size, local_size, rope_cos, rope_sin, original_max_position), backend)


def differential_attention(
    paged: PagedAttention,
    *,
    lambda_full: float,
    lambda_init: float,
    norm_weight: Tensor | None = None,
    eps: float = 1e-5,
    backend: str | None = None,
) -> AttentionOutput:
    """Differential Transformer attention. Args: as `attnkit.spec.DifferentialAttention`."""
    return run(DifferentialAttention(paged, lambda_full, lambda_init, norm_weight, eps), backend)


def write_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Put new keys and values into a paged cache, in place.

    Args:
        key: [num_tokens, num_kv_heads, head_dim]; value: the same with head_dim_v.
        key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim (head_dim_v)], dtype of the key or float8.
        slot_mapping: [num_tokens] integers, block * block_size + position in the block; negative: the token is not stored.
        k_scale, v_scale: stored = value / scale, clamped to what float8 holds; 1.0 for other caches.
    """
    from attnkit.backends.torch_device import made_current

    for name, new, cache_ in (("key", key, key_cache), ("value", value, value_cache)):
        _need(new.dim() == 3, f"{name} must be [num_tokens, num_kv_heads, head_dim], not {_shape(new)}")
        _need(
            cache_.dim() == 4 and cache_.shape[2:] == new.shape[1:],
            f"{name}_cache {_shape(cache_)} does not hold rows of {name} {_shape(new)}: expected "
            f"[num_blocks, block_size, {new.shape[1]}, {new.shape[2]}]",
        )
        _need(cache_.is_contiguous(), f"{name}_cache must be contiguous")
    _need(
        slot_mapping.dim() == 1 and slot_mapping.shape[0] == key.shape[0] == value.shape[0],
        f"slot_mapping {_shape(slot_mapping)} must have one entry a token of key {_shape(key)} and value {_shape(value)}",
    )
    for cache_, scale in ((key_cache, k_scale), (value_cache, v_scale)):
        float8 = cache_.element_size() == 1
        _need(float8 or scale == 1.0, f"a scale of {scale} needs a float8 cache; this one is {cache_.dtype}")
    with made_current(key.device):
        cache_writer.write_kv_cache(key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale)


def check(call: Call) -> None:
    """Checks that the tensors of a call are consistent. Looks at shapes and dtypes only, so that nothing waits for the device.

    Raises:
        UsageError: with the shapes that were given and what was expected.
    """
    batch = call.batch
    _need(batch.query.dim() == 3, f"query must be [num_tokens, num_heads, head_dim], not {_shape(batch.query)}")
    _need(batch.query_start_loc.dim() == 1, f"query_start_loc must be [num_seqs + 1], not {_shape(batch.query_start_loc)}")
    num_seqs = batch.query_start_loc.shape[0] - 1
    _need(num_seqs >= 0, "query_start_loc is empty; it has num_seqs + 1 entries")
    _need(
        str(batch.query_start_loc.dtype) == "torch.int32",
        f"query_start_loc must be int32, not {str(batch.query_start_loc.dtype).removeprefix('torch.')}",
    )
    if isinstance(batch, VarlenAttention):
        _check_varlen(batch, num_seqs)
    else:
        _check_cache(batch, num_seqs)
    _check_heads(call, batch)
    _check_devices(batch)
    if isinstance(call, TreeAttention):
        nodes = call.tree_mask.shape[0]
        _need(
            call.tree_mask.dim() == 2 and nodes == call.tree_mask.shape[1] and str(call.tree_mask.dtype) == "torch.bool",
            f"tree_mask must be a square bool matrix, not {_shape(call.tree_mask)} {call.tree_mask.dtype}",
        )
        _need(nodes >= call.paged.max_query_len, f"tree_mask has {nodes} nodes, max_query_len is {call.paged.max_query_len}")
    if isinstance(call, DualChunkAttention):
        _check_rope(call)


def _check_varlen(batch: VarlenAttention, num_seqs: int) -> None:
    width = batch.query.shape[2]
    _need(
        batch.key.dim() == 3 and batch.key.shape[2] == width,
        f"key {_shape(batch.key)} must be [num_kv_tokens, num_kv_heads, {width}], as query {_shape(batch.query)} has it",
    )
    _need(
        batch.value.dim() == 3 and batch.value.shape[:2] == batch.key.shape[:2],
        f"value {_shape(batch.value)} must have the tokens and heads of key {_shape(batch.key)}",
    )
    _need(
        batch.key_start_loc.shape == batch.query_start_loc.shape,
        f"key_start_loc {_shape(batch.key_start_loc)} must be [{num_seqs + 1}], as query_start_loc is",
    )


def _check_cache(batch: PagedAttention | MlaDecode, num_seqs: int) -> None:
    width = batch.query.shape[2]
    if isinstance(batch, MlaDecode):
        _need(
            batch.kv_cache.dim() == 3 and batch.kv_cache.shape[2] == width,
            f"kv_cache {_shape(batch.kv_cache)} must be [num_blocks, block_size, {width}], as query {_shape(batch.query)} is",
        )
        _need(0 < batch.kv_lora_rank <= width, f"kv_lora_rank {batch.kv_lora_rank} must lie in 1..{width}")
    else:
        _need(
            batch.key_cache.dim() == 4 and batch.key_cache.shape[3] == width,
            f"key_cache {_shape(batch.key_cache)} must be [num_blocks, block_size, num_kv_heads, {width}], "
            f"as query {_shape(batch.query)} has it",
        )
        _need(
            batch.value_cache.dim() == 4 and batch.value_cache.shape[:3] == batch.key_cache.shape[:3],
            f"value_cache {_shape(batch.value_cache)} must have the blocks and heads of key_cache {_shape(batch.key_cache)}",
        )
    _need(
        batch.block_table.dim() == 2 and batch.block_table.shape[0] == num_seqs,
        f"block_table {_shape(batch.block_table)} must be [{num_seqs}, max_blocks]: query_start_loc has {num_seqs} sequences",
    )
    _need(
        tuple(batch.seq_lens.shape) == (num_seqs,),
        f"seq_lens {_shape(batch.seq_lens)} must be [{num_seqs}]: query_start_loc has {num_seqs} sequences",
    )
    for name in ("block_table", "seq_lens"):
        dtype = str(getattr(batch, name).dtype).removeprefix("torch.")
        _need(dtype == "int32", f"{name} must be int32, not {dtype}")
    size = (batch.kv_cache if isinstance(batch, MlaDecode) else batch.key_cache).shape[1]
    _need(
        batch.max_seq_len <= batch.block_table.shape[1] * size,
        f"max_seq_len {batch.max_seq_len} is more than block_table {_shape(batch.block_table)} x {size} tokens a block hold",
    )


def _check_heads(call: Call, batch: Batch) -> None:
    heads = batch.query.shape[1]
    kv_heads = (
        1 if isinstance(batch, MlaDecode) else (batch.key if isinstance(batch, VarlenAttention) else batch.key_cache).shape[-2]
    )
    _need(
        kv_heads > 0 and heads % kv_heads == 0,
        f"the number of query heads, {heads}, is not a multiple of the number of key heads, {kv_heads}",
    )
    if isinstance(call, DifferentialAttention):
        _need(kv_heads % 2 == 0, f"differential attention pairs heads: {kv_heads} key heads are not even")
        _need(not batch.return_lse, "differential attention has two softmaxes and returns no log-sum-exp")
    if not isinstance(batch, MlaDecode):
        for name in ("alibi_slopes", "sinks"):
            given = getattr(batch.softmax, name)
            if given is not None:
                _need(tuple(given.shape) == (heads,), f"{name} {_shape(given)} must be [{heads}], one a query head")
        _need(min(batch.softmax.window) >= -1, f"window {batch.softmax.window}: tokens to the left and right, -1 for unlimited")
    if batch.out is not None:
        shape = list(call.out_shape)
        _need(
            list(batch.out.shape) == shape and batch.out.dtype == batch.query.dtype,
            f"out {_shape(batch.out)} {batch.out.dtype} must be {shape} {batch.query.dtype}",
        )


def _check_devices(batch: Batch) -> None:
    home = batch.query.device
    for name, value in vars(batch).items():
        where = getattr(value, "device", home)
        _need(where == home, f"{name} is on {where}, query on {home}")


def _check_rope(call: DualChunkAttention) -> None:
    period, half = call.chunk_size - call.local_size, call.paged.query.shape[2] // 2
    _need(period > 0, f"local_size {call.local_size} must be smaller than chunk_size {call.chunk_size}")
    needed = max(min(2 * period, call.chunk_size + 1), period)
    for name, table in (("rope_cos", call.rope_cos), ("rope_sin", call.rope_sin)):
        _need(
            table.dim() == 2 and table.shape[0] >= needed and table.shape[1] == half,
            f"{name} {_shape(table)} must be [at least {needed}, {half}] for chunk_size {call.chunk_size}, "
            f"local_size {call.local_size}",
        )


@cache
def _installed() -> Installed:
    return installed_versions()


@cache
def _chosen(device: Device, spec: AttentionSpec) -> str:
    decision = select(device, spec, _installed())
    if decision.chosen is None:
        against = "; ".join(f"{r.backend}: {', '.join(reason.message for reason in r.reasons)}" for r in decision.rejected)
        raise NoBackendError(f"no backend can run {spec} on {device.name} ({device.arch}): {against}")
    return decision.chosen.backend


def _longest(starts: Tensor, name: str) -> int:
    _need(starts.dim() == 1 and starts.shape[0] > 0, f"{name} must be [num_seqs + 1], not {_shape(starts)}")
    return int(starts.diff().max()) if starts.shape[0] > 1 else 0


def _largest(lens: Tensor) -> int:
    return int(lens.max()) if lens.numel() else 0


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(otherwise)
