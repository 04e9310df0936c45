"""The self-test's vocabulary, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from attnkit.errors import unknown_name

Level: TypeAlias = Literal["quick", "standard", "extended"]
LEVELS: tuple[Level, ...] = ("quick", "standard", "extended")

Outcome: TypeAlias = Literal["pass", "fail", "inconclusive", "skipped"]
OUTCOMES: tuple[Outcome, ...] = ("pass", "fail", "inconclusive", "skipped")


def roll_up(outcomes: Iterable[Outcome]) -> Outcome:
    """What several outcomes come to: fail over inconclusive over pass. What was skipped counts for nothing beside a pass; where
    nothing but skipped is there, or nothing at all, nobody can tell: inconclusive."""
    found = set(outcomes)
    ranked: tuple[Outcome, ...] = ("fail", "inconclusive", "pass")
    return next((outcome for outcome in ranked if outcome in found), "inconclusive")


@dataclass(frozen=True)
class CaseResult:
    """One case on one backend.

    Args:
        case: its name, e.g. "decode-gqa8-d128-bf16-page16".
        guards: which part of the work it guards, in words.
        outcome: pass, fail, inconclusive (could not be judged: the oracle or the baseline failed) or skipped.
        reason: why not pass, in one sentence; "" for pass.
        kernel: what ran.
        max_error, max_bound, mean_error, mean_bound: absolute errors against the float64 oracle and their bounds; None where
            nothing was compared.
        lse_max_error, lse_max_bound: the same for the log-sum-exp.
        seconds: time of the case.
    """

    case: str
    guards: str
    outcome: Outcome
    reason: str = ""
    kernel: str = ""
    max_error: float | None = None
    max_bound: float | None = None
    mean_error: float | None = None
    mean_bound: float | None = None
    lse_max_error: float | None = None
    lse_max_bound: float | None = None
    seconds: float = 0.0

    @property
    def error_share(self) -> float | None:
        """The largest of its errors as a share of its bound, over 1 fails; None where nothing was compared."""
        pairs = (
            (self.max_error, self.max_bound),
            (self.mean_error, self.mean_bound),
            (self.lse_max_error, self.lse_max_bound),
        )
        return max((error / bound for error, bound in pairs if error is not None and bound), default=None)


@dataclass(frozen=True)
class Speed:
    """How fast one piece of work ran, as a fraction of what the device showed in the same run; see `selftest.speed`.

    Args:
        work: decode, prefill, or any where nothing was measured.
        outcome: fail under the floor; skipped with the reason where nothing can be said.
        reason: why not pass, in one sentence; "" for pass.
        kernel: what ran.
        seconds: median time of one call.
        rate, ceiling: of the backend and of the device itself: bytes a second for decode, operations a second for prefill.
        fraction, floor: rate / ceiling, and the least that is accepted.
    """

    work: Literal["decode", "prefill", "any"]
    outcome: Outcome
    reason: str = ""
    kernel: str = ""
    seconds: float | None = None
    rate: float | None = None
    ceiling: float | None = None
    fraction: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The self-test of one backend on one device.

    Args:
        backend, provider: what was tested.
        device: name and arch of the device, as text.
        level: quick, standard or extended.
        outcome: fail if any case failed; else inconclusive if any was, or if none ran; else pass.
        cases: every case, in order, skipped ones with their reason.
        unseen: what this level cannot see, in words.
        seconds: total time.
        fault: name of the fault where one was injected, else None.
        speed: what was measured against the speed floor; empty at the quick level and where a fault is injected. Each is among
            the cases too.
        layer: the kind of attention layer that was asked for, in words; "" where no model said.
        device_index, device_uuid, pci_address: which device of the machine it was, None where it is not known.
        seed: of the case that was drawn anew; `attnkit selftest --seed` draws it again. None where none was drawn.
        implementation: of an engine's own backend, the classes that were driven, as paths; else empty.
    """

    backend: str
    provider: str
    device: str
    level: Level
    outcome: Outcome
    cases: tuple[CaseResult, ...]
    unseen: tuple[str, ...] = ()
    seconds: float = 0.0
    fault: str | None = None
    speed: tuple[Speed, ...] = ()
    layer: str = ""
    device_index: int | None = None
    device_uuid: str | None = None
    pci_address: str | None = None
    seed: int | None = None
    implementation: tuple[str, ...] = ()


def check_level(level: str | None) -> Level | None:
    """`level`, checked.

    Raises:
        UsageError: unknown; the message names the levels.
    """
    if level is None:
        return None
    for known in LEVELS:
        if level == known:
            return known
    raise unknown_name("self-test level", level, LEVELS)


@dataclass(frozen=True)
class FaultResult:
    """Whether one injected fault was caught in one dtype, and by which case. Faults that no case can show are left out."""

    fault: str
    caught: bool
    by: str | None
    dtype: str | None
