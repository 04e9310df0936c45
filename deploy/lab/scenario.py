"""A scenario of the lab: what is expected, what was found on the nodes, and whether the two agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from deploy.lab.probe import State

if TYPE_CHECKING:
    from deploy.lab.testbed import Testbed

MAX_FOUND = 400


@dataclass(frozen=True)
class Check:
    """One statement about the fleet.

    Args:
        what: the statement.
        held: whether it was so.
        found: what was found where it was not.
    """

    what: str
    held: bool
    found: str = ""


@dataclass
class Case:
    """What one run of a scenario found; `called` says what the releases are to it."""

    name: str
    called: Mapping[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether something was checked and all of it was so."""
        return self.error is None and bool(self.checks) and all(check.held for check in self.checks)

    def check(self, what: str, held: bool, found: object = "") -> None:
        """State something."""
        self.checks.append(Check(what, bool(held), "" if held else str(found)[-MAX_FOUND:]))

    def serve(self, states: Mapping[str, State], names: Iterable[str], release: str) -> None:
        """These nodes serve this release: running digest, record, verdict, answer."""
        wanted = list(names)
        if not wanted:
            return
        wrong = {name: states[name].words() for name in wanted if not states[name].serves(release)}
        word = self.called.get(release, release)
        self.check(f"{span(wanted)}: the {word} release, recorded, validated, answers", not wrong, wrong)

    def untouched(self, before: Mapping[str, State], after: Mapping[str, State], names: Iterable[str]) -> None:
        """On these nodes it is still the same start of the same container, with the same record, and it works."""
        wanted = list(names)
        wrong = {
            name: after[name].words()
            for name in wanted
            if (before[name].began, before[name].recorded) != (after[name].began, after[name].recorded) or not after[name].works
        }
        self.check(f"{span(wanted)}: untouched, works", not wrong, wrong)

    def nothing_lost(self, states: Mapping[str, State], down: Iterable[str] = ()) -> None:
        """Every node but those whose machine is down has a service that works; and nobody else is down."""
        off = set(down)
        lost = {name: state.words() for name, state in states.items() if not state.works and name not in off}
        self.check("nothing is lost: every machine that is up has a service that works", not lost, lost)

    def end(self, states: Mapping[str, State], head: str = "") -> None:
        """Keep the state of the fleet, in words, as measured."""
        groups: dict[str, list[str]] = {}
        for name, state in states.items():
            what = state.words()
            for release, word in self.called.items():
                what = what.replace(f"release {release} ", f"{word} release ")
            groups.setdefault(what, []).append(name)
        words = "; ".join(f"{what}: {span(names)}" for what, names in groups.items())
        self.measured.append(f"{head}: {words}" if head else words)

    def as_json(self, scenario: Scenario) -> dict[str, Any]:
        """For the report."""
        return {
            "name": self.name,
            "title": scenario.title,
            "expected": scenario.expected,
            "measured": self.measured,
            "checks": [asdict(check) for check in self.checks],
            "numbers": self.numbers,
            "seconds": round(self.seconds, 1),
            "passed": self.passed,
            "error": self.error,
        }


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    Args:
        name: for the command line.
        title: what happens.
        expected: the end state, in words.
        nodes: how many nodes it needs.
        act: does it.
    """

    name: str
    title: str
    expected: str
    nodes: int
    act: Callable[[Testbed, Case], None]

    def run(self, testbed: Testbed) -> Case:
        """Run it and measure the time. An unexpected error is a failure, too."""
        called = {testbed.old: "old", testbed.new: "new", testbed.third: "third"}
        case, began = Case(self.name, called), time.monotonic()
        try:
            self.act(testbed, case)
        except Exception as error:  # the report says so, and the next scenario starts from a restored fleet
            case.error = f"{type(error).__name__}: {error}"[-MAX_FOUND:]
        case.seconds = time.monotonic() - began
        return case


Act = Callable[["Testbed", Case], None]


def catalogue() -> tuple[list[Scenario], Callable[..., Callable[[Act], None]]]:
    """An empty list of scenarios, and the decorator that puts a function into it."""
    scenarios: list[Scenario] = []

    def scenario(name: str, title: str, expected: str, nodes: int = 3) -> Callable[[Act], None]:
        def add(act: Act) -> None:
            scenarios.append(Scenario(name, title, expected, nodes, act))

        return add

    return scenarios, scenario


def span(names: Iterable[str]) -> str:
    """node-01 … node-03, node-07: neighbours in numbering shown as a stretch."""
    numbers = sorted(int(name.rpartition("-")[2]) for name in names)
    stretches: list[list[int]] = []
    for number in numbers:
        if stretches and stretches[-1][-1] == number - 1:
            stretches[-1].append(number)
        else:
            stretches.append([number])
    shown = [f"{s[0]:02}" if len(s) == 1 else f"{s[0]:02}–{s[-1]:02}" for s in stretches]
    return "node " + ", ".join(shown) if shown else "no node"
