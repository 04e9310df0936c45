"""The rule of acceptance: what must fail, fails. Sixteen-bit types, whose factors are those of the rule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from attnkit.selftest.tolerance import Factors, judge
from attnkit.spec import AttentionOutput, AttentionSpec

SPEC = AttentionSpec(op="varlen", dtype="float16", num_heads=2, num_kv_heads=2, head_dim=8, block_size=None)
EPS = torch.finfo(torch.float16).eps


def _parts(base_error=0.01, lse=None):
    oracle = torch.linspace(0.5, 1.0, 4 * 2 * 8, dtype=torch.float64).reshape(4, 2, 8).half().double()
    right = AttentionOutput(oracle.half(), lse, "k")
    base = AttentionOutput(oracle + base_error, None if lse is None else lse.double(), "base")
    return right, AttentionOutput(oracle, None if lse is None else lse.double(), "reference"), base


def test_the_right_answer_passes():
    right, oracle, base = _parts()
    assert judge(right, oracle, [base], SPEC).reason == ""


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_element_not_written_or_not_finite_fails(bad):
    right, oracle, base = _parts()
    right.out[3, 1, 7] = bad
    assert "first in token 3" in judge(right, oracle, [base], SPEC).reason


def test_all_zero_fails_even_where_the_base_is_as_bad():
    right, oracle, base = _parts(base_error=5.0)
    right.out.zero_()
    assert judge(right, oracle, [base], SPEC).reason == "output is all zero"


def test_one_wrong_element_is_over_the_largest_error():
    right, oracle, base = _parts()
    right.out[0, 0, 0] += 0.05
    assert "largest error" in judge(right, oracle, [base], SPEC).reason


def test_small_errors_everywhere_are_over_the_mean():
    right, oracle, base = _parts()
    assert "mean error" in judge(replace(right, out=right.out + 0.018), oracle, [base], SPEC).reason


def test_bounds_are_those_of_the_formula():
    right, oracle, base = _parts()
    got = judge(right, oracle, [base], SPEC)
    assert got.max_bound == pytest.approx(2 * 0.01 + 2 * EPS * oracle.out.max().item())
    assert got.mean_bound == pytest.approx(1.5 * 0.01 + 2 * EPS * oracle.out.mean().item())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("changes", "largest", "mean", "cosine"),
    [
        ({}, 2.0, 1.5, False),
        ({"features": frozenset({"softcap"})}, 3.0, 1.5, False),
        ({"op": "paged", "block_size": 16}, 3.0, 1.5, False),
        ({"op": "paged", "block_size": 16, "kv_cache_dtype": "fp8_e4m3"}, 4.0, 3.0, True),
    ],
)
def test_factors(dtype, changes, largest, mean, cosine):
    got = Factors.of(replace(SPEC, dtype=dtype, **changes))
    assert (got.largest, got.mean, got.cosine) == (largest, mean, cosine)


def test_fp8_needs_the_direction_too():
    right, oracle, base = _parts(base_error=5.0)
    spec = replace(SPEC, op="paged", block_size=16, kv_cache_dtype="fp8_e4m3")
    assert "cosine" in judge(replace(right, out=-right.out), oracle, [base], spec).reason


def test_lse_is_held_to_the_rule():
    right, oracle, base = _parts(lse=torch.full((4, 2), 3.0))
    assert judge(right, oracle, [base], SPEC).reason == ""
    assert "log-sum-exp" in judge(replace(right, lse=right.lse / math.log(2)), oracle, [base], SPEC).reason
    assert "not returned" in judge(replace(right, lse=None), oracle, [base], SPEC).reason


def test_wrong_shape_and_dtype_fail():
    right, oracle, base = _parts()
    assert "shape" in judge(replace(right, out=right.out[:3]), oracle, [base], SPEC).reason
    assert "dtype" in judge(replace(right, out=right.out.float()), oracle, [base], SPEC).reason
