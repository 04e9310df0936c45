"""vLLM's MLA backends on a decode call: a real `MLAAttention` layer, its cache, its builder, its `forward_mqa`.

Prefill through W_UV is not driven: attnkit's MLA call is the absorbed form that decoding uses.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from attnkit.engines.vllm.layer import MAX_LEN, allocate, common_metadata, default_dtype, interface, make_config, numbers
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Dtype, MlaDecode

NOPE_DIM = V_DIM = 128
"""Widths of DeepSeek's heads before absorption; decoding does not depend on them."""


@lru_cache(maxsize=16)
def _config(num_heads: int, kv_lora_rank: int, rope_dim: int, dtype: Dtype, kv_cache_dtype: str, block_size: int) -> Any:
    model = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "vocab_size": 128,
        "hidden_size": 256,
        "intermediate_size": 128,
        "moe_intermediate_size": 64,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 1,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "q_lora_rank": None,
        "kv_lora_rank": kv_lora_rank,
        "qk_nope_head_dim": NOPE_DIM,
        "qk_rope_head_dim": rope_dim,
        "v_head_dim": V_DIM,
        "max_position_embeddings": MAX_LEN,
        "torch_dtype": dtype,
    }
    return make_config(model, dtype, kv_cache_dtype, block_size)


def decode(name: str, call: MlaDecode) -> AttentionOutput:
    """Compute `call` with vLLM's MLA backend `name`.

    Raises:
        UnsupportedError: a sequence has more than one new token. EngineMovedError: vLLM's interface moved.
    """
    import torch

    from attnkit.backends.torch_common import read_cache, slots

    if call.max_query_len > 1:
        raise UnsupportedError(f"vLLM's {name} decodes one token a sequence; this batch has up to {call.max_query_len}")
    spec, device, rank = call.spec(), call.query.device, call.kv_lora_rank
    rope = spec.head_dim - rank
    size = call.kv_cache.shape[1]
    config = _config(spec.num_heads, rank, rope, spec.dtype, spec.kv_cache_dtype, size)
    prefix = f"model.layers.{next(numbers)}.self_attn.attn"
    with interface("its MLA layer"):
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.layers.attention import MLAAttention
        from vllm.platforms import current_platform
        from vllm.v1.attention.backends.registry import AttentionBackendEnum
    out = call.out if call.out is not None and call.out.is_contiguous() else None
    with set_current_vllm_config(config), default_dtype(call.query.dtype):
        try:
            with interface("building an MLA layer"):
                backend = AttentionBackendEnum[name].get_class()
                layer = MLAAttention(
                    num_heads=spec.num_heads,
                    scale=call.softmax_scale,
                    qk_nope_head_dim=NOPE_DIM,
                    qk_rope_head_dim=rope,
                    v_head_dim=V_DIM,
                    q_lora_rank=None,
                    kv_lora_rank=rank,
                    kv_b_proj=torch.nn.Linear(rank, spec.num_heads * (NOPE_DIM + V_DIM), bias=False),  # prefill's; not run
                    cache_config=config.cache_config,
                    prefix=prefix,
                    attn_backend=backend,
                ).to(device)
                cache_spec = layer.get_kv_cache_spec(config)
                kv_cache = allocate(backend, cache_spec, call.kv_cache.shape[0] + 1, config, call.block_table)
                cache = kv_cache.squeeze(1) if kv_cache.dim() == 4 else kv_cache
                builder = backend.get_builder_cls()(cache_spec, [prefix], config, torch.device(device))
                kept = torch.nonzero(call.query_start_loc.diff().cpu() > 0).flatten()
                lens = call.seq_lens.cpu()[kept].to(torch.int32)
                table = call.block_table[kept.to(device)].contiguous()
                slot = slots(table, lens.tolist(), size)
                rows = read_cache(call.kv_cache, slot, 1.0, call.query.dtype).flatten(1)
                last = torch.cumsum(lens, 0).to(device) - 1
                metadata = builder.build(
                    common_prefix_len=0,
                    common_attn_metadata=common_metadata(
                        device,
                        torch.arange(len(kept) + 1, dtype=torch.int32),
                        lens,
                        table.to(torch.int32) + 1,
                        (slot + size)[last],
                    ),
                )
            with torch.inference_mode():
                one = torch.ones((), dtype=torch.float32, device=device)
                layer.impl.do_kv_cache_update(
                    rows[:, :rank].contiguous(),
                    rows[:, None, rank:].contiguous(),
                    cache,
                    slot + size,
                    layer.kv_cache_dtype,
                    one,
                )
                layer._k_scale.fill_(call.kv_scale)
                layer._k_scale_float = call.kv_scale
                if getattr(layer.impl, "dcp_world_size", 1) == -1:  # as vLLM's layer does: nobody shares this context
                    layer.impl.dcp_world_size = 1
                if cache.dtype == torch.uint8:  # as vLLM's layer does before it calls its implementation
                    cache = cache.view(current_platform.fp8_dtype())
                found, _ = layer.impl.forward_mqa(call.query, cache, metadata, layer)
        finally:
            config.compilation_config.static_forward_context.pop(prefix, None)
    found = found.view(-1, spec.num_heads, rank)
    if out is not None:
        out.copy_(found)
        found = out
    elif call.out is not None:
        found = call.out.copy_(found)
    return AttentionOutput(found, None, f"vllm.{type(layer.impl).__name__}")
