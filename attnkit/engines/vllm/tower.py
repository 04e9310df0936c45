"""vLLM's attention of vision and audio towers (`MMEncoderAttention`) as a backend of attnkit: packed sequences, without causal
mask or cache.

The layer itself is driven, with the backend that is asked for. Read in the source of 0.32.0, run with it on CPU.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from attnkit.backends.base import Backend, HeadDims, Provider
from attnkit.engines.vllm.layer import Geometry, default_dtype, interface, numbers, vllm_config, vllm_version, without_cache
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, AttentionSpec, Dtype, VarlenAttention

TOWER = "TOWER:"
DRIVEN: dict[str, tuple[str, ...]] = {"cpu": ("TORCH_SDPA",)}
"""Backends of towers that attnkit has driven, by vLLM's word for the platform."""
LAYER = "vllm.model_executor.layers.attention.mm_encoder_attention.MMEncoderAttention"

USUAL = AttentionSpec(
    "varlen",
    "bfloat16",
    16,
    16,
    80,
    block_size=None,
    phases=frozenset({"prefill"}),
    features=frozenset({"non_causal"}),
)
"""What is tested where no model is given: the layers of Qwen2-VL's tower."""


def tower_backend(prefix: str, name: str) -> Backend:
    """The towers' backend `name` ("TORCH_SDPA"), called prefix + "TOWER:" + name."""
    capability = without_cache(HeadDims(high=512))
    provider = Provider(f"vllm {vllm_version()}", capability, partial(_run, name=name), why="vLLM's own layer of a tower")
    return Backend(f"{prefix}{TOWER}{name}", (provider,), summary=f"{name} in vLLM's towers", automatic=False)


def _run(call: VarlenAttention, name: str) -> AttentionOutput:
    import torch

    if call.softmax.causal or call.query.shape[0] != call.key.shape[0]:
        raise UnsupportedError("vLLM's towers attend to their own tokens, without a causal mask")
    spec = call.spec()
    module = _layer(spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.dtype, call.softmax.softmax_scale, name)
    with interface("calling a tower's layer"):
        longest = torch.tensor(call.max_query_len, dtype=torch.int32)
    packed = (tensor.unsqueeze(0) for tensor in (call.query, call.key, call.value))
    with torch.inference_mode():
        out = module(*packed, cu_seqlens=call.query_start_loc, max_seqlen=longest).squeeze(0)
    if call.out is not None:
        call.out.copy_(out)
        out = call.out
    return AttentionOutput(out, None, f"vllm.MMEncoderAttention[{name}]")


def _layer(heads: int, kv_heads: int, dim: int, dtype: Dtype, scale: float, name: str) -> Any:
    import torch

    config = copy.copy(vllm_config(Geometry(heads, kv_heads, dim, dtype, "auto", 16)))
    with interface("building a tower's layer", ValueError, AssertionError):
        from vllm.config import MultiModalConfig, set_current_vllm_config
        from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention
        from vllm.v1.attention.backends.registry import AttentionBackendEnum

        config.model_config = copy.copy(config.model_config)
        config.model_config.multimodal_config = MultiModalConfig(mm_encoder_attn_backend=AttentionBackendEnum[name])
        with set_current_vllm_config(config), default_dtype(getattr(torch, dtype)):
            module = MMEncoderAttention(heads, dim, scale, kv_heads, prefix=f"visual.blocks.{next(numbers)}.attn")
        if module.attn_backend.name != name:
            raise ValueError(f"asked for {name}, its tower takes {module.attn_backend.name}")
    return module
