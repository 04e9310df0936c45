"""FLASHINFER and FLASHINFER_MLA: FlashInfer's paged prefill and decode, and its MLA decode.

A mixed batch is split: sequences with one new token go to the decode wrapper, the rest to the prefill wrapper, which is twice
as fast as one wrapper for all. Planning happens on every call here (a server plans once a step), so a call cannot be captured
in a graph. FlashInfer's log-sum-exp is of base 2. Of a row that sees no key it makes no defined output (its kernels for Hopper
average what they masked) and a finite log-sum-exp (-5e4): such rows are written here.

Index arrays are handed over on the device although planning copies them back. That copy waits for the call before, and must:
the page-locked buffer of one wrapper, from which its plan is still being copied, is the next wrapper's once the first is gone.

Sources: flashinfer/prefill.py, flashinfer/decode.py, flashinfer/mla.
"""

from __future__ import annotations

import math
from functools import cache
from math import log
from typing import Any

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.spec import AttentionOutput, MlaDecode, PagedAttention, VarlenAttention

_WORKSPACE_BYTES = 128 * 1024 * 1024  # what FlashInfer's documentation recommends
_LN2 = log(2.0)

_PAGED = Capability(
    ops=frozenset({"paged", "varlen"}),
    archs={"nvidia": ("sm_8*", "sm_9*", "sm_1*")},
    dtypes=frozenset({"float16", "bfloat16"}),
    head_dims=HeadDims.of(64, 128, 256),
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    features=frozenset({"non_causal", "window", "softcap", "lse"}),
    # It has a left window only; the right side needs the causal mask.
    conflicts=(frozenset({"window", "non_causal"}),),
)
_MLA_WRAPPER = Capability(
    ops=frozenset({"mla_decode"}),
    archs={"nvidia": ("sm_8*", "sm_9*")},
    dtypes=frozenset({"float16", "bfloat16"}),
    head_dims=HeadDims.of((576, 512)),
    phases=frozenset({"decode"}),
    features=frozenset({"lse"}),
)
_MLA_TRTLLM = Capability(
    ops=frozenset({"mla_decode"}),
    archs={"nvidia": ("sm_10*",)},
    dtypes=frozenset({"bfloat16"}),
    head_dims=HeadDims.of((576, 512)),
    block_sizes=frozenset({32, 64}),
    phases=frozenset({"decode"}),
    graphs=True,
)


def _flashinfer(call: PagedAttention | VarlenAttention) -> AttentionOutput:
    from attnkit.backends.torch_device import finish

    out, lse, kernel = _paged(call) if isinstance(call, PagedAttention) else _ragged(call)
    return finish(call, out, lse if call.return_lse else None, kernel)


@cache
def _workspace(device: Any) -> Any:
    """One workspace a device; zeroed because the TensorRT-LLM kernels keep their counters in it."""
    import torch

    return torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def _paged(call: PagedAttention) -> tuple[Any, Any, str]:
    import torch

    device = call.query.device
    query_lens, seq_lens = call.query_start_loc.diff().tolist(), call.seq_lens.tolist()
    starts = call.query_start_loc.tolist()
    out = call.query.new_zeros(*call.query.shape[:2], call.value_cache.shape[-1])
    lse = torch.full(call.query.shape[:2], float("-inf"), dtype=torch.float32, device=device)
    some = [i for i, (q, k) in enumerate(zip(query_lens, seq_lens, strict=True)) if q and k]
    decode = [i for i in some if query_lens[i] == 1]
    prefill = [i for i in some if query_lens[i] > 1]
    kernels = []
    for seqs, run in ((prefill, _run_prefill), (decode, _run_decode)):
        if not seqs:
            continue
        rows = torch.cat([torch.arange(starts[i], starts[i + 1], device=device) for i in seqs])
        part, part_lse = run(call, call.query[rows], seqs, query_lens, seq_lens)
        out[rows] = part
        lse[rows] = part_lse.float() * _LN2
        kernels.append(run.__name__.removeprefix("_run_"))
    return out, lse, "flashinfer." + ("+".join(kernels) or "nothing")


def _pages(call: PagedAttention | MlaDecode, block_size: int, seqs: list[int], seq_lens: list[int]) -> tuple[Any, Any, Any]:
    """FlashInfer's page table of the sequences `seqs`: indptr and last_page_len on the host, page indices on the device."""
    import torch

    counts = [-(-seq_lens[i] // block_size) for i in seqs]
    indptr = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    indices = torch.cat([call.block_table[i, :n] for i, n in zip(seqs, counts, strict=True)]).to(torch.int32)
    last = torch.tensor([seq_lens[i] - (n - 1) * block_size for i, n in zip(seqs, counts, strict=True)], dtype=torch.int32)
    return indptr, indices, last


def _scales(call: PagedAttention) -> dict[str, float]:
    return {} if call.key_cache.element_size() > 1 else {"k_scale": call.k_scale, "v_scale": call.v_scale}


def _run_prefill(call: PagedAttention, query: Any, seqs: list[int], query_lens: list[int], seq_lens: list[int]) -> Any:
    import torch
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    indptr, indices, last = _pages(call, call.key_cache.shape[1], seqs, seq_lens)
    query_indptr = torch.tensor([0, *(query_lens[i] for i in seqs)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    # The FA3 kernels take no float8 cache beside a 16-bit query.
    wrapper = BatchPrefillWithPagedKVCacheWrapper(
        _workspace(query.device), "NHD", backend="fa2" if call.key_cache.element_size() == 1 else "auto"
    )
    wrapper.plan(
        qo_indptr=query_indptr.to(query.device),
        paged_kv_indptr=indptr.to(query.device),
        paged_kv_indices=indices,
        paged_kv_last_page_len=last.to(query.device),
        num_qo_heads=query.shape[1],
        num_kv_heads=call.key_cache.shape[2],
        head_dim_qk=query.shape[2],
        page_size=call.key_cache.shape[1],
        causal=call.softmax.causal,
        sm_scale=call.softmax.softmax_scale,
        window_left=call.softmax.window[0],
        logits_soft_cap=call.softmax.softcap or None,
        q_data_type=query.dtype,
        kv_data_type=call.key_cache.dtype,
    )
    return wrapper.run(query, (call.key_cache, call.value_cache), return_lse=True, **_scales(call))


def _run_decode(call: PagedAttention, query: Any, seqs: list[int], query_lens: list[int], seq_lens: list[int]) -> Any:
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    indptr, indices, last = _pages(call, call.key_cache.shape[1], seqs, seq_lens)
    # Tensor cores are the prefill kernel on one row: any ratio of heads, and faster from a ratio of 4 on.
    wrapper = BatchDecodeWithPagedKVCacheWrapper(_workspace(query.device), "NHD", use_tensor_cores=True)
    wrapper.plan(
        indptr=indptr.to(query.device),
        indices=indices,
        last_page_len=last.to(query.device),
        num_qo_heads=query.shape[1],
        num_kv_heads=call.key_cache.shape[2],
        head_dim=query.shape[2],
        page_size=call.key_cache.shape[1],
        sm_scale=call.softmax.softmax_scale,
        window_left=call.softmax.window[0],
        logits_soft_cap=call.softmax.softcap or None,
        q_data_type=query.dtype,
        kv_data_type=call.key_cache.dtype,
    )
    return wrapper.run(query, (call.key_cache, call.value_cache), return_lse=True, **_scales(call))


def _ragged(call: VarlenAttention) -> tuple[Any, Any, str]:
    from flashinfer import BatchPrefillWithRaggedKVCacheWrapper

    wrapper = BatchPrefillWithRaggedKVCacheWrapper(_workspace(call.query.device), "NHD")
    wrapper.plan(
        qo_indptr=call.query_start_loc,
        kv_indptr=call.key_start_loc,
        num_qo_heads=call.query.shape[1],
        num_kv_heads=call.key.shape[1],
        head_dim_qk=call.query.shape[2],
        causal=call.softmax.causal,
        sm_scale=call.softmax.softmax_scale,
        window_left=call.softmax.window[0],
        logits_soft_cap=call.softmax.softcap or None,
        q_data_type=call.query.dtype,
        kv_data_type=call.key.dtype,
    )
    out, lse = wrapper.run(call.query, call.key, call.value, return_lse=True)
    lse = lse.float() * _LN2
    blind = _rows_without_keys(call)
    if blind:
        out[blind] = 0.0
        lse[blind] = float("-inf")
    return out, lse, "flashinfer.ragged"


def _rows_without_keys(call: VarlenAttention) -> list[int]:
    """Tokens that see no key: those of a sequence without keys and, under the causal mask, the first of one with fewer keys."""
    starts, ends = call.query_start_loc.tolist(), call.key_start_loc.tolist()
    rows: list[int] = []
    for i, start in enumerate(starts[:-1]):
        new, keys = starts[i + 1] - start, ends[i + 1] - ends[i]
        if call.softmax.causal or not keys:
            rows.extend(range(start, start + max(0, new - keys)))
    return rows


def _mla_wrapper(call: MlaDecode) -> AttentionOutput:
    import torch
    from flashinfer.mla import BatchMLAPagedAttentionWrapper

    from attnkit.backends.torch_device import finish

    rank, block_size = call.kv_lora_rank, call.kv_cache.shape[1]
    seq_lens = call.seq_lens.tolist()
    indptr, indices, _ = _pages(call, block_size, list(range(len(seq_lens))), seq_lens)
    wrapper = BatchMLAPagedAttentionWrapper(_workspace(call.query.device))
    # By name: FlashInfer 0.7 warns of positional arguments here, which it is about to drop.
    wrapper.plan(
        qo_indptr=call.query_start_loc,
        kv_indptr=indptr.to(call.query.device),
        kv_indices=indices,
        kv_len_arr=call.seq_lens,
        num_heads=call.query.shape[1],
        head_dim_ckv=rank,
        head_dim_kpe=call.query.shape[2] - rank,
        page_size=block_size,
        causal=True,
        sm_scale=call.softmax_scale,
        q_data_type=call.query.dtype,
        kv_data_type=call.kv_cache.dtype,
    )
    out, lse = wrapper.run(
        call.query[..., :rank].contiguous(),
        call.query[..., rank:].contiguous(),
        call.kv_cache[..., :rank],
        call.kv_cache[..., rank:],
        return_lse=True,
    )
    # A sequence without keys (the padding of a captured batch): nothing is written for its rows.
    tokens = call.query.shape[0]
    empty = torch.repeat_interleave(call.seq_lens == 0, call.query_start_loc.diff(), output_size=tokens)[:, None]
    out = out.masked_fill(empty[..., None], 0.0)
    lse = (lse.float() * _LN2).masked_fill(empty, -math.inf) if call.return_lse else None
    return finish(call, out, lse, "flashinfer.BatchMLAPagedAttentionWrapper")


def _mla_trtllm(call: MlaDecode) -> AttentionOutput:
    from flashinfer.mla import trtllm_batch_decode_with_kv_cache_mla

    from attnkit.backends.torch_device import by_sequence, finish

    query = by_sequence(call)
    out = trtllm_batch_decode_with_kv_cache_mla(
        query=query,
        kv_cache=call.kv_cache.unsqueeze(1),
        workspace_buffer=_workspace(query.device),
        qk_nope_head_dim=128,
        kv_lora_rank=call.kv_lora_rank,
        qk_rope_head_dim=query.shape[-1] - call.kv_lora_rank,
        block_tables=call.block_table,
        seq_lens=call.seq_lens,
        max_seq_len=call.max_seq_len,
        bmm1_scale=call.softmax_scale,
    )
    out = out.reshape(-1, query.shape[2], call.kv_lora_rank)
    return finish(call, out, None, "flashinfer.trtllm_batch_decode_with_kv_cache_mla")


_REQUIRES = ("torch>=2.8", "flashinfer-python>=0.3")

BACKENDS: tuple[Backend, ...] = (
    Backend(
        "FLASHINFER",
        (
            Provider(
                "flashinfer-python",
                _PAGED,
                _flashinfer,
                _REQUIRES,
                "FlashInfer; reads float8 caches",
                kind="kernel",
                kernels=("flashinfer.*",),
            ),
        ),
        aliases=("FLASHINFER_VLLM_V1",),
        summary="FlashInfer's prefill and decode kernels",
    ),
    Backend(
        "FLASHINFER_MLA",
        (
            Provider(
                "flashinfer-mla",
                _MLA_WRAPPER,
                _mla_wrapper,
                _REQUIRES,
                "FlashInfer's MLA wrapper",
                kind="kernel",
                kernels=("flashinfer.BatchMLAPagedAttentionWrapper",),
            ),
            Provider(
                "flashinfer-trtllm",
                _MLA_TRTLLM,
                _mla_trtllm,
                _REQUIRES,
                "TensorRT-LLM's kernels",
                kind="kernel",
                kernels=("flashinfer.trtllm_*",),
            ),
        ),
        summary="FlashInfer's MLA decode",
    ),
)
