"""docs/reports/architectures.md: vLLM's census beside the reading of config.json, for every architecture in vLLM's registry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tools.docs.markdown import cell, page, table
from tools.engines.census_table import EQUAL, NO_CONFIGURATION, NOT_LOADED, NOT_UNDERSTOOD, REFUSED, load

_MEANING = {
    EQUAL: "every kind of layer, its number and its softmax scale are the same on both sides, towers included",
    NOT_UNDERSTOOD: "`attnkit select` names the field that it does not understand, and exits with 4",
    REFUSED: "`attnkit select` says what is wrong with the file, and exits with 2",
    "different": "the two sides differ, and nothing says so: a defect",
    NOT_LOADED: "vLLM does not build the model here; the words are vLLM's",
    NO_CONFIGURATION: "neither vLLM nor transformers has a configuration class with defaults",
}


def markdown() -> str:
    """The page."""
    report = load()
    rows: Mapping[str, Mapping[str, Any]] = report["rows"]
    return page("vLLM's architectures", *_head(report), *_summary(rows.values()), "", *_table(rows), "", *_missing(rows))


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    source = report["source"]
    extra = ", ".join(f"{name} {number}" for name, number in source["with"].items())
    yield from (
        f"Every architecture in the registry of vLLM {source['vllm']} (torch {source['torch']}, transformers "
        f"{source['transformers']}; the packages of `{source['packages']}`), asked on {source['date']} with "
        "`python -m tools.engines.census_table take`: vLLM builds the model without weights, and what registers is counted, as "
        "[`attnkit census`](../reference/cli.md) does; `attnkit select` reads the same config.json. The configurations are "
        "defaults of the classes that vLLM and transformers ship. Where those lack fields, they were written by hand after "
        "vLLM's model code, and not checked against published files.",
        "",
        f"Where a package is missing in that set, vLLM was asked again with {extra} beside it; the column `needs` says so. "
        "Each line is: number of layers, role, operation, query heads / key heads x head size / value size, window, features, "
        "softmax scale. A window is the keys visible with the own, or beside it on either side where it is `both`. Layers with "
        "a state instead of a cache are counted together. The softmax scale is there where it is not 1/sqrt(head size), to "
        "five digits, and always for latent attention; a line whose scale vLLM's layer does not say has the words for that, "
        "and only the rest of it is compared. Configurations and lines are in "
        "[architectures.json](architectures.json), and a test holds the reading to them.",
        "",
    )


def _summary(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    found = Counter(row["result"] for row in rows)
    yield from table(("result", "architectures", "what it means"), ((n, str(found[n]), why) for n, why in _MEANING.items()))


def _table(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from table(
        ("architecture", "model type", "vLLM's census", "result", "needs"),
        (
            (name, row["model_type"], cell("<br>".join(row["census"])), _result(row), _needs(row))
            for name, row in rows.items()
            if "census" in row
        ),
    )


def _result(row: Mapping[str, Any]) -> str:
    return row["result"] if row["result"] == EQUAL else f"{row['result']}: {cell(row['why'].split(': ', 2)[-1][:140])}"


def _needs(row: Mapping[str, Any]) -> str:
    return cell(row.get("missing", ""))


def _missing(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from ("## Not built", "")
    yield from table(
        ("architecture", "model type", "registered for", "what is missing", "attnkit select"),
        (
            (name, row.get("model_type", ""), row["table"], cell(row.get("missing", "")), row.get("answer", ""))
            for name, row in rows.items()
            if "census" not in row
        ),
    )
