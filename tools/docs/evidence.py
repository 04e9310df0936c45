"""Collects evidence from committed reports: what `attnkit backends` shows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attnkit.errors import UsageError
from attnkit.select.evidence import TURING_NATIVE, WORDS, Evidence, Word


def collect(reports: Path, root: Path) -> tuple[Evidence, ...]:
    """Read every report below `reports`; paths are given relative to `root`.

    Raises:
        UsageError: a file there is not a report, or of an unknown kind.
    """
    found: list[Evidence] = []
    for path in sorted(reports.rglob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            read = _READERS[document["kind"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: not a report of attnkit ({error!r}); kinds: {', '.join(sorted(_READERS))}") from None
        found.extend(read(document, path.relative_to(root).as_posix()))
    return tuple(sorted(set(found), key=lambda e: (e.backend, e.target, WORDS.index(e.word), e.report, e.provider, e.subject)))


def dump(items: Iterable[Evidence]) -> str:
    """The text of attnkit/data/evidence.json."""
    return json.dumps([asdict(item) for item in items], indent=1) + "\n"


def _selftest(document: dict[str, Any], report: str) -> list[Evidence]:
    """Verdicts that passed at the standard level or above. The quick level is a boot check, not evidence."""
    device = document["device"]
    items = []
    for verdict in document["verdicts"]:
        if verdict["outcome"] != "pass" or verdict["level"] == "quick" or verdict.get("fault"):
            continue
        emulated = verdict["provider"].endswith("-interpreter") or document.get("emulates") is not None
        items.append(
            Evidence(
                backend=verdict["backend"],
                provider=verdict["provider"],
                target=document.get("emulates") or device["arch"],
                word="emulated" if emulated else "measured",
                subject=device["name"] + (", interpreter" if verdict["provider"].endswith("-interpreter") else ""),
                date=document["created"][:10],
                report=report,
            )
        )
    return items


def _turing(document: dict[str, Any], report: str) -> list[Evidence]:
    """Turing's code: emulated where a newer card ran it, measured where a Turing card did."""
    native = document["code"] == TURING_NATIVE
    word: Word = "measured" if native else "emulated"
    subject = document["device"] if native else f"sm_75 code on {document['device']}"
    return [
        Evidence(v["backend"], v["provider"], "sm_75", word, subject, document["created"], report)
        for v in document["selftest"]
        if v["outcome"] == "pass" and v["level"] != "quick"
    ]


def _compiled(document: dict[str, Any], report: str) -> list[Evidence]:
    """Backends of which every kernel was compiled for a target with matrix instructions in it."""
    by_key: dict[tuple[str, str], bool] = {}
    for kernel in document["kernels"]:
        key = (kernel["backend"], kernel["target"])
        by_key[key] = by_key.get(key, True) and bool(kernel["ok"])
    return [
        Evidence(backend, "attnkit", target, "compiled", document["compiler"], document["created"][:10], report)
        for (backend, target), ok in by_key.items()
        if ok
    ]


def _contract(document: dict[str, Any], report: str) -> list[Evidence]:
    return [
        Evidence(
            check["backend"],
            check["provider"],
            f"{check['package']} {check['version']}",
            "contract",
            "signatures of the real package",
            document["created"][:10],
            report,
        )
        for check in document["checks"]
        if check["ok"]
    ]


def _nothing(document: dict[str, Any], report: str) -> list[Evidence]:
    """Benchmarks, fault injections, censuses and demo runs are evidence for docs, not for a backend being right."""
    return []


_READERS = {
    "selftest": _selftest,
    "cross-compile": _compiled,
    "contract": _contract,
    "turing": _turing,
    "turing-compile": _nothing,
    "prove": _nothing,
    "bench": _nothing,
    "demo": _nothing,
    "image": _nothing,
    "fleet": _nothing,
    "mutation": _nothing,
    "census": _nothing,
    "fuzz": _nothing,
    "peer-tests": _nothing,
    "sanitizer": _nothing,
    "start": _nothing,
    "served-ranks": _nothing,
    "census-time": _nothing,
}
