"""docs/reference/self-test.md: levels, faults and speed floors, and what the reports say was reached."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnkit.backends.registry import all_backends
from attnkit.selftest.faults import FAULTS
from attnkit.selftest.results import LEVELS
from attnkit.selftest.runner import UNSEEN
from attnkit.selftest.speed import SPEED_FLOORS
from tools.docs import mutation
from tools.docs.markdown import SOURCE, page, table

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "docs" / "reports"


def markdown() -> str:
    """The whole page."""
    floors = [(where, kind, f"{f['decode']:.2%}", f"{f['prefill']:.2%}") for (where, kind), f in SPEED_FLOORS.items()]
    return page(
        "Self-test: levels, faults, speed floors",
        "How the self-test works is explained in [The self-test](../guides/self-test.md).",
        "",
        "## What each level cannot see",
        "",
        "Every verdict says so, too.",
        "",
        *table(("level", "cannot see"), ((level, "; ".join(UNSEEN[level])) for level in LEVELS)),
        "",
        "## Faults",
        "",
        "`attnkit selftest --inject-faults` injects all of them; `ATTNKIT_FAULT=NAME` injects one into a boot, to",
        "rehearse a failing node.",
        "",
        *table(("fault", "what is wrong"), ((f"`{name}`", fault.summary) for name, fault in FAULTS.items())),
        "",
        "## Mutants",
        "",
        "`python -m tools.mutate` changes one place of our kernels, launchers and backends at a time, and asks the",
        "self-test until a case notices: the quick level with the requirements of a few small models, then the",
        "standard level. Triton's kernels run in its interpreter, the C++ ones compiled for AVX2. A mutant counts as",
        "noticed only by a case that the unchanged code passes in the same place. What needs a GPU (XFORMERS, the",
        "kernels for Hopper and Turing) is not run. A mutant that survived the part of the standard level that there",
        "was time to ask counts as missed: the last column is a lower bound. Of some 350 mutants, these have been run:",
        "[Results](../reports/mutation.json).",
        "",
        *mutation.lines(),
        "",
        "## Speed floors",
        "",
        "Percentages of the device's own rate, measured in the same run: of its read bandwidth for decode, of its",
        "matrix rate for",
        f"prefill ([speed.py]({SOURCE}/attnkit/selftest/speed.py)). A floor is not a target: only something badly",
        "broken is below it.",
        "A provider is a *kernel* where one kernel reads the pages of the cache where they are, and *composed* where",
        "pages are",
        "gathered first.",
        "",
        *table(("device", "provider", "decode", "prefill"), floors),
        "",
        "What providers reached, in the committed reports. Several self-tests shared the H100, so these are not benchmarks:",
        "",
        *table(("backend", "provider", "device", "work", "reached", "floor", "report"), sorted(reached())),
    )


def reached() -> Iterator[tuple[str, ...]]:
    """Every speed that a committed report holds: backend, provider, device, work, fraction, floor, report."""
    kinds = {(backend.name, provider.name): provider.kind for backend in all_backends() for provider in backend.providers}
    for path in sorted(REPORTS.rglob("*.json")):
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document.get("kind") != "selftest":
            continue
        for verdict in document["verdicts"]:
            kind = kinds.get((verdict["backend"], verdict["provider"]))
            for speed in verdict.get("speed") or ():
                if speed["fraction"] is not None:
                    name = path.relative_to(REPORTS).as_posix()
                    yield (
                        verdict["backend"],
                        f"{verdict['provider']} ({kind})",
                        document["device"]["name"],
                        speed["work"],
                        f"{speed['fraction']:.2%}",
                        f"{speed['floor']:.2%}",
                        f"[{path.stem}](../reports/{name})",
                    )
