"""Covering arrays: few rows in which every two values of any two factors stand together at least once.

Most faults of a kernel need one value of one factor to show, nearly all others two (D. R. Kuhn et al., "Software Fault
Interactions and Implications for Software Testing", IEEE TSE 30(6), 2004). Greedy, a row at a time, as in D. M. Cohen et al.,
"The AETG System", IEEE TSE 23(7), 1997.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]
_Pair: TypeAlias = tuple[tuple[str, int], tuple[str, int]]

CANDIDATES = 8
"""Rows that are tried for each that is taken."""


def covering(factors: Mapping[str, Sequence[Any]], allowed: Callable[[Row], bool]) -> list[dict[str, Any]]:
    """Rows (a value of each factor) that hold every pair of values that an allowed row can hold.

    The same factors give the same rows on every host.

    Args:
        factors: the values of each; the first is the plain one, to which a row falls back where what was chosen is not allowed.
        allowed: whether a row may be taken.
    """
    draw = random.Random(20240117)
    names = [name for name, values in factors.items() if values]

    def written(chosen: Mapping[str, int]) -> dict[str, Any]:
        return {name: factors[name][chosen.get(name, 0)] for name in names}

    missing = {
        _pair(one, i, other, j): None
        for one, other in itertools.combinations(names, 2)
        for i in range(len(factors[one]))
        for j in range(len(factors[other]))
    }
    rows: list[dict[str, Any]] = []
    while missing:
        best: dict[str, int] = {}
        gained: list[_Pair] = []
        waiting = list(missing)
        for pair in [waiting[0], *(draw.choice(waiting) for _ in range(CANDIDATES - 1))]:
            chosen = _filled(dict(pair), names, factors, missing, draw)
            if not allowed(written(chosen)):
                chosen = _careful(dict(pair), chosen, lambda some: allowed(written(some)))
            if not chosen:
                missing.pop(pair, None)  # no allowed row holds it, or none that is plain otherwise
                continue
            full = {name: chosen.get(name, 0) for name in names}
            found = [p for p in itertools.starmap(_pair_of, itertools.combinations(full.items(), 2)) if p in missing]
            if len(found) > len(gained):
                best, gained = full, found
        if best:
            rows.append(written(best))
            for pair in gained:
                missing.pop(pair, None)
    return rows


def _filled(
    chosen: dict[str, int],
    names: Sequence[str],
    factors: Mapping[str, Sequence[Any]],
    missing: Mapping[_Pair, None],
    draw: random.Random,
) -> dict[str, int]:
    """A value of every factor, one factor after the other, each the one that covers most with those before it."""
    others = [name for name in names if name not in chosen]
    draw.shuffle(others)
    for name in others:
        values = list(range(len(factors[name])))
        draw.shuffle(values)
        chosen[name] = max(values, key=lambda v: sum(_pair(name, v, other, w) in missing for other, w in chosen.items()))
    return chosen


def _careful(fixed: dict[str, int], wished: dict[str, int], allowed: Callable[[Mapping[str, int]], bool]) -> dict[str, int]:
    """As much of `wished` as is allowed beside `fixed`, all else plain; empty where not even that is allowed."""
    if not allowed(fixed):
        return {}
    chosen = dict(fixed)
    for name, value in wished.items():
        if name not in chosen and allowed({**chosen, name: value}):
            chosen[name] = value
    return chosen


def _pair(one: str, i: int, other: str, j: int) -> _Pair:
    return ((one, i), (other, j)) if one < other else ((other, j), (one, i))


def _pair_of(one: tuple[str, int], other: tuple[str, int]) -> _Pair:
    return _pair(*one, *other)
