"""From config.json to needs."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest

from attnkit.errors import UsageError
from attnkit.select.model_config import need_from_config, presets

PLAIN = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "torch_dtype": "float16"}


@pytest.fixture
def config(tmp_path: Path):
    def write(**changes) -> str:
        values = {k: v for k, v in {**PLAIN, **changes}.items() if v is not ...}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return str(tmp_path / "config.json")

    return write


@pytest.mark.parametrize(
    ("preset", "op", "heads", "dims", "kinds"),
    [
        ("llama-3", "paged", (32, 8), (128, 128), [set()]),
        ("qwen3", "paged", (32, 8), (128, 128), [set()]),
        ("qwen2.5-1m", "dual_chunk", (28, 4), (128, 128), [set()]),
        ("gemma-2", "paged", (16, 8), (256, 256), [{"softcap", "window"}, {"softcap"}]),
        ("gpt-oss", "paged", (64, 8), (64, 64), [{"sinks", "window"}, {"sinks"}]),
        ("deepseek-v3", "mla_decode", (128, 1), (576, 512), [set()]),
        ("phi-4-mini-flash", "differential", (40, 20), (64, 64), [{"window"}, set()]),
        ("qwen3-vl", "paged", (32, 8), (128, 128), [set()]),
        ("minicpm-v", "paged", (28, 4), (128, 128), [set()]),
    ],
)
def test_presets(preset, op, heads, dims, kinds) -> None:
    need = need_from_config(preset)
    assert [set(s.features) for s in need.specs] == kinds
    for spec in need.specs:
        assert (spec.op, spec.dtype) == (op, "bfloat16")
        assert (spec.num_heads, spec.num_kv_heads) == heads
        assert (spec.head_dim, spec.value_dim) == dims


def test_the_table_above_has_every_preset() -> None:
    mark = test_presets.pytestmark[0]
    assert {row[0] for row in mark.args[1]} == set(presets())


@pytest.mark.parametrize("preset", ["qwen3-vl", "minicpm-v"])
def test_a_vision_tower_is_a_need_of_its_own(preset: str) -> None:
    need = need_from_config(preset)
    assert need.vision is not None
    assert (need.vision.op, need.vision.head_dim, need.vision.block_size) == ("varlen", 72, None)
    assert need.vision.features == {"non_causal"}
    assert any("vision tower" in note for note in need.notes)
    assert need_from_config("llama-3").vision is None


def test_qwen2_vls_tower_has_its_width_under_another_name(config) -> None:
    need = need_from_config(config(vision_config={"embed_dim": 1280, "hidden_size": 3584, "num_heads": 16}))
    assert need.vision is not None and need.vision.head_dim == 80


def test_a_file_a_folder_and_the_block_size(config) -> None:
    path = config()
    assert need_from_config(path).specs == need_from_config(str(Path(path).parent)).specs
    assert need_from_config(path, block_size=64).specs[0].block_size == 64
    assert need_from_config(path).specs[0].dtype == "float16"


def test_the_dtype_that_is_asked_for_wins_and_is_noted(config) -> None:
    need = need_from_config("llama-3", dtype="float16")
    assert need.specs[0].dtype == "float16" and any("bfloat16" in n and "float16" in n for n in need.notes)
    assert need_from_config("llama-3", dtype="auto").specs[0].dtype == "bfloat16"
    assert any("assumed" in n for n in need_from_config(config(torch_dtype=...)).notes)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"sliding_window": 4096}, [True]),
        ({"sliding_window": 4096, "use_sliding_window": False}, [False]),
        ({"sliding_window": None}, [False]),
        ({"sliding_window": 1024, "model_type": "gemma3_text", "num_hidden_layers": 12}, [True, False]),
        ({"sliding_window": 8, "layer_types": ["full_attention", "linear_attention"]}, [False]),
    ],
)
def test_windows(config, changes, kinds) -> None:
    assert ["window" in s.features for s in need_from_config(config(**changes)).specs] == kinds


def test_nested_text_config(config) -> None:
    nested = need_from_config(config(num_attention_heads=..., text_config=dict(PLAIN, num_attention_heads=64)))
    assert nested.specs[0].num_heads == 64 and nested.specs[0].head_dim == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": ...}, "field 'num_attention_heads' is missing"),
        ({"num_attention_heads": "many"}, "field 'num_attention_heads' is 'many'"),
        ({"num_attention_heads": True}, "field 'num_attention_heads' is True"),
        ({"num_key_value_heads": 5}, "must divide the 32 attention heads"),
        ({"num_key_value_heads": -8}, "field 'num_key_value_heads' is -8"),
        ({"hidden_size": ...}, "field 'hidden_size' is missing"),
        ({"hidden_size": 4097}, "must be a multiple of 32 heads"),
        ({"torch_dtype": "int8"}, "field 'torch_dtype' is 'int8'; allowed: float16"),
        ({"kv_lora_rank": 512}, "field 'qk_rope_head_dim' is missing"),
        ({"layer_types": ["mamba"]}, "names no attention layer"),
    ],
)
def test_a_config_that_does_not_say_is_refused_with_file_and_field(config, changes, words) -> None:
    path = config(**changes)
    with pytest.raises(UsageError) as caught:
        need_from_config(path)
    assert words in str(caught.value) and path in str(caught.value)


def test_not_json_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n  "hidden_size": 1,\n  oops\n}')
    with pytest.raises(UsageError, match=r"config\.json:3: not JSON"):
        need_from_config(str(path))
    path.write_text("[1]")
    with pytest.raises(UsageError, match="is not a JSON object"):
        need_from_config(str(path))


def test_neither_file_nor_preset() -> None:
    with pytest.raises(UsageError, match="no such file"):
        need_from_config("somewhere/config.json")
    with pytest.raises(UsageError, match="Did you mean llama-3"):
        need_from_config("lama-3")


def test_every_preset_names_its_source_and_what_it_was_compared_with() -> None:
    text = resources.files("attnkit").joinpath("data/models/README.md").read_text("utf-8")
    sources, compared = text.split("## Compared with")
    for preset in presets():
        repository = next(line.split("|")[2].strip() for line in sources.splitlines() if line.startswith(f"| {preset} |"))
        assert repository.count("/") == 1, f"{preset}: {repository!r} is not an owner/name"
        assert f"| {preset} |" in compared
