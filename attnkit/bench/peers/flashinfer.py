"""FlashInfer: ragged and paged prefill (fa3), decode on tensor cores, MLA decode; prefill and decode apart for mixed batches.

Every set of inputs gets a wrapper of its own, planned before the timing. The modules must be there already: a benchmark does
not compile (FLASHINFER_DISABLE_JIT=1 turns a missing one into a row that says so).
"""

from __future__ import annotations

from functools import cache
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnkit.bench.peers.base import Peer, Run, Unsupported
from attnkit.spec import Call, MlaDecode, PagedAttention, VarlenAttention

WORKSPACE_BYTES = 512 << 20


@cache
def workspace(device: torch.device) -> Tensor:
    """The split buffers; runs are ordered on one stream, so one is enough for all wrappers."""
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


class _FlashInfer(Peer):
    package: ClassVar[str] = "flashinfer-python"
    modules: ClassVar[tuple[str, ...]] = ("flashinfer",)


class Ragged(_FlashInfer):
    """`BatchPrefillWithRaggedKVCacheWrapper`, fa3."""

    name: ClassVar[str] = "FlashInfer ragged fa3"
    groups: ClassVar[tuple[str, ...]] = ("prefill",)

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        from flashinfer import BatchPrefillWithRaggedKVCacheWrapper

        if not isinstance(call, VarlenAttention):
            raise Unsupported(f"no {call.op}")
        out = torch.empty_like(call.query) if call.out is None else call.out
        wrapper = BatchPrefillWithRaggedKVCacheWrapper(workspace(call.query.device), "NHD", backend="fa3")
        wrapper.plan(
            qo_indptr=call.query_start_loc,
            kv_indptr=call.key_start_loc,
            num_qo_heads=call.query.shape[1],
            num_kv_heads=call.key.shape[1],
            head_dim_qk=call.query.shape[2],
            causal=call.softmax.causal,
            sm_scale=call.softmax.softmax_scale,
            q_data_type=call.query.dtype,
            kv_data_type=call.key.dtype,
        )
        return lambda: (wrapper.run(call.query, call.key, call.value, out=out), "flashinfer.ragged.fa3")


class Paged(_FlashInfer):
    """`BatchPrefillWithPagedKVCacheWrapper`, fa3, for everything in one."""

    name: ClassVar[str] = "FlashInfer paged fa3"
    groups: ClassVar[tuple[str, ...]] = ("paged", "mixed")

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        if not isinstance(call, PagedAttention):
            raise Unsupported(f"no {call.op}")
        out = torch.empty_like(call.query) if call.out is None else call.out
        wrapper, query = prefill(call, range(call.seq_lens.shape[0])), call.query
        caches = (call.key_cache, call.value_cache)
        return lambda: (wrapper.run(query, caches, out=out), "flashinfer.paged.fa3")


class Decode(_FlashInfer):
    """`BatchDecodeWithPagedKVCacheWrapper` on tensor cores."""

    name: ClassVar[str] = "FlashInfer decode"
    groups: ClassVar[tuple[str, ...]] = ("decode", "fp8")

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        if not isinstance(call, PagedAttention) or call.max_query_len != 1:
            raise Unsupported("decode only")
        out = torch.empty_like(call.query) if call.out is None else call.out
        wrapper = decode(call, range(call.seq_lens.shape[0]))
        caches = (call.key_cache, call.value_cache)
        scales = {} if call.key_cache.element_size() > 1 else {"k_scale": call.k_scale, "v_scale": call.v_scale}
        return lambda: (wrapper.run(call.query, caches, out=out, **scales), "flashinfer.decode.tensor_cores")


class Split(_FlashInfer):
    """Prefill wrapper for the sequences with many new tokens, decode wrapper for the rest, as vLLM does it."""

    name: ClassVar[str] = "FlashInfer prefill fa3 + decode"
    groups: ClassVar[tuple[str, ...]] = ("mixed",)

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`; the sequences must come sorted, all prefills before all decodes."""
        if not isinstance(call, PagedAttention):
            raise Unsupported(f"no {call.op}")
        lengths = call.query_start_loc.diff().tolist()
        many = sum(length > 1 for length in lengths)
        if any(length == 1 for length in lengths[:many]) or not 0 < many < len(lengths):
            raise Unsupported("needs prefills before decodes")
        tokens = sum(lengths[:many])
        out = torch.empty_like(call.query) if call.out is None else call.out
        first, second = prefill(call, range(many)), decode(call, range(many, len(lengths)))
        caches = (call.key_cache, call.value_cache)

        def run() -> tuple[Tensor, str]:
            first.run(call.query[:tokens], caches, out=out[:tokens])
            second.run(call.query[tokens:], caches, out=out[tokens:])
            return out, "flashinfer.paged.fa3+decode"

        return run


class Mla(_FlashInfer):
    """`BatchMLAPagedAttentionWrapper`, fa3."""

    name: ClassVar[str] = "FlashInfer MLA fa3"
    modules: ClassVar[tuple[str, ...]] = ("flashinfer.mla",)
    groups: ClassVar[tuple[str, ...]] = ("mla",)

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        from flashinfer.mla import BatchMLAPagedAttentionWrapper

        if not isinstance(call, MlaDecode):
            raise Unsupported(f"no {call.op}")
        rank, device = call.kv_lora_rank, call.query.device
        indptr, indices, _ = pages(call, range(call.seq_lens.shape[0]))
        wrapper = BatchMLAPagedAttentionWrapper(workspace(device), backend="fa3")
        wrapper.plan(
            qo_indptr=call.query_start_loc,
            kv_indptr=indptr.to(device),
            kv_indices=indices,
            kv_len_arr=call.seq_lens,
            num_heads=call.query.shape[1],
            head_dim_ckv=rank,
            head_dim_kpe=call.query.shape[2] - rank,
            page_size=call.kv_cache.shape[1],
            causal=True,
            sm_scale=call.softmax_scale,
            q_data_type=call.query.dtype,
            kv_data_type=call.kv_cache.dtype,
        )
        latent, rope = call.query[..., :rank].contiguous(), call.query[..., rank:].contiguous()
        cache_latent, cache_rope = call.kv_cache[..., :rank], call.kv_cache[..., rank:]
        out = torch.empty_like(latent) if call.out is None else call.out
        return lambda: (wrapper.run(latent, rope, cache_latent, cache_rope, out=out), "flashinfer.mla.fa3")


def pages(call: PagedAttention | MlaDecode, seqs: range) -> tuple[Tensor, Tensor, Tensor]:
    """FlashInfer's page table of some sequences: indptr and length of the last page on the host, page numbers on the device."""
    size = (call.kv_cache if isinstance(call, MlaDecode) else call.key_cache).shape[1]
    lengths = call.seq_lens.tolist()
    counts = [-(-lengths[i] // size) for i in seqs]
    indptr = torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
    indices = torch.cat([call.block_table[i, :n] for i, n in zip(seqs, counts, strict=True)])
    last = torch.tensor([lengths[i] - (n - 1) * size for i, n in zip(seqs, counts, strict=True)], dtype=torch.int32)
    return indptr, indices, last


def prefill(call: PagedAttention, seqs: range) -> Any:
    """A planned paged prefill wrapper (fa3) for the sequences `seqs`, whose rows it takes from their first to their last."""
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    device = call.query.device
    starts = call.query_start_loc[seqs.start : seqs.stop + 1]
    indptr, indices, last = pages(call, seqs)
    wrapper = BatchPrefillWithPagedKVCacheWrapper(workspace(device), "NHD", backend="fa3")
    wrapper.plan(
        qo_indptr=(starts - starts[0]).to(torch.int32),
        paged_kv_indptr=indptr.to(device),
        paged_kv_indices=indices,
        paged_kv_last_page_len=last.to(device),
        num_qo_heads=call.query.shape[1],
        num_kv_heads=call.key_cache.shape[2],
        head_dim_qk=call.query.shape[2],
        page_size=call.key_cache.shape[1],
        causal=call.softmax.causal,
        sm_scale=call.softmax.softmax_scale,
        q_data_type=call.query.dtype,
        kv_data_type=call.key_cache.dtype,
    )
    return wrapper


def decode(call: PagedAttention, seqs: range) -> Any:
    """A planned decode wrapper (tensor cores) for the sequences `seqs`; a float8 cache needs fa2's mixed kernels."""
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    device = call.query.device
    indptr, indices, last = pages(call, seqs)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace(device), "NHD", use_tensor_cores=True, backend="fa2")
    wrapper.plan(
        indptr=indptr.to(device),
        indices=indices,
        last_page_len=last.to(device),
        num_qo_heads=call.query.shape[1],
        num_kv_heads=call.key_cache.shape[2],
        head_dim=call.query.shape[2],
        page_size=call.key_cache.shape[1],
        sm_scale=call.softmax.softmax_scale,
        q_data_type=call.query.dtype,
        kv_data_type=call.key_cache.dtype,
    )
    return wrapper
