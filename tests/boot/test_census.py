"""The engine's own census as what boot validates."""

from __future__ import annotations

from attnkit.boot.census import ask, requirements
from attnkit.boot.towers import towers
from attnkit.engines.vllm import command as vllm_command
from attnkit.engines.vllm.census import count
from attnkit.hardware.device import Device
from attnkit.select.node import Node
from attnkit.select.plan import make_plan

DEVICE = Device("nvidia", "gpu", "H100", "sm_90")
NODE = Node(DEVICE, None, "given", "", None, False)
ROW = {
    "name": "",
    "class": "Attention",
    "kind": "decoder",
    "num_heads": 16,
    "num_kv_heads": 2,
    "head_dim": 128,
    "head_dim_v": 128,
}
FOUND = {"model": "/m", "architecture": "GptOssForCausalLM", "ranks": {"tensor": 4, "pipeline": 1}, "dtype": "bfloat16"}
ROWS = [
    ROW | {"backend": "FLASH_ATTN"},
    ROW | {"backend": "FLASH_ATTN", "window": 128, "sinks": True},
    ROW | {"backend": None, "kind": "vision"},
]


def test_what_the_engine_builds_is_what_is_validated() -> None:
    census = count(FOUND | {"block_size": 16, "layers": ROWS})
    plan = make_plan(NODE, requirements=requirements(census, "vLLM 0.33.0"), overrides={"tensor_parallel": 4})
    need = plan.requirements
    assert need.source == "vLLM 0.33.0: GptOssForCausalLM, one of 4 tensor-parallel ranks"
    assert [(s.num_heads, s.num_kv_heads, sorted(s.features)) for s in need.specs] == [
        (16, 2, []),
        (16, 2, ["sinks", "window"]),
    ], "of one rank already, and without the tower"
    assert [choice.kind.role for choice in plan.layers] == ["decoder", "decoder", "vision"]
    assert "1 decoder layers are computed by FLASH_ATTN where nothing else is asked for" in need.notes


def test_towers_are_needs_of_their_own_where_their_backend_can_be_driven() -> None:
    rows = [
        ROW | {"backend": "CPU_ATTN"},
        ROW | {"backend": "TORCH_SDPA", "kind": "vision", "head_dim": 72, "head_dim_v": 72},
        ROW | {"backend": "TORCH_SDPA", "kind": "audio"},
        ROW | {"backend": "transformers", "kind": "vision"},
    ]
    need = requirements(count(FOUND | {"block_size": 16, "layers": rows}), "vLLM 0.32.0")
    (tower,), unknown = towers(need, "cpu")
    assert (tower.candidate.test, tower.candidate.serves) == ("vllm:TOWER:TORCH_SDPA", "TORCH_SDPA")
    assert [(spec.op, spec.head_dim, sorted(spec.features)) for spec in tower.specs] == [
        ("varlen", 72, ["non_causal"]),
        ("varlen", 128, ["non_causal"]),
    ]
    assert unknown == [
        "1 vision layers (16/2 × 128) are not validated: attnkit cannot drive transformers as the engine's towers do"
    ]
    assert len(towers(need, "cuda")[1]) == 3, "not driven there yet, and said"


def test_nothing_is_asked_where_vllm_or_the_model_is_not_there() -> None:
    command = vllm_command.recognise(("vllm", "serve", "org/absent"))
    assert ask(command, {}) == (None, None)
    assert ask(None, {}) == (None, None)
