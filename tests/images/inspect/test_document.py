"""docs/reference/images.md: what no report holds is not in it, and it is up to date with the reports."""

from __future__ import annotations

import pytest

from images.builder import platforms
from images.inspect import document

REPORT = {
    "kind": "image",
    "platform": "cpu",
    "date": "2026-01-02",
    "revision": "abc",
    "image": {"id": "sha256:1", "bytes": 1_910_000_000},
    "targets": [],
    "layers": [{"what": "system", "bytes": 118_000_000, "digest": "a"}, {"what": "attnkit", "bytes": 2_400_000, "digest": "b"}],
    "kernels": None,
    "versions": {"python": "3.11.2"},
    "checks": {"boot": "pass"},
    "not_run": "this and that",
}
REBUILT = {"same_inputs_no_cache": ["a"], "one_line_more_in_attnkit": ["a"], "fetched_bytes_compressed": 1_500_000}


def _page(**more: object) -> str:
    return document.page(platforms.load(), {"cpu": {**REPORT, **more}})


def test_the_page_is_up_to_date_with_the_reports() -> None:
    assert document.main(["--check"]) == 0


def test_a_platform_without_a_report_has_no_number() -> None:
    row = next(line for line in _page().splitlines() if line.startswith("| tpu |"))
    assert row.split(" | ")[3:] == ["–", "–", "described; no report yet |"]


def test_what_was_not_measured_says_so() -> None:
    rows = [line for line in _page().splitlines() if line.startswith("| cpu | system")]
    assert rows == ["| cpu | system | 118 | not measured | not measured |"]
    assert "compressed as a registry" not in _page()


def test_rebuilt_layers_are_told_apart() -> None:
    page = _page(rebuilt=REBUILT)
    assert "| cpu | system | 118 | yes | kept |" in page
    assert "| cpu | attnkit | 2.4 | no | fetched again |" in page
    assert "- cpu: 1.50 MB, compressed" in page


def test_a_target_that_was_not_compiled_is_named() -> None:
    ampere = {**REPORT, "platform": "cuda-ampere", "targets": ["sm_80"], "kernels": {"kernels": {"sm_80": 3}}}
    page = document.page(platforms.load(), {"cuda-ampere": ampere})
    assert "kernels of sm_86, sm_89, sm_90, sm_100, sm_120 are described and were not compiled for this report" in page


@pytest.mark.parametrize("name", ["rocm", "xpu"])
def test_what_is_not_built_says_why(name: str) -> None:
    assert f"- {name}: {platforms.load()[name].not_built}." in _page()


def test_an_image_for_one_architecture_is_beside_its_platform() -> None:
    ampere = {**REPORT, "platform": "cuda-ampere", "targets": ["sm_80"]}
    one = {
        **ampere,
        "image": {"id": "sha256:2", "bytes": 3_000_000_000, "pull_bytes": 1_300_000_000},
        "targets": ["sm_90"],
        "checks": {"GPU code in the libraries": "sm_90, sm_90a"},
        "libraries": [
            {"name": "torch/lib/libtorch_cuda.so", "bytes": 151_000_000, "code": {"sm_90": 55_000_000, "sm_90a": 500_000}}
        ],
    }
    page = document.page(platforms.load(), {"cuda-ampere": ampere, "cuda-sm_90": one})
    assert "| cuda-ampere | 1910 | not measured | not measured | 2026-01-02 |" in page
    assert "| cuda-sm_90 | 3000 | 1300 | sm_90, sm_90a | 2026-01-02 |" in page
    assert "| libtorch_cuda.so | 151 | sm_90 55, sm_90a 0.5 |" in page
    assert "## For some architectures" not in _page()
