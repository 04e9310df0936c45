"""PALLAS: TPU attention in JAX Pallas, our own kernels.

Takes torch tensors on the host (handed over through DLPack, without a copy) or JAX arrays, and returns the same kind. Off a TPU
the kernels run only in Pallas' interpreter, for tests; that is a provider of its own, present where
ATTNKIT_PALLAS_INTERPRET=1 is set.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.backends.torch_device import finish
from attnkit.hardware.device import Device
from attnkit.spec import AttentionOutput, PagedAttention

if TYPE_CHECKING:
    from attnkit.kernels.pallas.ahead import Signature

CAPABILITY = Capability(
    ops=frozenset({"paged"}),
    archs={"google": ("tpu-*",)},
    dtypes=frozenset({"float32", "bfloat16"}),
    head_dims=HeadDims(low=64, high=256, multiple_of=64),
    min_block_size=16,
    block_multiple=8,
    features=frozenset({"window", "softcap", "sinks", "alibi", "lse", "non_causal"}),
    deterministic=True,
)


def _pallas(call: PagedAttention, *, interpret: bool) -> AttentionOutput:
    from attnkit.kernels.pallas import ahead
    from attnkit.kernels.pallas.paged import paged_attention

    soft = call.softmax
    taken = (call.query, call.key_cache, call.value_cache, call.block_table, call.seq_lens, call.query_start_loc)
    arrays = [_to_jax(array) for array in taken]
    slopes, sinks = (None if array is None else _to_jax(array) for array in (soft.alibi_slopes, soft.sinks))
    asked = signature(call)
    lowered = None if interpret else ahead.load(asked)
    if lowered is not None:
        out, lse = lowered(*arrays, slopes, sinks)
    else:
        out, lse = paged_attention(*arrays, alibi_slopes=slopes, sinks=sinks, interpret=interpret, **asked.options)
    kernel = "pallas_paged_attention" + ("(interpreter)" if interpret else "(ahead)" if lowered is not None else "")
    return finish(call, _like(call.query, out), _like(call.query, lse) if call.return_lse else None, kernel)


def signature(call: PagedAttention) -> Signature:
    """What decides the kernel of this call."""
    from attnkit.kernels.pallas.ahead import Signature

    soft = call.softmax
    return Signature(
        query=tuple(call.query.shape),
        dtype=_dtype_name(call.query),
        key_cache=tuple(call.key_cache.shape),
        value_cache=tuple(call.value_cache.shape),
        cache_dtype=_dtype_name(call.key_cache),
        block_table=tuple(call.block_table.shape),
        max_query_len=call.max_query_len,
        max_seq_len=call.max_seq_len,
        softmax_scale=soft.softmax_scale,
        causal=soft.causal,
        window=soft.window,
        softcap=soft.softcap,
        alibi=soft.alibi_slopes is not None,
        sinks=soft.sinks is not None,
    )


def _device_of(_array: Any) -> Device:
    """Where JAX computes, whatever the array: a TPU takes arrays of the host, too."""
    import jax

    if jax.default_backend() != "tpu":
        return Device("cpu", "cpu", "CPU", platform.machine(), source="jax")
    name = jax.devices()[0].device_kind
    return Device("google", "tpu", name, "tpu-" + name.casefold().removeprefix("tpu ").replace(" ", "-"), source="jax")


def _dtype_name(array: Any) -> str:
    """bfloat16 …, of a torch tensor or a JAX array."""
    return str(array.dtype).rpartition(".")[2]


def _to_jax(tensor: Any) -> Any:
    """A JAX array over the same memory where the platform allows; JAX arrays pass through."""
    import jax

    if isinstance(tensor, jax.Array):
        return tensor
    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


def _like(example: Any, array: Any) -> Any:
    import jax

    if isinstance(example, jax.Array):
        return array
    import torch

    return torch.from_dlpack(array)


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "PALLAS",
        (
            Provider(
                "attnkit",
                CAPABILITY,
                partial(_pallas, interpret=False),
                ("jax>=0.10",),
                "our own Pallas kernels",
                kernels=("pallas_*",),
            ),
            Provider(
                "attnkit-interpreter",
                replace(CAPABILITY, archs={"cpu": ("*",)}),
                partial(_pallas, interpret=True),
                ("jax>=0.10", "attnkit-pallas-interpreter"),
                "the same kernels in Pallas' interpreter, for tests",
                kind="interpreter",
                kernels=("pallas_*(interpreter)",),
                to_get="off a TPU these kernels run only in the interpreter (ATTNKIT_PALLAS_INTERPRET=1), for tests",
            ),
        ),
        aliases=("PALLAS_VLLM_V1",),
        summary="TPU: paged prefill and decode in JAX Pallas",
        device_of=_device_of,
    ),
)
