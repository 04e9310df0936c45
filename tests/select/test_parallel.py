"""Tensor parallelism: the geometry of one rank, as vLLM splits it, and where the number of ranks comes from."""

from __future__ import annotations

import pytest

from attnkit.engines.vllm.command import recognise
from attnkit.engines.vllm.parallel import Parallelism, memory_share, parallelism
from attnkit.errors import UsageError
from attnkit.select.node import find_node
from attnkit.select.parallel import per_rank
from attnkit.select.plan import make_plan
from attnkit.spec import AttentionSpec


@pytest.mark.parametrize(
    ("heads", "kv_heads", "ranks", "of_rank"),
    [
        (32, 8, 1, (32, 8)),
        (32, 8, 2, (16, 4)),
        (32, 8, 8, (4, 1)),
        (32, 8, 16, (2, 1)),  # each KV head on two ranks
        (64, 8, 4, (16, 2)),
        (40, 40, 5, (8, 8)),
        (71, 1, 1, (71, 1)),
        (128, 1, 8, (16, 1)),  # MLA: the latent cache is on every rank
    ],
)
def test_the_heads_of_one_rank(heads: int, kv_heads: int, ranks: int, of_rank: tuple[int, int]) -> None:
    spec = per_rank(AttentionSpec(num_heads=heads, num_kv_heads=kv_heads), ranks)
    assert (spec.num_heads, spec.num_kv_heads) == of_rank


@pytest.mark.parametrize(("heads", "kv_heads", "ranks", "words"), [(40, 8, 16, "40 attention heads"), (12, 4, 6, "4 KV heads")])
def test_heads_that_cannot_be_split_are_refused(heads: int, kv_heads: int, ranks: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        per_rank(AttentionSpec(num_heads=heads, num_kv_heads=kv_heads), ranks)


def test_a_plan_is_about_one_rank() -> None:
    plan = make_plan(find_node(arch="sm_90"), model="llama-3", overrides={"tensor_parallel": 4})
    assert [(spec.num_heads, spec.num_kv_heads) for spec in plan.requirements.specs] == [(8, 2)]
    assert plan.requirements.notes[-1] == "heads are those of one of 4 tensor-parallel ranks"


@pytest.mark.parametrize(
    ("options", "profile", "found"),
    [
        ("", (), Parallelism(1, 1)),
        ("--tensor-parallel-size 4", (), Parallelism(4, 1)),
        ("-tp 2 --pipeline_parallel_size=3", (), Parallelism(2, 3)),
        ("", ("--tensor-parallel-size", "8"), Parallelism(8, 1)),
        ("-tp 2", ("--tensor-parallel-size", "8"), Parallelism(2, 1)),
        ("-dp 4", (), Parallelism(1, 1, 4)),
        ("-dp 4 -dpl 2", (), Parallelism(1, 1, 2)),
        ("-dp 4 --data-parallel-size-local 0", (), Parallelism(1, 1, 0)),
        ("-dp 4 --data-parallel-rank 3", (), Parallelism(1, 1, 1)),
    ],
)
def test_how_many_devices_serve_together(options: str, profile: tuple[str, ...], found: Parallelism) -> None:
    command = recognise(["vllm", "serve", "m", *options.split()])
    assert parallelism(command, profile) == found
    assert parallelism(None) == Parallelism(1, 1)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²"])
def test_a_size_that_is_no_number_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="--tensor-parallel-size must be a positive whole number"):
        parallelism(recognise(["vllm", "serve", "m", f"--tensor-parallel-size={text}"]))


def test_the_memory_that_serving_takes() -> None:
    command = recognise(["vllm", "serve", "m", "--gpu-memory-utilization", "0.5"])
    assert memory_share(command) == 0.5
    assert memory_share(None) == memory_share(recognise(["vllm", "serve", "m"])) == 0.9
    assert memory_share(None, ("--gpu-memory-utilization", "0.8")) == 0.8
    with pytest.raises(UsageError, match="above 0 and up to 1"):
        memory_share(recognise(["vllm", "serve", "m", "--gpu-memory-utilization", "90"]))
