"""The level of evidence for each backend, and for what: read from the reports in docs/reports, never typed by hand.

    measured   passed its self-test on that hardware (card, date)
    emulated   passed its self-test in an interpreter, or as another architecture's code on a card
    compiled   machine code was produced for that target and its matrix instructions counted
    contract   our call was checked against the provider's real package
    none       nothing of the kind

`collect` reads the reports and is run when docs are generated; its result ships as attnkit/data/evidence.json, which `load`
reads. CI fails when that file is stale, so a word can never be higher than what a committed report shows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, TypeAlias

Word: TypeAlias = Literal["measured", "emulated", "compiled", "contract", "none"]
TURING_NATIVE = "sm_75 machine code on its own card"
"""What a report of a real Turing card says of its code."""
WORDS: tuple[Word, ...] = ("measured", "emulated", "compiled", "contract", "none")


@dataclass(frozen=True)
class Evidence:
    """One thing that was shown.

    Args:
        backend, provider: what was shown to work.
        target: architecture (sm_90, gfx942, x86_64 …); for a contract, the package and version it was checked against.
        word: see the module's docstring.
        subject: the card, the interpreter or the compiler.
        date: day of the report, ISO.
        report: path of the report in the repository.
    """

    backend: str
    provider: str
    target: str
    word: Word
    subject: str
    date: str
    report: str


@cache
def load() -> tuple[Evidence, ...]:
    """The evidence that ships with this package."""
    text = resources.files("attnkit").joinpath("data/evidence.json").read_text(encoding="utf-8")
    return tuple(Evidence(**row) for row in json.loads(text))


def evidence_for(backend: str) -> tuple[Evidence, ...]:
    """The evidence for one backend, strongest first, one entry a target."""
    best: dict[str, Evidence] = {}
    for item in load():
        if item.backend == backend:
            known = best.get(item.target)
            if known is None or WORDS.index(item.word) < WORDS.index(known.word):
                best[item.target] = item
    return tuple(sorted(best.values(), key=lambda e: (WORDS.index(e.word), e.target)))


def best_word(backend: str, target: str) -> Word:
    """The word for one backend on one target; "none" where nothing was shown."""
    return next((e.word for e in evidence_for(backend) if e.target == target), "none")
