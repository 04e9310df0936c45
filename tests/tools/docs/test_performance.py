"""docs/reports/performance.md follows from the reports: what is reached, what is not, and that a stale page is noticed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from attnkit.bench import GROUPS
from attnkit.bench.results import Report, Row
from attnkit.bench.work import WORKS
from tools.docs import generate, performance

HEAD: dict[str, Any] = {
    "command": "attnkit bench --peers",
    "created": "2026-01-02T03:04:05Z",
    "device": "card",
    "driver": "1.2",
    "torch": "2.11",
    "triton": "3.6",
    "dtype": "bfloat16",
    "versions": {"vllm": "0.25.0"},
    "ceilings": {"read_gbytes": 3000.0, "copy_gbytes": 2500.0, "matmul_tflops": 700.0, "launch_micros": 1.2},
}


def row(workload: str, implementation: str, micros: float | None, *, group: str = "decode", **more: Any) -> Row:
    fields = {"tflops": 1.0, "gbytes": 2950.0, "spread": 0.01, "error": 1e-3, "right": True, **more}
    return Row(group, workload, implementation, "kernel", micros, **fields)


def decodes(ours: dict[str, float], peer: float = 100.0) -> list[Row]:
    names = [work.name for work in WORKS if work.group == "decode"]
    return [
        one for name in names for one in (row(name, "attnkit", ours.get(name, 100.0)), row(name, "vLLM FA3", peer))
    ]  # fmt: skip


def write(folder: Path, name: str, rows: list[Row], **head: Any) -> None:
    folder.mkdir(exist_ok=True)
    report = Report(folder / f"{name}.json", {**HEAD, **head}, rows)
    report.finish()


def page(folder: Path) -> str:
    return performance.markdown(folder)


def target(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_without_a_report_the_page_says_so(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "No report is committed yet." in text


def test_decode_may_miss_three_of_twelve(tmp_path: Path) -> None:
    slow = ["decode B1 ctx1024", "decode B1 ctx8192", "decode B1 ctx32768"]
    write(tmp_path, "a", decodes(dict.fromkeys(slow, 104.0)))
    assert target(page(tmp_path), "paged decode")[3:] == ["12 of 12: 0.96 to 1.00, 9 at ≥ 1.0", "yes", "no"]
    write(tmp_path, "a", decodes(dict.fromkeys([*slow, "decode B16 ctx1024"], 104.0)))
    assert target(page(tmp_path), "paged decode")[4] == "no"
    write(tmp_path, "a", decodes({slow[0]: 106.0}))
    assert target(page(tmp_path), "paged decode")[4] == "no"


def test_the_second_decode_target_asks_for_bandwidth_too(tmp_path: Path) -> None:
    write(tmp_path, "a", decodes({}))
    assert target(page(tmp_path), "paged decode")[4:] == ["yes", "yes"]
    rows = [
        Row(**{**asdict(r), "gbytes": 2850.0}) if r.ours and r.workload == "decode B64 ctx8192" else r for r in decodes({})
    ]  # 95 % of the read ceiling
    write(tmp_path, "a", rows)
    assert target(page(tmp_path), "paged decode")[4:] == ["yes", "no"]


def test_a_target_half_measured_is_not_reached(tmp_path: Path) -> None:
    rows = [row("mla B16 ctx4096", "attnkit", 90.0, group="mla"), row("mla B16 ctx4096", "FlashMLA dense", 100.0, group="mla")]
    write(tmp_path, "a", rows)
    text = page(tmp_path)
    assert target(text, "MLA decode")[4:] == ["not all measured", "not all measured"]
    assert target(text, "tree verification")[3:] == ["nothing", "not measured", "–"]


def test_mixed_is_held_against_microseconds(tmp_path: Path) -> None:
    name = "mixed 8x512@4096+56dec@4096"
    write(tmp_path, "a", [row(name, "attnkit", 900.0, group="mixed"), row(name, "vLLM FA3", 860.0, group="mixed")])
    assert target(page(tmp_path), "mixed batch")[3:] == ["1 of 1: 0.96; 900 µs", "yes", "no"]


def test_the_newest_report_with_a_ratio_counts(tmp_path: Path) -> None:
    name = "decode B16 ctx8192"
    write(tmp_path, "new", [row(name, "attnkit", 50.0), row(name, "vLLM FA3", 100.0)], created="2026-03-01T00:00:00Z")
    write(tmp_path, "old", [row(name, "attnkit", 99.0), row(name, "vLLM FA3", 100.0)])
    later = [row(name, "attnkit", 10.0), row(name, "vLLM FA3", None, note="absent: no module")]
    write(tmp_path, "later", later, created="2026-04-01T00:00:00Z")
    text = page(tmp_path)
    assert "| decode B16 ctx8192 | 50.0 |" in text and "| 2.00 |" in text
    assert "| later | vLLM FA3 | decode B16 ctx8192 | absent: no module |" in text


def test_slower_than_the_portable_peer_is_said(tmp_path: Path) -> None:
    name = "decode B16 ctx8192"
    portable = row(name, "vLLM Triton unified", 45.0)
    write(tmp_path, "a", [row(name, "attnkit", 50.0), row(name, "vLLM FA3", 60.0), portable])
    assert "Compared with vLLM's Triton kernels, on 1 workloads: slower in decode B16 ctx8192 (0.90)." in page(tmp_path)


def test_every_workload_has_a_target() -> None:
    for group in GROUPS:
        (found,) = [t for t in performance.TARGETS if group in t.groups]
        assert found.count == sum(work.group == group for work in WORKS)


def test_a_stale_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reports = tmp_path / "reports"
    write(reports, "a", decodes({}))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "GENERATED", {"docs/page.md": lambda: performance.markdown(reports)})
    assert generate.main([]) == 0 and generate.main(["--check"]) == 0
    name = "decode B16 ctx8192"
    write(reports, "more", [row(name, "attnkit", 50.0), row(name, "vLLM FA3", 60.0)], created="2026-05-01T00:00:00Z")
    capsys.readouterr()
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out.split() == ["stale:", "docs/page.md"]
    assert json.loads((reports / "more.json").read_text())["ratios"][0]["ratio"] == 1.2


def test_the_cpu_has_a_section_of_its_newest_report(tmp_path: Path) -> None:
    reports, cpu = tmp_path / "bench", tmp_path / "bench-cpu"
    cpu.mkdir()
    assert "CPU_ATTN" not in performance.markdown(reports)
    right = {
        "workload": "decode B1",
        "dtype": "float32",
        "kernel": "k",
        "ours_us": 100.0,
        "peer_us": 90.0,
        "tokens_first": 2.0,
        "note": "",
    }
    right |= {"ratio": 0.9, "ratio_low": 0.8, "ratio_high": 1.0}
    wrong = {**right, "workload": "prefill", "ratio": 0.0, "note": "WRONG"}
    for year, rows in (("2025", [right] * 3), ("2026", [right, {**right, "ratio": 1.2}, wrong])):
        head = {
            "command": "attnkit bench cpu",
            "created": f"{year}-01-02T03:04:05Z",
            "device": "CPU",
            "torch": "2.13",
            "vllm": "0.32",
        }
        loads = {"threads": 2, "load_average_before": [0.5, 1, 1], "load_average_after": [2.0, 1, 1]}
        (cpu / f"{year}.json").write_text(json.dumps({**head, **loads, "rows": rows}))
    page = performance.markdown(reports)
    assert "2026.json" in page and "2025.json" not in page
    assert "Reached in 1 of 3." in page, "a wrong answer has no ratio"
    assert "| prefill | float32 | WRONG | | | |  | k |" in page
