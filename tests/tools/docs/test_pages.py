"""The generated pages name everything that the code has, and the pages written by hand agree with the reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from attnkit.backends.registry import all_backends
from attnkit.selftest.faults import FAULTS
from attnkit.selftest.speed import FLOORS
from tools.docs import cli, environment, links, metrics, rooms, schemas

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"


def report(name: str) -> dict[str, Any]:
    return json.loads((DOCS / "reports" / name).read_text(encoding="utf-8"))


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_command_and_option_is_in_the_page() -> None:
    page = cli.markdown()
    for name, command in cli.commands():
        section = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        assert section, name
        for parameter in command.params:
            if parameter.name != "help" and parameter.param_type_name == "option":
                assert f"`{parameter.opts[0]}`" in section, (name, parameter.opts)


def test_a_variable_that_nobody_described_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    known = environment.known_to_the_source()
    monkeypatch.setattr(environment, "known_to_the_source", lambda: known | {"ATTNKIT_" + "NEW"})
    with pytest.raises(ValueError, match=r"describe in .*: ATTNKIT_" + "NEW"):
        environment.markdown()
    monkeypatch.setattr(environment, "known_to_the_source", lambda: known - {"ATTNKIT_CPU_ISA"})
    with pytest.raises(ValueError, match=r"no longer in the source.*ATTNKIT_CPU_ISA"):
        environment.markdown()


def test_a_field_that_nobody_described_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    described = {name: meaning for name, meaning in schemas.REPORT_FIELDS.items() if name != "SpecReport.phases"}
    monkeypatch.setattr(schemas, "REPORT_FIELDS", described)
    with pytest.raises(ValueError, match=r"describe SpecReport\.phases"):
        schemas.report_markdown()


def test_every_metric_of_a_boot_is_in_the_page() -> None:
    names = {name for name, *_ in metrics.found()}
    assert {"attnkit_verdict", "attnkit_ready", "attnkit_boot_seconds", "attnkit_readiness", "attnkit_selftest_cases"} <= names
    labels = {name: labels for name, _, labels, _ in metrics.found()}
    assert labels["attnkit_selftest_cases"] == ("backend", "device", "outcome")
    assert labels["attnkit_selftest_case_error_ratio"] == ("backend", "device", "case")


def test_the_picture_has_every_layer() -> None:
    picture = rooms.svg()
    for name in (name for row in rooms.layers() for name in row):
        assert f">{name}</text>" in picture


def test_a_link_to_a_file_that_is_gone_is_noticed() -> None:
    base = "https://github.com/attnkit/attnkit/blob/main"
    assert links.missing(f"[a]({base}/README.md) [b]({base}/attnkit/poem.py#L1) [c]({base})") == ["attnkit/poem.py"]


def test_every_backend_and_fault_is_in_its_page() -> None:
    assert all(f"## {backend.name}\n" in text("reference/backends.md") for backend in all_backends())
    assert all(f"| `{name}` |" in text("reference/self-test.md") for name in FAULTS)


def test_the_guide_states_the_floors_of_the_code() -> None:
    floors = [value for floor in FLOORS.values() for value in floor.values()]
    assert f"The floors are {min(floors):.2%} to {max(floors):.0%}".replace("%", " %") in text("guides/self-test.md")


def test_the_turing_page_counts_the_cases_of_its_report() -> None:
    verdicts = [v for v in report("h100/turing-selftest.json")["selftest"] if v["level"] == "standard"]
    counted: dict[bool, list[str]] = {True: [], False: []}
    for verdict in verdicts:
        counted[verdict["backend"] == "TURING_ATTN"] += [c["case"] for c in verdict["cases"] if c["outcome"] == "pass"]
    cases, floors = ({k: sum(c.startswith("speed-") == s for c in v) for k, v in counted.items()} for s in (False, True))
    page = text("guides/turing.md")
    assert f"TURING_ATTN ({cases[True]} cases and both speed floors)" in page and floors[True] == 2
    assert f"of the four others ({cases[False]} cases and one speed floor" in page and floors[False] == 1


def test_the_turing_page_has_the_throughput_of_its_report() -> None:
    page = text("guides/turing.md")
    for row in report("h100/turing-selftest.json")["throughput"]:
        if row["implementation"] == "TURING_ATTN":
            value = row["gbytes_per_s"] if row["workload"].startswith(("decode", "dual", "differential 16")) else row["tflops"]
            assert re.search(rf"\| {value:.0f} (TFLOP|GB)/s \|", page), row["workload"]


@pytest.mark.parametrize("name", ["vllm-0.25-tokens", "vllm-0.25-tokens-graphs", "vllm-0.25-speed"])
def test_the_engines_page_has_the_ratios_of_its_reports(name: str) -> None:
    page = text("guides/engines.md")
    for row in report(f"h100/{name}.json")["results"]:
        ratios = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        assert f"| {row['equal']} of {row['prompts']} | {ratios}" in page, row["model"]


def test_the_engines_page_has_the_speeds_of_the_cpu_report() -> None:
    page = text("guides/engines.md")
    for row in report("vllm-cpu-tokens-cpu-kernels.json")["results"]:
        low, high = min(row["ratios"]), max(row["ratios"])
        cells = (
            f"| {row['own_tokens_per_s']:.0f} | {row['ours_tokens_per_s']:.0f} | {row['ratio']:.2f} ({low:.2f}–{high:.2f}) |"
        )
        assert cells in page, row["model"]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in DOCS.rglob("*.md"):
        assert f"{path.relative_to(DOCS).as_posix()}\n" in navigation, path


def test_nothing_is_fetched_from_elsewhere_when_a_page_is_read() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in settings and "repo_url" not in settings and "extra_javascript" not in settings
    for path in DOCS.rglob("*.md"):
        assert not re.search(r"!\[[^]]*\]\(https?:|<(script|img|iframe)\b", path.read_text(encoding="utf-8")), path
