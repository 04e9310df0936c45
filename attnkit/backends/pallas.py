"""PALLAS: TPU attention in JAX Pallas, our own kernels.

Takes torch tensors on the host (handed over through DLPack, without a copy) or JAX arrays, and returns the same kind. Off a TPU
the kernels run only in Pallas' interpreter, for tests; that is a provider of its own, present where
ATTNKIT_PALLAS_INTERPRET=1 is set.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Call, PagedAttention

_CAPABILITY = Capability(
    ops=frozenset({"paged"}),
    archs={"google": ("tpu-*",)},
    dtypes=frozenset({"float32", "bfloat16"}),
    head_dims=HeadDims(low=64, high=256, multiple_of=64),
    min_block_size=16,
    block_multiple=8,
    features=frozenset({"window", "softcap", "sinks", "alibi", "lse", "non_causal"}),
    deterministic=True,
)


class Pallas(Backend):
    """TPU attention over a paged cache."""

    name = "PALLAS"
    aliases = ("PALLAS_VLLM_V1",)
    summary = "TPU: paged prefill and decode in JAX Pallas"
    providers = (
        Provider("attnkit", _CAPABILITY, ("jax>=0.10",), "our own Pallas kernels"),
        Provider(
            "attnkit-interpreter",
            replace(_CAPABILITY, archs={"cpu": ("*",)}),
            ("jax>=0.10", "attnkit-pallas-interpreter"),
            "the same kernels in Pallas' interpreter, for tests",
        ),
    )

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        if not isinstance(call, PagedAttention):
            raise UnsupportedError(f"PALLAS implements paged attention, not {call.op}")
        import jax

        from attnkit.kernels.pallas.paged import paged_attention

        interpret = jax.default_backend() != "tpu"
        if interpret and provider == "attnkit":
            raise UnsupportedError("PALLAS needs a TPU; elsewhere it runs only in the interpreter, for tests")
        soft = call.softmax
        out, lse = paged_attention(
            _to_jax(call.query),
            _to_jax(call.key_cache),
            _to_jax(call.value_cache),
            _to_jax(call.block_table),
            _to_jax(call.seq_lens),
            _to_jax(call.query_start_loc),
            max_query_len=call.max_query_len,
            max_seq_len=call.max_seq_len,
            softmax_scale=soft.softmax_scale,
            causal=soft.causal,
            window=soft.window,
            softcap=soft.softcap,
            alibi_slopes=None if soft.alibi_slopes is None else _to_jax(soft.alibi_slopes),
            sinks=None if soft.sinks is None else _to_jax(soft.sinks),
            interpret=interpret,
        )
        kernel = "pallas_paged_attention" + ("(interpreter)" if interpret else "")
        result = _like(call.query, out)
        if call.out is not None:
            call.out.copy_(result)
            result = call.out
        return AttentionOutput(result, _like(call.query, lse) if call.return_lse else None, kernel)


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


BACKENDS: tuple[Backend, ...] = (Pallas(),)
