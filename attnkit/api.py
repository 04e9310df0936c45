"""The functions users call: check the arguments, choose a backend, run it.

    from attnkit.api import paged_attention
    result = paged_attention(query, key_cache, value_cache, block_table, seq_lens, query_start_loc, softmax_scale=0.125)

Every function takes `backend=NAME` (any spelling). A named backend works or raises `UnsupportedError` with the reasons; nothing
replaces it. Without a name, `attnkit.select` chooses for the device of the query, and the choice is kept per kind of call.

Shapes and dtypes are those of `attnkit.spec`, checked by `attnkit.contract`. Inconsistent arguments raise `UsageError`, which
names the argument, what was given and what is allowed.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from attnkit.backends import registry
from attnkit.backends.installed import installed_versions
from attnkit.backends.versions import Installed
from attnkit.contract import check, check_write
from attnkit.errors import NoBackendError, UsageError
from attnkit.hardware.device import Device
from attnkit.kernels import cache as cache_writer
from attnkit.select.choose import select
from attnkit.spec import (
    NO_WINDOW,
    AttentionOutput,
    AttentionSpec,
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
        UsageError: inconsistent arguments, or no such backend. UnsupportedError: the named backend cannot run this.
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

    check_write(key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale)
    with made_current(key.device):
        cache_writer.write_kv_cache(key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale)


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
    if starts.dim() != 1 or not starts.shape[0]:
        raise UsageError(f"{name} must be [num_seqs + 1], not {list(starts.shape)}")
    return int(starts.diff().max()) if starts.shape[0] > 1 else 0


def _largest(lens: Tensor) -> int:
    return int(lens.max()) if lens.numel() else 0
