"""The tiny model: complete, deterministic, left alone when complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from safetensors import numpy as safetensors

from attnkit.engines import tiny_model
from attnkit.engines.tiny_model import FILES, make_tiny_model
from attnkit.errors import UsageError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    assert make_tiny_model(folder)
    return folder


def test_every_file_is_there_and_readable_by_others(made: Path) -> None:
    assert sorted(p.name for p in made.iterdir()) == sorted(FILES)
    assert all(p.stat().st_mode & 0o044 == 0o044 for p in made.iterdir())


def test_weights_fit_the_config(made: Path) -> None:
    config = json.loads((made / "config.json").read_text())
    weights = safetensors.load_file(made / "model.safetensors")
    assert {name: tensor.shape for name, tensor in weights.items()} == tiny_model.weight_shapes()
    query = weights["model.layers.0.self_attn.q_proj.weight"]
    assert query.shape == (config["num_attention_heads"] * config["head_dim"], config["hidden_size"])
    assert 0.015 < float(query.std()) < 0.025
    assert (
        len({tensor.tobytes() for name, tensor in weights.items() if "norm" not in name}) == 1 + 7 * config["num_hidden_layers"]
    )


def test_the_tokenizer_round_trips_and_learned_words(made: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(made / "tokenizer.json"))
    text = "The exception is raised — naïvely, 注意力 and\ttabs."
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert ids[0] == 0
    assert tokenizer.get_vocab_size() == tiny_model.VOCABULARY
    assert len(tokenizer.encode("exception", add_special_tokens=False).ids) == 1


def test_same_seed_same_bytes_other_seed_other_weights(made: Path, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "same")
    make_tiny_model(tmp_path / "other", seed=1)
    for name in FILES:
        assert (made / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
    assert (made / "model.safetensors").read_bytes() != (tmp_path / "other" / "model.safetensors").read_bytes()


def test_a_complete_model_is_left_alone_and_an_incomplete_one_is_finished(made: Path) -> None:
    before = (made / "config.json").stat().st_mtime_ns
    assert not make_tiny_model(made)
    assert (made / "config.json").stat().st_mtime_ns == before
    (made / "config.json").unlink()
    assert make_tiny_model(made)
    assert (made / "config.json").is_file()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write the model to .*file"):
        make_tiny_model(tmp_path / "file")
