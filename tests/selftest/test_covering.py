"""Every pair that is allowed stands in a row, and nothing that is not."""

from __future__ import annotations

import itertools

from attnkit.selftest.covering import covering

FACTORS = {"dtype": "abc", "size": range(6), "mask": range(4), "alibi": (False, True), "sinks": (False, True), "one": (7,)}


def pairs(rows):
    return {frozenset(two) for row in rows for two in itertools.combinations(row.items(), 2)}


def test_every_pair_is_covered_by_few_rows():
    rows = covering(FACTORS, lambda row: True)
    every = [dict(zip(FACTORS, values, strict=True)) for values in itertools.product(*FACTORS.values())]
    assert pairs(rows) == pairs(every)
    assert 6 * 4 <= len(rows) <= 36  # of 288
    assert rows == covering(FACTORS, lambda row: True)


def test_what_is_not_allowed_is_in_no_row_and_all_else_is_covered():
    def allowed(row):
        return not (row["alibi"] and row["sinks"]) and not (row["dtype"] == "b" and row["size"] in (3, 5))

    rows = covering(FACTORS, allowed)
    every = [dict(zip(FACTORS, values, strict=True)) for values in itertools.product(*FACTORS.values())]
    assert all(map(allowed, rows))
    assert pairs(rows) == pairs(filter(allowed, every))
