"""vLLM's layers of models without a decoder (`EncoderOnlyAttention`: BERT and its kind) as a backend of attnkit: packed
sequences, without causal mask or a cache that lasts.

The layer is vLLM's, its metadata come from the backend's own builder. Read in the source of 0.32.0, run with it on CPU.
"""

from __future__ import annotations

from functools import partial

from attnkit.backends.base import Backend, HeadDims, Provider
from attnkit.engines.vllm import layer_rows
from attnkit.engines.vllm.layer import (
    Geometry,
    common_metadata,
    default_dtype,
    interface,
    numbers,
    vllm_config,
    vllm_version,
    without_cache,
)
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, VarlenAttention

ENCODER = "ENCODER:"
DRIVEN: dict[str, tuple[str, ...]] = {"cpu": ("CPU_ATTN",)}
"""Backends that attnkit has driven so, by vLLM's word for the platform."""
BLOCK = 128


def encoder_backend(prefix: str, name: str) -> Backend:
    """vLLM's backend `name` ("CPU_ATTN") in layers without a decoder, called prefix + "ENCODER:" + name.

    Raises:
        EngineMovedError: vLLM is absent, its registry moved, or it has no such backend.
    """
    with interface("its registry of attention backends"):
        from vllm.v1.attention.backends.registry import AttentionBackendEnum

        sizes = AttentionBackendEnum[name].get_class().get_supported_head_sizes()
    capability = without_cache(HeadDims.of(*sizes) if sizes else HeadDims(high=512))
    provider = Provider(f"vllm {vllm_version()}", capability, partial(_run, name=name), why="vLLM's own layer of an encoder")
    return Backend(f"{prefix}{ENCODER}{name}", (provider,), summary=f"{name} in vLLM's encoders", automatic=False)


def _run(call: VarlenAttention, name: str) -> AttentionOutput:
    import torch

    if call.softmax.causal or call.query.shape[0] != call.key.shape[0]:
        raise UnsupportedError("vLLM's encoders attend to their own tokens, without a causal mask")
    spec, device = call.spec(), call.query.device
    config = vllm_config(Geometry(spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.dtype, "auto", BLOCK))
    prefix = f"encoder.layer.{next(numbers)}.attn"
    out = call.out if call.out is not None and call.out.is_contiguous() else torch.full_like(call.query, float("nan"))
    with interface("building an encoder's layer"):
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.layers.attention.encoder_only_attention import EncoderOnlyAttention
        from vllm.v1.kv_cache_interface import EncoderOnlyAttentionSpec
    with set_current_vllm_config(config), default_dtype(call.query.dtype), torch.inference_mode():
        try:
            with interface("building an encoder's layer", ValueError):
                module = EncoderOnlyAttention(
                    spec.num_heads,
                    spec.head_dim,
                    call.softmax.softmax_scale,
                    cache_config=config.cache_config,
                    num_kv_heads=spec.num_kv_heads,
                    prefix=prefix,
                ).to(device)
                if (took := layer_rows.backend_name(module)) != name:
                    raise ValueError(f"asked for {name}, its encoder takes {took}")
                cache = EncoderOnlyAttentionSpec(
                    block_size=BLOCK, num_kv_heads=spec.num_kv_heads, head_size=spec.head_dim, dtype=call.query.dtype
                )
                builder = module.attn_backend.get_builder_cls()(cache, [prefix], config, device)
            starts = call.query_start_loc.cpu().to(torch.int32)
            lens = starts.diff()
            kept = torch.cat([torch.zeros(1, dtype=torch.int32), torch.cumsum(lens[lens > 0], 0).to(torch.int32)])
            with interface("building its metadata"):
                common = common_metadata(
                    device,
                    kept,
                    lens[lens > 0],
                    torch.zeros(len(kept) - 1, 1, dtype=torch.int32, device=device),
                    torch.zeros(int(kept[-1]), dtype=torch.int64, device=device),
                    causal=False,
                )
                common.positions = torch.cat([torch.arange(n) for n in lens.tolist()]).to(device)
                metadata = builder.build(common_prefix_len=0, common_attn_metadata=common)
            module.impl.forward(module, call.query, call.key, call.value, torch.empty(0), metadata, output=out)
        finally:
            config.compilation_config.static_forward_context.pop(prefix, None)
    if call.out is not None and out is not call.out:
        call.out.copy_(out)
        out = call.out
    return AttentionOutput(out, None, f"vllm.EncoderOnlyAttention[{name}]")
