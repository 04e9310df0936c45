"""Heads over ranks and an all-reduce come to the layer on one device; ranks that are wrong do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.engines import tensor_parallel


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_ranks_compute_the_layer_of_one_device(tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "out.json"
    assert tensor_parallel.main(["--ranks", "2", "--backend", "TORCH_SDPA", "--dtype", dtype, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert [tuple(one["of_rank"]) for one in report["compared"]] == [(4, 4), (4, 1), (4, 1)]
    for one in report["compared"]:
        assert (one["reason"], one["kernel"]) == ("", "scaled_dot_product_attention")
        assert 0 < one["parallel_error"] <= one["parallel_bound"]
        assert 0 < one["single_error"] <= one["single_bound"]
    assert report["devices"] == ["CPU"]


def test_four_ranks_with_copied_kv_heads_and_one_that_takes_anothers_share(tmp_path: Path) -> None:
    right = ["--ranks", "4", "--backend", "TORCH_SDPA", "--dtype", "float32"]
    assert tensor_parallel.main(right) == 0
    out = tmp_path / "out.json"
    assert tensor_parallel.main([*right, "--inject-wrong-rank", "--out", str(out)]) == 1
    for one in json.loads(out.read_text())["compared"]:
        assert one["reason"].startswith("ranks: output: largest error")


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--ranks", "1"], "2 or more"), (["--ranks", "3"], "cannot be split over 3")]
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        tensor_parallel.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
