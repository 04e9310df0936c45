"""Writing new keys and values into a paged cache, by the fastest code there is for the cache's device."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from attnkit.kernels.cpu import library

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


def write_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> str:
    """Store this step's keys and values in place, without waiting for the device where our kernels run.

    Args:
        key, value: [num_tokens, num_kv_heads, head_dim (head_dim_v)].
        key_cache, value_cache: [num_blocks, block_size, num_kv_heads, head_dim (head_dim_v)], any floating dtype.
        slot_mapping: [num_tokens] integers, block * block_size + place; negative: the token is not stored.
        k_scale, v_scale: value = scale * stored, for float8 caches, which are saturated to the format's range.

    Returns:
        The name of the code that ran.

    Raises:
        UnsupportedError: a layout that the device's kernel cannot address.
    """
    if key_cache.device.type in ("cuda", "xpu") and _has_triton():
        from attnkit.kernels.triton import cache_write

        return cache_write.write_kv_cache(key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale)
    key, key_cache = _as_stored(key, key_cache, k_scale)
    value, value_cache = _as_stored(value, value_cache, v_scale)
    by_rows = key.dtype == value.dtype and all(x.stride(-1) == 1 for x in (key, value, key_cache, value_cache))
    if key_cache.device.type == "cpu" and by_rows and _has_cpu_kernels():
        from attnkit.kernels.cpu.launch import store

        store(key, value, key_cache, value_cache, slot_mapping)
        return "cpu_store"
    kept = slot_mapping >= 0
    slots = slot_mapping[kept].long()
    for new, data in ((key, key_cache), (value, value_cache)):
        data[slots // data.shape[1], slots % data.shape[1]] = new[kept]
    return "torch_index_put"


def _as_stored(rows: Tensor, data: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Rows as they lie in the cache, and the cache; of float8 the bytes, as not every device can index that."""
    import torch

    if data.element_size() > 1:
        return rows.to(data.dtype), data
    limit = torch.finfo(data.dtype).max
    return (rows.float() / scale).clamp(-limit, limit).to(data.dtype).view(torch.uint8), data.view(torch.uint8)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _has_cpu_kernels() -> bool:
    return library.find() is not None
