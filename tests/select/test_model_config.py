"""From config.json to needs."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from attnkit.errors import NotUnderstoodError, UsageError
from attnkit.select.model_config import need_from_config, presets, read_config
from attnkit.select.model_types import RULES, WRAPPERS
from attnkit.spec import TOWERS, LayerKind

PLAIN = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "float16",
    "num_hidden_layers": 4,
}


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


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, None),
        ({"model_type": "gemma2", "head_dim": 128, "query_pre_attn_scalar": 144}, 144**-0.5),
        ({"model_type": "gemma2", "head_dim": 256}, None),
        ({"model_type": "granite", "attention_multiplier": 0.015625}, 0.015625),
        ({"model_type": "granite", "attention_multiplier": 128**-0.5}, None),
        ({"attention_multiplier": 0.5}, None),
    ],
)
def test_a_types_own_softmax_scale_is_read(changes: dict[str, Any], scale: float | None) -> None:
    for kind in read_config(PLAIN | changes, "config.json").layers:
        assert kind.softmax_scale == (None if scale is None else pytest.approx(scale))


def test_yarn_makes_deepseeks_scale_larger() -> None:
    (kind,) = need_from_config("deepseek-v3").layers
    assert kind.softmax_scale == pytest.approx(0.1352337788608801), (
        "model.py of DeepSeek-V3: 192 ** -0.5 * (0.1 ln 40 + 1) ** 2"
    )
    plain = json.loads(resources.files("attnkit").joinpath("data/models/deepseek-v3.json").read_text("utf-8"))
    (kind,) = read_config(plain | {"rope_scaling": None}, "config.json").layers
    assert kind.softmax_scale == pytest.approx(192**-0.5)


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
    need = need_from_config(
        config(model_type="qwen2_vl", vision_config={"embed_dim": 1280, "hidden_size": 3584, "num_heads": 16})
    )
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
        ({"sliding_window": 4096, "model_type": "mistral"}, [True]),
        ({"sliding_window": 4096, "model_type": "qwen2", "use_sliding_window": False}, [False]),
        ({"sliding_window": None, "model_type": "mistral"}, [False]),
        ({"sliding_window": 1024, "model_type": "gemma3_text", "num_hidden_layers": 12}, [True, False]),
        ({"model_type": "granitemoehybrid", "layer_types": ["attention", "mamba", "mamba", "mamba"]}, [False]),
    ],
)
def test_windows(config, changes, kinds) -> None:
    assert ["window" in s.features for s in need_from_config(config(**changes)).specs] == kinds


def test_nested_text_config(config) -> None:
    nested = need_from_config(
        config(model_type="llava", num_attention_heads=..., text_config=dict(PLAIN, num_attention_heads=64))
    )
    assert nested.specs[0].num_heads == 64 and nested.specs[0].head_dim == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "minicpm", "num_attention_heads": ...}, "field 'num_attention_heads' is missing"),
        ({"num_attention_heads": "many"}, "field 'num_attention_heads' is 'many'"),
        ({"num_attention_heads": True}, "field 'num_attention_heads' is True"),
        ({"num_key_value_heads": 5}, "it must be a divisor of the 32 attention heads"),
        ({"num_key_value_heads": -8}, "field 'num_key_value_heads' is -8"),
        ({"model_type": "minicpm", "hidden_size": ...}, "field 'hidden_size' is missing"),
        ({"hidden_size": 4097}, "must be a multiple of 32 heads"),
        ({"torch_dtype": "int8"}, "field 'torch_dtype' is 'int8'; allowed: float16"),
        ({"model_type": "kimi_k2", "kv_lora_rank": 512}, "field 'qk_rope_head_dim' is missing"),
        ({"model_type": "qwen3", "sliding_window": "4096"}, "field 'sliding_window' is '4096'; it must be a whole number"),
        (
            {"model_type": "qwen2", "use_sliding_window": "false"},
            "field 'use_sliding_window' is 'false'; it must be true or false",
        ),
        (
            {"layer_types": ["full_attention", "slidng_attention"] * 2},
            "'layer_types[1]' is 'slidng_attention'. Did you mean sliding_at",
        ),
        ({"layer_types": ["full_attention"]}, "field 'layer_types' has 1 entries for 4 layers"),
        ({"layer_types": ["sliding_attention"] * 4}, "names sliding_attention, but field 'sliding_window' is missing"),
        ({"layer_types": "full_attention"}, "field 'layer_types' is 'full_attention'; it must be a list"),
        ({"num_heads": 16}, "fields 'num_attention_heads' and 'num_heads' are the same thing, but are 32 and 16"),
        ({"model_type": 7}, "field 'model_type' is 7; it must be a text"),
        ({"model_type": "llava", "text_config": [1]}, "field 'text_config' is [1]; it must be an object"),
        (
            {"model_type": "gemma2", "attn_logit_softcapping": "50"},
            "field 'attn_logit_softcapping' is '50'; it must be a positive",
        ),
        (
            {"model_type": "bamba", "attn_layer_indices": ["1"]},
            "field 'attn_layer_indices' is ['1']; it must be a list of whole",
        ),
        ({"num_hidden_layers": 10**6}, "field 'num_hidden_layers' is 1000000; it must be"),
    ],
)
def test_a_config_that_does_not_say_is_refused_with_file_and_field(config, changes, words) -> None:
    path = config(**changes)
    with pytest.raises(UsageError) as caught:
        need_from_config(path)
    assert words in str(caught.value) and path in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": ...}, "field 'model_type': it is missing"),
        (
            {"model_type": "lama"},
            "field 'model_type': nobody here has read what model type 'lama' computes. Did you mean llama",
        ),
        ({"sliding_window": 4096}, "field 'sliding_window': it bears on attention"),
        ({"index_topk": 2048}, "field 'index_topk'"),
        ({"attn_logit_softcapping_by_layer": [1]}, "field 'attn_logit_softcapping_by_layer'"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "field 'position_embedding_type'"),
        ({"model_type": "gemma4_text", "use_bidirectional_attention": "all"}, "field 'use_bidirectional_attention'"),
        (
            {"model_type": "kimi_k2", "layer_types": ["linear_attention"] * 4} | {"kv_lora_rank": 512, "qk_rope_head_dim": 64},
            "layer_types",
        ),
        (
            {"model_type": "llava", "text_config": dict(PLAIN), "qformer_config": {"num_attention_heads": 12}},
            "field 'qformer_config'",
        ),
        ({"model_type": "llava", "text_config": dict(PLAIN, sliding_window=8)}, "field 'text_config.sliding_window'"),
        ({"model_type": "lfm2_moe"}, "field 'layer_types': it is missing"),
        ({"model_type": "arcee", "is_causal": False}, "field 'is_causal': engines differ"),
        (
            {"model_type": "kimi_k2", "is_causal": False, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128},
            "field 'is_causal'",
        ),
        ({"model_type": "gemma", "sliding_window": 256}, "field 'sliding_window'"),
        ({"model_type": "mimo", "sliding_window": 256}, "field 'sliding_window': vLLM has every layer"),
        (
            {"model_type": "mixtral", "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
            "field 'layer_types': vLLM builds",
        ),
        ({"attn_logit_softcapping": 30.0}, "field 'attn_logit_softcapping'"),
        ({"model_type": "bloom", "num_key_value_heads": ..., "head_dim": 64}, "field 'head_dim': model type 'bloom' computes"),
    ],
)
def test_what_bears_on_attention_and_is_not_known_is_not_understood(config, changes, words) -> None:
    path = config(**changes)
    with pytest.raises(NotUnderstoodError) as caught:
        need_from_config(path)
    assert words in str(caught.value) and path in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_tower_that_is_not_understood_leaves_the_decoder_standing(config) -> None:
    need = need_from_config(
        config(model_type="llava", text_config=dict(PLAIN), vision_config={"model_type": "eye", "num_heads": 2})
    )
    assert [k.role for k in need.layers] == ["decoder"]
    assert "field 'vision_config.model_type': nobody here has read what 'eye' computes" in need.not_understood[0]


def test_a_key_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llama", "a": {"num_heads": 1, "num_heads": 2}}')
    with pytest.raises(UsageError, match="key 'num_heads' is given twice"):
        need_from_config(str(path))
    path.write_text('{"model_type": ' + "[" * 100_000)
    with pytest.raises(UsageError):
        need_from_config(str(path))
    path.write_text('{"model_type": "mamba", "num_hidden_layers": 2, "time_step_limit": [0.0, Infinity]}')
    assert need_from_config(str(path)).other[0].count == 2, "state-space models are published so"
    path.write_text('{"hidden_size": ' + "9" * 6000 + "}")
    with pytest.raises(UsageError, match="more than 64 bits"):
        need_from_config(str(path))


CASES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data/models.json").read_text("utf-8"))
"""Configurations as people have them, less what does not bear on attention; their layers read from the models' own code."""


def layer_line(kind: LayerKind) -> str:
    spec = kind.spec
    parts = [f"{kind.count} {kind.role} {spec.op} {spec.num_heads}/{spec.num_kv_heads} x {spec.head_dim}/{spec.value_dim}"]
    parts += [f"window {kind.window}{' both' if kind.two_sided else ''}"] if kind.window else []
    parts += [f"chunk {kind.chunk}"] if kind.chunk else []
    parts += [f"scale {kind.softmax_scale:.3g}"] if kind.softmax_scale else []
    assert ("window" in spec.features, "chunked" in spec.features) == (kind.window is not None, kind.chunk is not None)
    return " ".join([*parts, *sorted(spec.features - {"window", "chunked"})])


@pytest.mark.parametrize("name", CASES)
def test_every_layer_of_models_as_people_have_them(name: str) -> None:
    need = read_config(CASES[name]["config"], name)
    lines = [*map(layer_line, need.layers), *(f"{o.count} other: {o.what}" for o in need.other)]
    assert lines == CASES[name]["layers"]
    assert need.not_understood == ()
    assert set(need.specs) == {kind.spec for kind in need.layers if kind.role not in TOWERS}


def test_the_committed_table_of_model_types_is_what_the_reader_says() -> None:
    """Types that transformers knows: none became another thing since the table was written with its classes."""
    table = json.loads((Path(__file__).parents[1] / "data/model-types.json").read_text("utf-8"))["types"]
    answers = Counter(kind for kind, _ in table.values())
    assert answers["read"] >= 200 and sum(answers.values()) >= 800
    known = {*RULES, *WRAPPERS}
    assert [
        name for name, (_, why) in table.items() if name in known and "nobody here has read what model type" in str(why)
    ] == []


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


def test_a_prompt_without_a_causal_mask_is_a_feature_of_a_decoder() -> None:
    text = {"model_type": "gemma", "hidden_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 1}
    text |= {"head_dim": 256, "num_hidden_layers": 18, "use_bidirectional_attention": True}
    need = read_config({"model_type": "paligemma", "text_config": text}, "paligemma")
    assert [(k.role, k.count, sorted(k.spec.features)) for k in need.layers if k.role not in TOWERS] == [
        ("decoder", 18, ["prefix_lm"])
    ]


def test_types_that_heed_is_causal_are_encoders_without_it(config) -> None:
    need = need_from_config(config(model_type="mistral", sliding_window=128, architectures=["MistralBidirectionalModel"]))
    assert [(k.role, k.window, k.two_sided) for k in need.layers] == [("encoder", 127, True)]
    assert [k.role for k in need_from_config(config(is_causal=False)).layers] == ["encoder"]


@pytest.mark.parametrize(
    ("changes", "features"),
    [
        ({"model_type": "granite"}, [set()]),
        ({"model_type": "granite", "layer_types": ["full_attention"] * 4}, [{"sinks"}]),
        ({"model_type": "granite", "layer_types": ["full_attention"] * 4, "attention_sinks": False}, [set()]),
        ({"model_type": "granite_swa", "sliding_window": 128}, [{"sinks"}, {"sinks", "window"}]),
    ],
)
def test_granite_has_sinks_where_its_layers_are_stated(config, changes, features) -> None:
    assert [set(spec.features) for spec in need_from_config(config(**changes)).specs] == features


@pytest.mark.parametrize(("taken", "layers"), [(-1, 6), (-2, 5), (3, 3), ([1, -3], 4), (None, 6)])
def test_a_tower_ends_where_its_states_are_taken(config, taken, layers) -> None:
    tower = {"model_type": "clip_vision_model", "hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 6}
    path = config(model_type="llava", text_config=dict(PLAIN), vision_config=tower, vision_feature_layer=taken)
    assert [k.count for k in need_from_config(path).layers if k.role == "vision"] == [layers]
    with pytest.raises(UsageError, match="field 'vision_feature_layer' is 'last'"):
        need_from_config(config(model_type="llava", text_config=dict(PLAIN), vision_config=tower, vision_feature_layer="last"))
