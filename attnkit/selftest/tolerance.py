"""When an answer is right.

    written    every element of the output, which was NaN before; finite; not all zero
    max|out - oracle|   <= F * max|baseline - oracle|  + 2 eps max|oracle|    F = 2; softcap and paged caches 3; float8 caches 4
    mean|out - oracle|  <= G * mean|baseline - oracle| + 2 eps mean|oracle|   G = 1.5; float8 caches 3
    float32: baseline is the worst of several summation orders, F and G are doubled, and the mean's floor is 2 eps max|oracle|:
    nothing is rounded to fewer bits there, so one order's error is luck (TF32, 1000 times coarser, still fails)
    float8 caches: cosine(out, oracle) >= 0.999
    log-sum-exp: the same two rules; minus infinity exactly where the oracle has it
    sixteen bits: mean signed error of the larger half of the outputs within `BIAS` units in the last place (see there)

No share of mismatches is ever allowed. The rule grows out of FlashAttention's tests (tests/test_flash_attn.py), FA3's rounding
floor (hopper/test_flash_attn.py) and attention-gym's float64 oracle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from attnkit.spec import AttentionOutput, AttentionSpec

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

MIN_COSINE = 0.999

BIAS = 0.25
"""Mean signed error, away from zero, of sixteen-bit outputs in units in the last place.

To round to nearest errs by -1/2 to 1/2 alike, a mean of 0; to cut the low bits off errs by 0 to -1, a mean of -1/2; the bound
is the middle. Only the half of the outputs that are largest in magnitude counts, since an output that is a small difference of
large products carries their errors, many of its own units. The mean must be known: `SURE` of its standard errors are within the
bound. The outputs of a head in a token share what its scores erred by (dual chunk attention rounds rotated queries and keys,
and a right answer leant by 0.26 in 20 such rows on an H200), so rows are what is independent. Not for float8 caches, whose few
values round alike, nor for made-up contents. Measured with the standard level's cases: at most 0.12 of right providers, -0.3
and beyond of the same answers cut.
"""
SURE, ENOUGH, ROWS = 6.0, 256, 8
"""Standard errors; outputs and rows (a head of a token) that make a mean."""


@dataclass(frozen=True)
class Factors:
    """Multiples of the baseline's error that are allowed."""

    largest: float
    mean: float
    cosine: bool = False
    floor_of_largest: bool = False
    """The mean's rounding floor is taken at the largest magnitude instead of the mean one."""

    @classmethod
    def of(cls, spec: AttentionSpec) -> Factors:
        """The factors for a need."""
        if spec.kv_cache_dtype != "auto":
            return cls(4.0, 3.0, cosine=True)
        largest = 3.0 if "softcap" in spec.features or spec.op != "varlen" else 2.0
        if spec.dtype == "float32":
            return cls(2 * largest, 3.0, floor_of_largest=True)
        return cls(largest, 1.5)


@dataclass(frozen=True)
class Judgement:
    """The outcome of one comparison; `reason` is empty where it passed."""

    reason: str
    max_error: float | None = None
    max_bound: float | None = None
    mean_error: float | None = None
    mean_bound: float | None = None
    lse_max_error: float | None = None
    lse_max_bound: float | None = None


@dataclass(frozen=True)
class _Measured:
    max_error: float
    max_bound: float
    mean_error: float
    mean_bound: float

    def complaint(self, what: str) -> str:
        # `not <=` so that NaN, which compares false with everything, is a complaint
        if not self.max_error <= self.max_bound:
            return f"{what}: largest error {self.max_error:.3g} is over the bound {self.max_bound:.3g}"
        if not self.mean_error <= self.mean_bound:
            return f"{what}: mean error {self.mean_error:.3g} is over the bound {self.mean_bound:.3g}"
        return ""


def judge(
    result: AttentionOutput,
    oracle: AttentionOutput,
    baselines: Sequence[AttentionOutput],
    spec: AttentionSpec,
    *,
    natural: bool = False,
) -> Judgement:
    """Hold `result` against the float64 `oracle`, with the error of the worst of `baselines` as the measure.

    Args:
        result: what the backend returned; its output buffer was filled with NaN before.
        oracle: `attnkit.selftest.reference.reference` of the same call.
        baselines: `attnkit.selftest.baseline.baselines` of the same call.
        spec: the need of the call; its dtype gives eps.
        natural: the contents are random, so that errors of rounding must average out.
    """
    factors = Factors.of(spec)
    out = result.out.detach().cpu()
    if out.shape != oracle.out.shape:
        return Judgement(f"output has shape {list(out.shape)}, expected {list(oracle.out.shape)}")
    if str(out.dtype) != f"torch.{spec.dtype}":
        return Judgement(f"output has dtype {out.dtype}, expected torch.{spec.dtype}")
    bad = ~torch.isfinite(out)
    if bad.any():
        rows = bad.flatten(1).any(1).nonzero().flatten().tolist()
        return Judgement(f"output is not finite (or was not written) in {int(bad.sum())} elements, first in token {rows[0]}")
    if oracle.out.numel() and oracle.out.any() and not out.any():
        return Judgement("output is all zero")
    eps = torch.finfo(out.dtype).eps
    main = _measure(out.double(), oracle.out, [one.out.double() for one in baselines], factors, eps)
    reason = main.complaint("output")
    if not reason and factors.cosine:
        cosine = torch.nn.functional.cosine_similarity(out.double().flatten(), oracle.out.flatten(), dim=0).item()
        if not cosine >= MIN_COSINE:
            reason = f"cosine to the oracle is {cosine:.5f}, under {MIN_COSINE}"
    if not reason and natural and spec.dtype != "float32" and spec.kv_cache_dtype == "auto":
        reason = _biased(out.double(), oracle.out, eps)
    lse = None
    if oracle.lse is not None and not reason:
        reason, lse = _judge_lse(result, oracle, baselines, factors)
    return Judgement(
        reason,
        main.max_error,
        main.max_bound,
        main.mean_error,
        main.mean_bound,
        None if lse is None else lse.max_error,
        None if lse is None else lse.max_bound,
    )


def _biased(out: Tensor, oracle: Tensor, eps: float) -> str:
    """The complaint about errors that lean to one side; see `BIAS`."""
    size = oracle.abs()
    large = (size >= size.median()) & (size > torch.finfo(torch.float16).tiny) if size.numel() else size > 0
    count, rows = int(large.sum()), int(large.any(-1).sum())
    if count < ENOUGH or rows < ROWS:
        return ""
    units = eps * torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent - 1)
    error = ((out - oracle) * oracle.sign() / units).clamp(-2.0, 2.0).where(large, 0.0)
    mean = error.sum().item() / count
    by_row = (error.sum(-1) - mean * large.sum(-1)).square().sum().item()
    if SURE * math.sqrt(by_row * rows / (rows - 1)) / count > BIAS:
        return ""
    away = "towards zero, as if low bits were cut off" if mean < 0 else "away from zero"
    return "" if abs(mean) <= BIAS else f"output: errors lean {away}, by {abs(mean):.2f} units in the last place on average"


def _judge_lse(
    result: AttentionOutput, oracle: AttentionOutput, baselines: Sequence[AttentionOutput], factors: Factors
) -> tuple[str, _Measured | None]:
    assert oracle.lse is not None
    if result.lse is None:
        return "the log-sum-exp was asked for and not returned", None
    lse = result.lse.detach().cpu().double()
    if lse.shape != oracle.lse.shape:
        return f"log-sum-exp has shape {list(lse.shape)}, expected {list(oracle.lse.shape)}", None
    empty = torch.isneginf(oracle.lse)
    if not torch.equal(torch.isneginf(lse), empty):
        return "log-sum-exp is not minus infinity exactly where no key is visible", None
    seen = ~empty
    measured = _measure(
        lse[seen],
        oracle.lse[seen],
        [one.lse.double()[seen] for one in baselines if one.lse is not None],
        factors,
        torch.finfo(torch.float32).eps,
    )
    return measured.complaint("log-sum-exp"), measured


def _measure(out: Tensor, oracle: Tensor, baselines: Sequence[Tensor], factors: Factors, eps: float) -> _Measured:
    if not oracle.numel():
        return _Measured(0.0, 0.0, 0.0, 0.0)
    error, size = (out - oracle).abs(), oracle.abs()
    errors = [(one - oracle).abs() for one in baselines]
    return _Measured(
        max_error=error.max().item(),
        max_bound=factors.largest * max(e.max().item() for e in errors) + 2 * eps * size.max().item(),
        mean_error=error.mean().item(),
        mean_bound=factors.mean * max(e.mean().item() for e in errors)
        + 2 * eps * (size.max() if factors.floor_of_largest else size.mean()).item(),
    )
