"""The census: vLLM's own layers, counted by kind; without vLLM the child's answer is read from data."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from attnkit.cli import main
from attnkit.engines.vllm.census import Census, count, language_specs, take
from attnkit.errors import InconclusiveError, UsageError
from tools.engines.architecture_lines import of_census, of_reading, scales_as_known, slim
from tools.engines.census_table import judged, load

ROW: dict[str, Any] = {
    "class": "Attention",
    "kind": "decoder",
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 64,
    "head_dim_v": 64,
    "window": None,
    "scale": 0.125,
    "cache_dtype": "auto",
    "backend": "TRITON_ATTN",
}
FOUND: dict[str, Any] = {
    "model": "/models/m",
    "architecture": "SomeForCausalLM",
    "ranks": {"tensor": 2, "pipeline": 1},
    "dtype": "bfloat16",
    "block_size": 16,
}


def lines(census: Census) -> list[str]:
    """One line a kind: count, role, operation, heads, sizes, window, features, backend."""
    return [
        f"{one.kind.count} {one.kind.role} {one.kind.spec.op} {one.kind.spec.num_heads}/{one.kind.spec.num_kv_heads} x "
        f"{one.kind.spec.head_dim}/{one.kind.spec.value_dim} w={one.kind.window} {sorted(one.kind.spec.features)} {one.backend}"
        for one in census.counted
    ]


def test_layers_are_counted_by_kind_and_backend() -> None:
    mla = ROW | {"kind": "mla", "num_kv_heads": 1, "head_dim": 576, "head_dim_v": 512, "backend": "TRITON_MLA"}
    rows = [
        ROW,
        ROW | {"window": 128, "sinks": True},
        ROW,
        ROW | {"backend": "FLASH_ATTN"},
        ROW | {"cache_dtype": "fp8_e5m2", "softcap": 30.0},
        ROW | {"chunk": 8192, "alibi": True, "scale": 1.0},
        mla,
        mla | {"kind": "sparse_mla", "backend": "FLASHMLA_SPARSE"},
        ROW | {"kind": "cross"},
        ROW | {"kind": "encoder", "window": 65},
        ROW | {"kind": "vision", "backend": None},
        {"kind": "other", "what": "mamba2", "class": "MambaMixer2"},
        {"kind": "cache", "what": "DeepseekV32IndexerCache", "class": "DeepseekV32IndexerCache"},
    ]
    census = count(FOUND | {"layers": rows})
    assert (census.tensor, census.pipeline, census.architecture) == (2, 1, "SomeForCausalLM")
    assert lines(census) == [
        "2 decoder paged 8/2 x 64/64 w=None [] TRITON_ATTN",
        "1 decoder paged 8/2 x 64/64 w=128 ['sinks', 'window'] TRITON_ATTN",
        "1 decoder paged 8/2 x 64/64 w=None [] FLASH_ATTN",
        "1 decoder paged 8/2 x 64/64 w=None ['softcap'] TRITON_ATTN",
        "1 decoder paged 8/2 x 64/64 w=None ['alibi', 'chunked'] TRITON_ATTN",
        "1 decoder mla_decode 8/1 x 576/512 w=None [] TRITON_MLA",
        "1 decoder sparse_mla 8/1 x 576/512 w=None [] FLASHMLA_SPARSE",
        "1 cross varlen 8/2 x 64/64 w=None ['cross', 'non_causal'] TRITON_ATTN",
        "1 encoder varlen 8/2 x 64/64 w=64 ['non_causal', 'window'] TRITON_ATTN",
        "1 vision varlen 8/2 x 64/64 w=None ['non_causal'] None",
    ]
    assert [(o.what, o.count) for o in census.other] == [("mamba2", 1)]
    caches = [one.kind.spec.kv_cache_dtype for one in census.counted]
    assert caches[3] == "fp8_e5m2" and set(caches) == {"auto", "fp8_e5m2"}
    assert [one.kind.softmax_scale for one in census.counted][4] == 1.0
    assert len(list(language_specs(census))) == 8, "one backend or another makes no other shape; towers are apart"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed: the tests below ask it")
def test_without_vllm_it_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        UsageError, match="needs vllm, not installed here: pip install vllm, or run this in the platform's image"
    ):
        take(("--model", "m"))
    with pytest.raises(SystemExit, match="2"):
        main(["census", "--", "vllm", "serve", "m"])
    assert "needs vllm, not installed here" in capsys.readouterr().err


SLIDING = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_hidden_layers": 3,
    "sliding_window": 128,
    "vocab_size": 128,
    "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16",
}


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
@pytest.mark.parametrize(("options", "heads"), [((), "8/4"), (("-tp", "2"), "4/2"), (("-dp", "2", "-dpl", "1"), "8/4")])
def test_vllm_itself_is_asked(tmp_path: Path, options: tuple[str, ...], heads: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SLIDING))
    census = take(("--model", str(tmp_path), *options))
    assert [line.rsplit(" ", 1)[0] for line in lines(census)] == [f"3 decoder paged {heads} x 64/64 w=128 ['window']"]
    assert census.counted[0].backend is not None
    with pytest.raises(InconclusiveError, match="could not build the model"):
        take(("--model", str(tmp_path / "absent")))


ROWS: dict[str, dict[str, Any]] = load()["rows"]
"""docs/reports/architectures.json: `python -m tools.engines.census_table take`, written beside vLLM."""


def test_every_architecture_is_read_as_vllm_builds_it_or_refused() -> None:
    """The reader of this tree against vLLM's recorded census; rows are counted by vLLM, the reading is done here."""
    built = {name: row for name, row in ROWS.items() if "census" in row}
    again = {name: judged(row) for name, row in built.items()}
    differing = {name: (row["census"], row["reading"]) for name, row in again.items() if row["result"] == "different"}
    assert differing == {}
    assert {name: row["result"] for name, row in again.items()} == {name: row["result"] for name, row in built.items()}
    assert {row["result"] for row in built.values()} <= {"equal", "refused", "not understood"}
    assert len(built) >= 200 and sum(row["result"] == "equal" for row in built.values()) >= 150


def test_what_was_not_built_says_what_is_missing() -> None:
    missing = {name: row for name, row in ROWS.items() if "census" not in row}
    assert all(row["missing"] for row in missing.values())
    assert {row["result"] for row in missing.values()} == {"not loaded", "no configuration"}


@pytest.mark.parametrize(
    ("name", "changes", "result"),
    [
        ("Gemma3TextModel", {"sliding_window": 256}, "different"),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 300}, "different"),
        ("GraniteForCausalLM", {"attention_multiplier": 0.5}, "different"),
        ("DeepseekV3ForCausalLM", {"qk_nope_head_dim": 64}, "different"),
        ("LlamaForCausalLM", {"num_key_value_heads": 1}, "different"),
        ("LlamaForCausalLM", {"sliding_window": 256}, "not understood"),
        ("LlamaForCausalLM", {"num_key_value_heads": 3}, "refused"),
        ("MistralForCausalLM", {"num_hidden_layers": 3}, "different"),
        ("LlavaForConditionalGeneration", {"vision_feature_layer": -1}, "different"),
        ("LlavaForConditionalGeneration", {"vision_config": {"model_type": "eye"}}, "not understood"),
        ("Zamba2ForCausalLM", {}, "equal"),
    ],
)
def test_a_reading_that_is_not_the_census_is_noticed(name: str, changes: dict[str, Any], result: str) -> None:
    assert judged(ROWS[name] | {"config": ROWS[name]["config"] | changes})["result"] == result


def test_a_scale_that_the_engine_does_not_say_is_not_known() -> None:
    row = ROW | {"kind": "vision", "scale": None}
    line = "1 vision varlen 8/2 x 64/64 non_causal"
    assert of_census(FOUND | {"layers": [row]}) == [f"{line} scale not known"]
    assert of_census(FOUND | {"layers": [row | {"scale": 0.5}]}) == [f"{line} scale 0.5"]
    assert scales_as_known([f"{line} scale 0.25", "1 decoder"], [f"{line} scale not known"]) == [
        "1 decoder",
        f"{line} scale not known",
    ]


def test_what_does_not_bear_on_attention_is_left_out_of_the_report() -> None:
    config = SLIDING | {"vocab_size": 7, "text_config": None}
    less = slim(config)
    assert "vocab_size" not in less and of_reading(less) == of_reading(config)
