"""torch's scaled_dot_product_attention on contiguous tensors: FlashAttention 2 and cuDNN, and the math path on a CPU.

It knows no paged cache. For paged decode the cache is gathered into contiguous tensors before the timing, so that the answer is
the same and the layout is not: such a row does not count for the ratio.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attnkit.bench.peers.base import Peer, Run, Unsupported
from attnkit.spec import Call, PagedAttention, VarlenAttention


def _contiguous(call: PagedAttention | VarlenAttention) -> tuple[Tensor, Tensor, Tensor]:
    """query [batch, heads, new, head_dim], key and value [batch, kv_heads, length, head_dim] of a uniform batch."""
    batch = call.query_start_loc.shape[0] - 1
    tokens, heads, head_dim = call.query.shape
    if tokens != batch * call.max_query_len:
        raise Unsupported("sequences of unequal lengths")
    query = call.query.view(batch, call.max_query_len, heads, head_dim).transpose(1, 2)
    if isinstance(call, VarlenAttention):
        if call.key.shape[0] != batch * call.max_seq_len:
            raise Unsupported("sequences of unequal lengths")
        key, value = (x.view(batch, call.max_seq_len, *x.shape[1:]).transpose(1, 2) for x in (call.key, call.value))
        return query, key, value
    if call.key_cache.element_size() == 1:
        raise Unsupported("no float8 cache")
    _require_memory(2 * batch * call.max_seq_len * call.key_cache[0, 0].numel() * call.key_cache.element_size(), call)
    table = call.block_table.long()
    key, value = (
        x[table].flatten(1, 2)[:, : call.max_seq_len].transpose(1, 2).contiguous() for x in (call.key_cache, call.value_cache)
    )
    return query, key, value


def _require_memory(nbytes: int, call: PagedAttention) -> None:
    """A gather holds the result twice for a moment (before and after it is made contiguous)."""
    if call.query.is_cuda:
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        if 1.6 * nbytes > free:
            raise Unsupported(f"its contiguous copy needs {1.6 * nbytes / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")


class _Sdpa(Peer):
    package: ClassVar[str] = "torch"
    backend: ClassVar[str]

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        if not isinstance(call, PagedAttention | VarlenAttention):
            raise Unsupported(f"no {call.op}")
        if call.max_query_len not in (1, call.max_seq_len):
            raise Unsupported("no causal mask at the lower right corner without a mask tensor")
        query, key, value = _contiguous(call)
        backend = getattr(SDPBackend, self.backend)
        scale, causal = call.softmax.softmax_scale, call.max_query_len > 1

        def run() -> tuple[Tensor, str]:
            with sdpa_kernel(backend):
                out = torch.nn.functional.scaled_dot_product_attention(
                    query, key, value, is_causal=causal, scale=scale, enable_gqa=True
                )
            return out.transpose(1, 2).flatten(0, 1), f"sdpa.{self.backend.lower()}"

        return run


class Flash(_Sdpa):
    """FlashAttention 2, for prefill."""

    name: ClassVar[str] = "torch SDPA flash"
    groups: ClassVar[tuple[str, ...]] = ("prefill",)
    backend: ClassVar[str] = "FLASH_ATTENTION"


class Cudnn(_Sdpa):
    """cuDNN, for prefill."""

    name: ClassVar[str] = "torch SDPA cuDNN"
    groups: ClassVar[tuple[str, ...]] = ("prefill",)
    backend: ClassVar[str] = "CUDNN_ATTENTION"


class CudnnContiguous(Cudnn):
    """cuDNN, for decode over a contiguous copy of the cache."""

    name: ClassVar[str] = "torch SDPA cuDNN, contiguous"
    groups: ClassVar[tuple[str, ...]] = ("decode",)
    comparable: ClassVar[bool] = False


class Math(_Sdpa):
    """Plain torch operations: the peer on a CPU, for tests."""

    name: ClassVar[str] = "torch SDPA math"
    groups: ClassVar[tuple[str, ...]] = ("decode", "prefill")
    backend: ClassVar[str] = "MATH"
