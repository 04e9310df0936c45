"""The calls a contract is checked with: one plain one, and one for every feature and operation a provider claims.

All sizes differ from one another, so that none can take another's place unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attnkit.backends.base import Capability, arch_matches
from attnkit.hardware.device import Device
from attnkit.spec import Call, MlaDecode, PagedAttention, Softmax, VarlenAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

_QUERY_LENS, _SEQ_LENS = (5, 1), (37, 21)
_NUM_BLOCKS = 7
_KV_HEADS = 2
_LATENT, _ROPE = 512, 64


def calls(capability: Capability, device: Device) -> Iterator[tuple[str, Call]]:
    """Name and call for each operation and feature of `capability` on `device`; CPU tensors, random from a fixed seed."""
    import torch

    torch.manual_seed(3)
    dtype = _dtype(capability, device)
    for op in sorted(capability.ops):
        if op == "mla_decode":
            plain: Call = _mla(capability, dtype)
        elif op == "paged":
            plain = _paged(capability, dtype)
        else:
            plain = _varlen(dtype)
        yield op, plain
        for feature in sorted(capability.features - {"cross"}):  # the plain varlen call has unlike lengths already
            yield f"{op} {feature}", with_feature(plain, feature)
        if isinstance(plain, PagedAttention):
            for name in sorted(capability.kv_cache_dtypes - {"auto"}):
                yield f"{op} {name}", _with_float8(plain, name)


def with_feature(call: Call, feature: str) -> Call:
    """`call`, asking for `feature` too."""
    import torch

    assert isinstance(call, PagedAttention | VarlenAttention | MlaDecode)
    if feature == "lse":
        return replace(call, return_lse=True)
    assert not isinstance(call, MlaDecode), feature
    num_heads = call.query.shape[1]
    softmax = call.softmax
    if feature == "non_causal":
        softmax = replace(softmax, causal=False)
    elif feature == "window":
        softmax = replace(softmax, window=(11, 0))
    elif feature == "softcap":
        softmax = replace(softmax, softcap=23.0)
    elif feature == "alibi":
        softmax = replace(softmax, alibi_slopes=torch.rand(num_heads))
    else:
        assert feature == "sinks", feature
        softmax = replace(softmax, sinks=torch.rand(num_heads))
    return replace(call, softmax=softmax)


def _with_float8(call: PagedAttention, name: str) -> PagedAttention:
    import torch

    dtype = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[name]
    return replace(call, key_cache=call.key_cache.to(dtype), value_cache=call.value_cache.to(dtype), k_scale=0.5, v_scale=0.25)


def _dtype(capability: Capability, device: Device) -> Any:
    import torch

    needs = capability.bf16_needs
    bfloat16 = "bfloat16" in capability.dtypes and (needs is None or arch_matches(device, needs))
    return torch.bfloat16 if bfloat16 else torch.float16


def _block_size(capability: Capability) -> int:
    return max(capability.block_sizes) if capability.block_sizes else max(capability.min_block_size, 16)


def _starts(lens: tuple[int, ...]) -> Tensor:
    import torch

    return torch.tensor([0, *lens]).cumsum(0, dtype=torch.int32)


def _table(block_size: int) -> Tensor:
    import torch

    width = -(-max(_SEQ_LENS) // block_size)
    return torch.randperm(_NUM_BLOCKS)[: len(_SEQ_LENS) * width].reshape(len(_SEQ_LENS), width).to(torch.int32)


def _paged(capability: Capability, dtype: Any) -> PagedAttention:
    import torch

    block_size = _block_size(capability)
    cache = (_NUM_BLOCKS, block_size, _KV_HEADS, 64)
    return PagedAttention(
        query=torch.randn(sum(_QUERY_LENS), 8, 64, dtype=dtype),
        key_cache=torch.randn(cache, dtype=dtype),
        value_cache=torch.randn(cache, dtype=dtype),
        block_table=_table(block_size),
        seq_lens=torch.tensor(_SEQ_LENS, dtype=torch.int32),
        query_start_loc=_starts(_QUERY_LENS),
        max_query_len=max(_QUERY_LENS),
        max_seq_len=max(_SEQ_LENS),
        softmax=Softmax(softmax_scale=0.17),
    )


def _varlen(dtype: Any) -> VarlenAttention:
    import torch

    rows = (sum(_SEQ_LENS), _KV_HEADS, 64)
    return VarlenAttention(
        query=torch.randn(sum(_QUERY_LENS), 8, 64, dtype=dtype),
        key=torch.randn(rows, dtype=dtype),
        value=torch.randn(rows, dtype=dtype),
        query_start_loc=_starts(_QUERY_LENS),
        key_start_loc=_starts(_SEQ_LENS),
        max_query_len=max(_QUERY_LENS),
        max_seq_len=max(_SEQ_LENS),
        softmax=Softmax(softmax_scale=0.17),
    )


def _mla(capability: Capability, dtype: Any) -> MlaDecode:
    import torch

    block_size = _block_size(capability)
    heads = min(capability.num_heads) if capability.num_heads else 16
    return MlaDecode(
        query=torch.randn(len(_SEQ_LENS), heads, _LATENT + _ROPE, dtype=dtype),
        kv_cache=torch.randn(_NUM_BLOCKS, block_size, _LATENT + _ROPE, dtype=dtype),
        block_table=_table(block_size),
        seq_lens=torch.tensor(_SEQ_LENS, dtype=torch.int32),
        query_start_loc=_starts((1,) * len(_SEQ_LENS)),
        max_query_len=1,
        max_seq_len=max(_SEQ_LENS),
        kv_lora_rank=_LATENT,
        softmax_scale=0.07,
    )
