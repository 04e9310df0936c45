"""`python -m tools.mutate`: run mutants of our kernels and backends against the self-test, and print what notices them.

Results are kept as they come (docs/reports/mutation.json), and a second run goes on where the first was ended; `--fresh` begins
anew. Each mutant is asked the quick level with the requirements of a few models, then the standard level, until a case fails.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes are made by fork

REPORT = Path(__file__).resolve().parents[2] / "docs" / "reports" / "mutation.json"


def main(arguments: list[str]) -> int:
    """The command."""
    from tools.mutate.families import FAMILIES

    parser = argparse.ArgumentParser(prog="python -m tools.mutate", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="one family; several times for several")
    parser.add_argument("--results", type=Path, default=REPORT, help="where results are kept")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--unfinished", action="store_true", help="ask those again that survived a part of the standard level")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--seconds", type=float, default=120.0, help="no further standard case of a mutant after so long")
    parser.add_argument("--for", dest="most", type=float, default=1e9, help="no further mutant after so many seconds")
    parser.add_argument("--limit", type=int, default=10**6, help="mutants at most")
    parser.add_argument("--list", action="store_true", help="print the mutants and run none")
    given = parser.parse_args(arguments)
    chosen = {name: FAMILIES[name] for name in given.family or FAMILIES}

    from tools.mutate import trial

    if given.list:
        for name, _, mutant in trial.every(chosen):
            print(f"{name}: {mutant.name} [{mutant.rule}]")
        return 0
    kept = _read(given.results) if given.results.exists() and not given.fresh else []
    # one that survived a part of the standard level is asked again, and from its beginning
    kept = [row for row in kept if row["standard"] or row["asked"] == row["of"]] if given.unfinished else kept
    known = {(row["family"], row["name"]) for row in kept}
    waiting = [item for item in trial.every(chosen) if (item[0], item[2].name) not in known][: given.limit]
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        keep = Path(os.environ.get("MUTATION_QUESTIONS") or folder)
        keep.mkdir(exist_ok=True)
        for row in _all(waiting, given, keep):
            kept.append(row)
            print(_line(row), flush=True)
            _write(given.results, kept)
    for line in summary(kept):
        print(line)
    return 0


def _all(items: list[Any], given: argparse.Namespace, keep: Path) -> Iterator[dict[str, Any]]:
    """Results as they come, `--jobs` processes at a time; one that ends without a result crashed or found no end."""
    from tools.mutate import trial

    started = time.monotonic()
    running: dict[int, tuple[Any, int, float]] = {}
    items = list(items)
    while items or running:
        while items and len(running) < given.jobs and time.monotonic() - started < given.most:
            name, family, mutant = items.pop(0)
            read_end, write_end = os.pipe()
            child = os.fork()
            if child == 0:
                _child(name, family, mutant, keep, given.seconds, write_end)
            os.close(write_end)
            running[child] = ((name, family, mutant), read_end, time.monotonic())
        if not running:
            return
        ended, status = os.waitpid(-1, os.WNOHANG)
        for child, (_, _, since) in list(running.items()):
            if child != ended and time.monotonic() - since > 3 * given.seconds + 60:
                os.kill(child, signal.SIGKILL)
        if not ended:
            time.sleep(0.02)
            continue
        (name, family, mutant), read_end, since = running.pop(ended)
        with os.fdopen(read_end, "rb") as pipe:
            text = pipe.read()
        if text:
            yield json.loads(text)
            continue
        how = "no end" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else "crash"
        lost = trial.Result(name, mutant.name, mutant.rule, how, how, seconds=round(time.monotonic() - since, 1))
        yield asdict(lost)


def _child(name: str, family: Any, mutant: Any, keep: Path, seconds: float, pipe: int) -> None:
    """Never returns. What libraries print goes nowhere: thousands of warnings about NaN."""
    from tools.mutate import trial

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        result = trial.try_out(name, family, mutant, keep, seconds)
        os.write(pipe, json.dumps(asdict(result)).encode())
    except BaseException:
        os._exit(3)
    os._exit(0)


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """By family: mutants that count, noticed by quick and standard; then by case; then survivors with the reason."""
    from tools.mutate.survivors import reason

    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family]
        count = [row for row in mine if row["standard"] or not reason(row["name"])]
        quick, standard = (sum(bool(row[level]) for row in count) for level in ("quick", "standard"))
        of = max(1, len(count))
        yield f"{family}: {len(count)} mutants, quick {quick} ({quick / of:.0%}), standard {standard} ({standard / of:.0%})"
    by_case: dict[str, int] = {}
    for row in rows:
        if row["standard"]:
            by_case[row["standard"]] = by_case.get(row["standard"], 0) + 1
    for case, number in sorted(by_case.items(), key=lambda item: -item[1]):
        yield f"  {number:4} {case}"
    for row in rows:
        if not row["standard"]:
            why = reason(row["name"]) or "missed"
            yield f"  survived {row['family']}: {row['name']} ({why}; {row['asked']} of {row['of']} standard cases)"


def _line(row: dict[str, Any]) -> str:
    by = f"quick: {row['quick']}" if row["quick"] else f"standard: {row['standard']}" if row["standard"] else "SURVIVED"
    return f"{row['family']}: {row['name']} [{row['rule']}] {by} ({row['seconds']:.0f} s)"


def _read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["mutants"]
    return rows


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    import torch

    from attnkit import __version__

    document = {
        "kind": "mutation",
        "attnkit_version": __version__,
        "versions": {"torch": torch.__version__},
        "mutants": sorted(rows, key=lambda row: (row["family"], row["name"])),
    }
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
