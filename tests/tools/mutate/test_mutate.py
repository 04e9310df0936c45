"""The mutation tool itself: mutants are small changes that still parse, and a few of them are noticed, one is not."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.mutate import by_hand, rules
from tools.mutate.families import FAMILIES

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "attnkit"


@pytest.mark.parametrize("family", FAMILIES)
def test_mutants_change_one_place_and_parse(family: str) -> None:
    found = by_hand.mutants(PACKAGE, family)
    for source, most in FAMILIES[family].sources.items():
        path, _, functions = source.partition("::")
        made = rules.mutants(PACKAGE, path, most, tuple(filter(None, functions.split(","))))
        assert 3 <= len(made) <= most, source
        assert made == rules.mutants(PACKAGE, path, most, tuple(filter(None, functions.split(","))))
        found += made
    for mutant in found:
        before = (PACKAGE / mutant.path).read_text(encoding="utf-8")
        after = mutant.applied(before)
        assert after != before and len(after) == len(before) - len(mutant.before) + len(mutant.after)
        if mutant.path.endswith(".py"):
            ast.parse(after)


def test_most_that_were_thought_of_still_have_their_place() -> None:
    made = {(mutant.path, mutant.before) for family in FAMILIES for mutant in by_hand.mutants(PACKAGE, family)}
    assert len(made) >= 0.9 * len({(path, before) for _, path, before, _ in by_hand.CHANGES})


def test_there_are_enough_of_many_kinds() -> None:
    kinds: dict[str, int] = {}
    for name, family in FAMILIES.items():
        for mutant in by_hand.mutants(PACKAGE, name):
            kinds[mutant.rule] = kinds.get(mutant.rule, 0) + 1
        for source, most in family.sources.items():
            path, _, functions = source.partition("::")
            for mutant in rules.mutants(PACKAGE, path, most, tuple(filter(None, functions.split(",")))):
                kinds[mutant.rule] = kinds.get(mutant.rule, 0) + 1
    assert sum(kinds.values()) >= 200
    assert kinds.keys() >= {
        "comparison",
        "operator",
        "constant",
        "mask dropped",
        "write dropped",
        "factor dropped",
        "type",
        "by hand",
    }


def test_a_few_are_run_and_noticed(tmp_path: Path) -> None:
    """The first of a family that has none yet: one of two is known already and is not run again."""
    results = tmp_path / "results.json"
    first = by_hand.mutants(PACKAGE, "TORCH_SDPA")[0]
    known = {"family": "TORCH_SDPA", "name": first.name, "rule": first.rule, "quick": "a", "standard": "a", "asked": 0, "of": 0}
    results.write_text(json.dumps({"mutants": [known]}))
    command = [sys.executable, "-m", "tools.mutate", "--family", "TORCH_SDPA", "--limit", "2", "--seconds", "0.1"]
    done = subprocess.run(
        [*command, "--results", str(results)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(results.read_text())["mutants"]
    assert known in rows
    assert len({row["name"] for row in rows}) == len(rows) == 3
    assert all(row["quick"] and row["quick"] == row["standard"] for row in rows)
    assert "TORCH_SDPA: 3 mutants, quick 3 (100%), standard 3 (100%)" in done.stdout
