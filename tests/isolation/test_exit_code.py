"""What several outcomes come to, and the exit code that `attnkit selftest` makes of it."""

from __future__ import annotations

from itertools import permutations

import pytest

from attnkit.isolation.check import exit_code
from attnkit.selftest.results import OUTCOMES, Outcome, roll_up


@pytest.mark.parametrize(
    ("outcomes", "whole", "code"),
    [
        ((), "inconclusive", 4),
        (("pass",), "pass", 0),
        (("fail",), "fail", 1),
        (("inconclusive",), "inconclusive", 4),
        (("skipped",), "inconclusive", 4),
        (("skipped", "skipped"), "inconclusive", 4),
        (("pass", "skipped"), "pass", 0),
        (("pass", "inconclusive"), "inconclusive", 4),
        (("pass", "fail"), "fail", 1),
        (("inconclusive", "fail"), "fail", 1),
        (("inconclusive", "skipped"), "inconclusive", 4),
        (("fail", "skipped"), "fail", 1),
        (OUTCOMES, "fail", 1),
    ],
)
def test_what_outcomes_come_to(outcomes: tuple[Outcome, ...], whole: Outcome, code: int) -> None:
    for order in permutations(outcomes):
        assert roll_up(order) == whole
        assert exit_code(order) == code
