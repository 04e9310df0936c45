"""FlashAttention 4 in CuTe DSL (flash-attn-4): varlen, and paged with pages of 16 or repacked to 128 tokens.

On sm_90 it splits no keys, so a small batch of decodes leaves most of the card idle; pages of 128 tokens go through the tensor
memory accelerator, smaller ones do not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnkit.bench.peers.base import Peer, Run, Unsupported
from attnkit.spec import Call, PagedAttention, VarlenAttention


class Fa4(Peer):
    """`flash_attn.cute.interface.flash_attn_varlen_func` on the workload's own layout."""

    name: ClassVar[str] = "FA4"
    package: ClassVar[str] = "flash-attn-4"
    modules: ClassVar[tuple[str, ...]] = ("flash_attn.cute.interface",)
    groups: ClassVar[tuple[str, ...]] = ("prefill", "paged", "mixed", "decode")

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        from flash_attn.cute.interface import flash_attn_varlen_func

        keys: dict[str, Any]
        if isinstance(call, VarlenAttention):
            key, value, keys = call.key, call.value, {"cu_seqlens_k": call.key_start_loc}
        elif isinstance(call, PagedAttention):
            key, value = call.key_cache, call.value_cache
            keys = {"seqused_k": call.seq_lens, "page_table": call.block_table}
        else:
            raise Unsupported(f"no {call.op}")

        def run() -> tuple[Tensor, str]:
            result = flash_attn_varlen_func(
                call.query,
                key,
                value,
                cu_seqlens_q=call.query_start_loc,
                max_seqlen_q=call.max_query_len,
                max_seqlen_k=call.max_seq_len,
                softmax_scale=call.softmax.softmax_scale,
                causal=call.softmax.causal,
                **keys,
            )
            return (result[0] if isinstance(result, tuple) else result), "fa4.varlen"

        return run


class Fa4Page128(Fa4):
    """The same on a cache repacked to pages of 128 tokens."""

    name: ClassVar[str] = "FA4, page 128"
    groups: ClassVar[tuple[str, ...]] = ("mixed", "paged", "decode")
    comparable: ClassVar[bool] = False

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        if not isinstance(call, PagedAttention):
            raise Unsupported(f"no {call.op}")
        return super().prepare(repacked(call, 128))


def repacked(call: PagedAttention, size: int) -> PagedAttention:
    """The same batch over a cache with blocks of `size` tokens.

    Raises:
        Unsupported: the copy does not fit the card's memory.
    """
    small = call.key_cache.shape[1]
    joined = size // small
    table = call.block_table
    columns = -(-table.shape[1] // joined)
    if call.query.is_cuda:
        free = torch.cuda.mem_get_info()[0]
        if 3 * call.key_cache.nbytes > free:
            raise Unsupported(f"a repacked copy needs {3 * call.key_cache.nbytes / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")
    wide = torch.nn.functional.pad(table, (0, columns * joined - table.shape[1])).long()
    caches = [
        cache[wide].view(table.shape[0] * columns, size, *cache.shape[2:]) for cache in (call.key_cache, call.value_cache)
    ]
    new = torch.arange(table.shape[0] * columns, dtype=torch.int32, device=table.device).view(table.shape[0], columns)
    return replace(call, key_cache=caches[0], value_cache=caches[1], block_table=new)
