"""The base: the same numbers on every host, sums rounded as the module says, and bounds that TF32 is far over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from attnkit.selftest import baseline
from attnkit.selftest.cases import Case
from attnkit.selftest.reference import reference
from attnkit.selftest.tensors import build
from attnkit.selftest.tolerance import judge
from attnkit.spec import AttentionOutput

HOSTS = {
    "this one": {"OMP_NUM_THREADS": "2"},
    "no vectors, one thread": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"},
}
PROGRAM = Path(__file__).with_name("baseline_errors.py")
CASES = [
    *(Case("prefill", "", "paged", d, 4, 2, 64, 64, 16, ((33, 33), (3, 40))) for d in ("float32", "bfloat16", "float16")),
    Case("decode", "", "paged", "float32", 4, 2, 128, 128, 16, ((1, 129), (1, 40)), content="large"),
    Case("softcap", "", "varlen", "float32", 4, 2, 64, 64, 16, ((50, 50),), softcap=5.0, content="sharp"),
    Case("sinks", "", "paged", "float32", 4, 2, 64, 64, 16, ((20, 60),), sinks=True, alibi=True, lse=True),
    Case("chunks", "", "dual_chunk", "float32", 4, 2, 64, 64, 16, ((9, 150),), content="sharp"),
    Case("differential", "", "differential", "float32", 4, 2, 64, 64, 16, ((9, 60),), content="sharp"),
]


def errors(calls: Path, settings: dict[str, str]) -> dict[str, list[float]]:
    """What `baseline_errors.py` measures in a process with these settings of the CPU's libraries."""
    environment = {**os.environ, **settings}
    run = subprocess.run(
        [sys.executable, str(PROGRAM), str(calls)], capture_output=True, text=True, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def test_the_bounds_are_those_of_every_host(tmp_path: Path) -> None:
    """Settings that pretend another CPU change what its matrix library sums to, and nothing in the base."""
    torch.save({f"{case.name}-{case.dtype}": build(case) for case in CASES}, tmp_path / "calls.pt")
    found = {name: errors(tmp_path / "calls.pt", settings) for name, settings in HOSTS.items()}
    plain = {name: each.pop("torch.matmul") for name, each in found.items()}
    assert plain["no vectors, one thread"] != plain["this one"], (
        "these settings do not change this machine's library: nothing is shown"
    )
    for name, each in found.items():
        assert each == found["this one"], name


def test_a_sum_is_exact_by_chunks_and_pairwise_above() -> None:
    """Worked out with fractions: every chunk exact and rounded once, then neighbours added, each sum rounded once."""
    draw = torch.Generator().manual_seed(3)
    a, b = torch.randn(1, 3 * baseline.CHUNK + 5, generator=draw), torch.randn(3 * baseline.CHUNK + 5, 1, generator=draw)
    terms = [Fraction(x) * Fraction(y) for x, y in zip(a[0].tolist(), b[:, 0].tolist(), strict=True)]
    sums = [rounded(sum(terms[k : k + baseline.CHUNK])) for k in range(0, len(terms), baseline.CHUNK)]
    assert len(sums) == 4
    by_hand = rounded(rounded(sums[0] + sums[1]) + rounded(sums[2] + sums[3]))
    assert Fraction(baseline.product(a, b).item()) == by_hand


def test_the_plainest_order_is_one_multiply_add_after_the_other() -> None:
    draw = torch.Generator().manual_seed(8)
    a, b = torch.randn(1, 37, generator=draw), torch.randn(37, 1, generator=draw)
    total = Fraction(0)
    for x, y in zip(a[0].tolist(), b[:, 0].tolist(), strict=True):
        total = rounded(total + Fraction(x) * Fraction(y))
    assert Fraction(baseline.product(a, b, plain=True).item()) == total


def test_tf32_is_far_over_the_bounds() -> None:
    """The float32 base is no measure that lets ten bits through: queries, keys and values cut to them are refused."""
    for case in (Case("keys", "", "paged", "float32", 4, 2, 64, 64, 16, ((1, 130),), content="equal"), *CASES):
        if case.dtype != "float32" or case.op not in ("paged", "varlen"):
            continue
        call = build(case)
        parts = {"query", "key", "value", "key_cache", "value_cache"} & {field.name for field in fields(call)}
        cut = replace(call, **{part: ten_bits(getattr(call, part)) for part in parts})
        oracle, bases, wrong = reference(call), baseline.baselines(call), reference(cut)
        answer = AttentionOutput(wrong.out.float(), None if wrong.lse is None else wrong.lse.float(), "ten bits")
        found = judge(answer, oracle, bases, call.spec())
        assert found.max_error is not None and found.max_bound is not None
        assert len(parts) == 3 and found.max_error > 8 * found.max_bound, case.name


def ten_bits(x: torch.Tensor) -> torch.Tensor:
    """Rounded to TF32's ten bits of mantissa."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def rounded(value: Fraction) -> Fraction:
    """To float32. Through float64 first, which may only matter for ties that this draw does not have."""
    return Fraction(torch.tensor(float(value), dtype=torch.float64).float().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_round_once(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(4)
    a, b = torch.randn(5, 300, generator=draw).to(dtype), torch.randn(300, 7, generator=draw).to(dtype)
    assert torch.equal(baseline.product(a, b), (a.double() @ b.double()).to(dtype))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 63, 64, 65, 1000])
def test_every_product_is_in_the_sum(length: int) -> None:
    """Whole numbers: nothing rounds, so that a product left out or taken twice shows."""
    a, b = torch.arange(1.0, length + 1)[None], torch.ones(length, 1)
    order = torch.randperm(length, generator=torch.Generator().manual_seed(5))
    assert baseline.product(a, b).item() == baseline.product(a, b, order).item() == length * (length + 1) / 2


def test_orders_differ() -> None:
    draw = torch.Generator().manual_seed(6)
    a, b = torch.randn(1, 4096, generator=draw), torch.randn(4096, 1, generator=draw)
    found = {baseline.product(a, b, torch.randperm(4096, generator=draw)).item() for _ in range(baseline.ORDERS)}
    assert len(found) > 1
