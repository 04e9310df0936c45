"""What a layer of vLLM needs, in attnkit's words, and which provider of the chosen backend serves it.

ATTNKIT_VLLM_BACKEND names the backend. A layer asks once, while the model is built; its calls then go to that provider.
"""

from __future__ import annotations

import os

import torch
from vllm.v1.attention.backend import AttentionType

from attnkit.backends.base import Accepted, Backend, Capability
from attnkit.backends.installed import first_provider
from attnkit.backends.registry import get
from attnkit.backends.torch_device import current_device
from attnkit.engines.vllm.plugin import VARIABLE
from attnkit.errors import UnsupportedError
from attnkit.hardware.device import Device
from attnkit.spec import AttentionSpec, Feature, KvCacheDtype, Op, Phase

ENCODERS = (AttentionType.ENCODER_ONLY, AttentionType.ENCODER)
FP8: dict[str, tuple[KvCacheDtype, torch.dtype]] = {
    "fp8": ("fp8_e4m3", torch.float8_e4m3fn),
    "fp8_e4m3": ("fp8_e4m3", torch.float8_e4m3fn),
    "fp8_e5m2": ("fp8_e5m2", torch.float8_e5m2),
}
"""attnkit's word and torch's dtype of each float8 cache of vLLM that attnkit reads."""


def chosen() -> Backend:
    """The backend that the environment names."""
    return get(os.environ[VARIABLE])


def device_here() -> Device:
    """The device of this process's vLLM platform."""
    from vllm.platforms import current_platform

    return current_device(current_platform.device_type)


def evaluate(spec: AttentionSpec) -> tuple[str | None, list[str]]:
    """The provider of the chosen backend that serves `spec` on this process's device, or None and every reason against."""
    backend = chosen()
    found = backend.evaluate(spec, device_here(), backend.installed())
    if isinstance(found, Accepted):
        return found.provider, []
    return None, [f"{backend.name}: {reason.message}" for reason in found.reasons]


def provider_for(spec: AttentionSpec) -> str:
    """The provider that serves `spec`.

    Raises:
        UnsupportedError: none does; the message lists every reason.
    """
    provider, reasons = evaluate(spec)
    if provider is None:
        raise UnsupportedError(f"this model's attention cannot be served ({VARIABLE}): " + "; ".join(reasons))
    return provider


def capability(op: Op) -> Capability:
    """What the chosen backend can do for `op` here: of the provider made for this device, else of its first."""
    backend = chosen()
    return (first_provider(backend, device_here(), op) or backend.providers[0]).capability


def dtype_name(dtype: torch.dtype) -> str:
    """'float16' for torch.float16."""
    return str(dtype).removeprefix("torch.")


def layer_requirements(
    *,
    head_size: int,
    dtype: torch.dtype,
    kv_cache_dtype: str | None,
    block_size: int | None,
    num_heads: int = 1,
    num_kv_heads: int = 1,
    attn_type: str = AttentionType.DECODER,
    features: frozenset[Feature] = frozenset(),
) -> AttentionSpec:
    """vLLM's words for a layer as a need.

    Raises:
        UnsupportedError: a cache format that attnkit has no word for.
    """
    encoder = attn_type in ENCODERS
    cache_dtype: KvCacheDtype = "auto"
    if kv_cache_dtype in FP8:
        cache_dtype = FP8[kv_cache_dtype][0]
    elif kv_cache_dtype not in (None, "auto", "float16", "bfloat16", "float32"):
        raise UnsupportedError(f"attnkit does not read vLLM's {kv_cache_dtype} cache; it reads auto, {', '.join(FP8)}")
    op: Op = "varlen" if encoder else "paged"
    phases: tuple[Phase, ...] = ("prefill",) if encoder else ("prefill", "decode", "mixed")
    return AttentionSpec(
        op=op,
        dtype=dtype_name(dtype),  # type: ignore[arg-type]
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_size,
        kv_cache_dtype="auto" if encoder else cache_dtype,
        block_size=None if encoder else block_size,
        phases=frozenset(phases),
        features=features | {"non_causal"} if encoder else features,
    )
