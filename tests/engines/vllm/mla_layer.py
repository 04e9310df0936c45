"""Run by test_vllm_mla.py in a process of its own: a real MLA layer of vLLM on a mixed batch, against float64.

    python mla_layer.py PLACE       (ATTNKIT_VLLM_BACKEND names the backend)

Prints one JSON line: the largest error of each sequence over the largest value, and the kernels that ran.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

HEADS, RANK, ROPE, WIDTH, PAGE = 4, 512, 64, 128, 16
NEW, LENGTHS = (1, 1, 7, 40), (9, 70, 53, 40)
"""Two decodes, a chunk over 46 cached tokens, a fresh prompt."""


class Projection(torch.nn.Linear):
    """What vLLM's linear layers are to the attention layer, without a tensor parallel group around them."""

    quant_method = None

    def forward(self, x: Any) -> Any:
        return super().forward(x), None


def expected(queries: list[Any], latents: list[Any], weight: Any, scale: float) -> list[Any]:
    """float64: expand every cached row, then plain causal attention."""
    found = []
    for query, rows in zip(queries, latents, strict=True):
        kv = (rows[:, :RANK].double() @ weight.double().T).view(-1, HEADS, 2 * WIDTH)
        key = torch.cat([kv[..., :WIDTH], rows[:, None, RANK:].double().expand(-1, HEADS, -1)], -1)
        scores = torch.einsum("qhd,khd->hqk", query.double(), key) * scale
        n, length = query.shape[0], rows.shape[0]
        hidden = torch.arange(length)[None, :] > torch.arange(length - n, length)[:, None]
        probabilities = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1)
        found.append(torch.einsum("hqk,khd->qhd", probabilities, kv[..., WIDTH:]))
    return found


def main(place: str) -> None:
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.attention import MLAAttention
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from attnkit.backends import registry
    from attnkit.engines.vllm import layer_mla as vllm_mla
    from attnkit.engines.vllm import plugin as vllm_plugin
    from attnkit.engines.vllm.layer import allocate, common_metadata, default_dtype
    from attnkit.engines.vllm.requirements import chosen

    vllm_plugin.register()
    ran: list[str] = []
    backend = registry.get(chosen().name)
    real = type(backend).run

    def counted(self: Any, call: Any, provider: str | None = None) -> Any:
        result = real(self, call, provider)
        ran.append(f"{call.op} {result.kernel}")
        return result

    type(backend).run = counted  # type: ignore[method-assign]
    draw = torch.Generator().manual_seed(0)
    scale = (WIDTH + ROPE) ** -0.5
    latents = [torch.randn(n, RANK + ROPE, generator=draw) for n in LENGTHS]
    queries = [torch.randn(n, HEADS, WIDTH + ROPE, generator=draw) for n in NEW]
    config = vllm_mla._config(HEADS, RANK, ROPE, "float32", "auto", PAGE)
    with set_current_vllm_config(config), default_dtype(torch.float32), torch.inference_mode():
        kv_b_proj = Projection(RANK, HEADS * 2 * WIDTH, bias=False)
        kv_b_proj.weight.copy_(torch.randn(HEADS * 2 * WIDTH, RANK, generator=draw) * RANK**-0.5)
        layer: Any = MLAAttention(
            num_heads=HEADS,
            scale=scale,
            qk_nope_head_dim=WIDTH,
            qk_rope_head_dim=ROPE,
            v_head_dim=WIDTH,
            q_lora_rank=None,
            kv_lora_rank=RANK,
            kv_b_proj=kv_b_proj,
            cache_config=config.cache_config,
            prefix="model.layers.0.self_attn.attn",
            attn_backend=AttentionBackendEnum[place].get_class(),
        )
        layer.process_weights_after_loading(torch.float32)
        pages = [-(-n // PAGE) for n in LENGTHS]
        table = torch.zeros(len(NEW), max(pages), dtype=torch.int32)
        order = torch.randperm(sum(pages), generator=draw).to(torch.int32) + 1
        for row, (first, count) in enumerate(zip([0, *torch.tensor(pages).cumsum(0).tolist()], pages)):  # noqa: B905
            table[row, :count] = order[first : first + count]
        position = [torch.arange(n) for n in LENGTHS]
        slots = [table[i, p // PAGE].long() * PAGE + p % PAGE for i, p in enumerate(position)]
        spec = layer.get_kv_cache_spec(config)
        cache = allocate(layer.attn_backend, spec, sum(pages) + 1, config, table).squeeze(1)
        builder = layer.attn_backend.get_builder_cls()(spec, [layer.layer_name], config, torch.device("cpu"))
        starts = torch.tensor([0, *torch.tensor(NEW).cumsum(0).tolist()], dtype=torch.int32)
        new = torch.cat([slot[-n:] for slot, n in zip(slots, NEW, strict=True)])
        lens = torch.tensor(LENGTHS, dtype=torch.int32)
        metadata = builder.build(0, common_metadata("cpu", starts, lens, table, new))
        rows, one = torch.cat(latents), torch.ones(())
        layer.impl.do_kv_cache_update(rows[:, :RANK], rows[:, None, RANK:], cache, torch.cat(slots), "auto", one)
        fresh = torch.cat([x[-n:] for x, n in zip(latents, NEW, strict=True)])
        out = torch.full((sum(NEW), HEADS * WIDTH), float("nan"))
        layer.forward_impl(
            torch.cat(queries), fresh[:, :RANK].contiguous(), fresh[:, None, RANK:].contiguous(), cache, metadata, out
        )
        got = out.view(-1, HEADS, WIDTH).double().split(list(NEW))
        oracle = expected(queries, latents, kv_b_proj.weight, scale)
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, oracle, strict=True)]
    print("ANSWER " + json.dumps({"errors": errors, "ran": ran, "impl": type(layer.impl).__name__}))


if __name__ == "__main__":
    main(sys.argv[1])
