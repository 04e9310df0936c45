"""The fleet's page: every node is on it, nothing comes from elsewhere, nothing that a node said becomes markup."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from ansible_collections.attnkit.fleet.plugins.filter.fleet import outcome_rows
from ansible_collections.attnkit.fleet.plugins.filter.status_page import COLUMNS, status_page
from ansible_collections.attnkit.fleet.plugins.module_utils.boot_report import summary
from ansible_collections.attnkit.fleet.plugins.module_utils.wording import short, span

NOW = "2026-06-01T12:00:00Z"
IMAGE = "registry:5000/attnkit/cuda-ampere@sha256:" + "a" * 64
REPORT: dict[str, Any] = {
    "schema_version": 1, "attnkit_version": "0.1.0", "created": "2026-05-31T12:00:00.250Z", "verdict": "pass",
    "backend": "FLASH_ATTN", "provider": "vllm-flash-attn", "node_type": "h100",
    "detection": {"devices": [{"arch": "sm_90", "name": "NVIDIA H100", "driver": "580.65.06"}] * 8 + [{"arch": "x86_64"}]},
    "engine": {"completion": {"tokens_per_s": 3910.26}},
    "fallbacks": [{"from": "FLASHINFER", "to": "FLASH_ATTN", "reason": "inconclusive"}],
}  # fmt: skip


def _outcome(ok: bool, report: dict[str, Any] | None, reason: str = "") -> dict[str, Any]:
    return {"attnkit_outcome": {"ok": ok, "reason": reason, "summary": summary(report), "went_back": False, "image": IMAGE}}


FLEET = {
    "good": _outcome(True, REPORT),
    "bad": _outcome(False, {**REPORT, "verdict": "fail", "backend": None}, 'broken <script>alert("1")</script> & more'),
    "silent": {},
}


class _Page(html.parser.HTMLParser):
    """Cells by row, every element's attributes, and the text of the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts = 0
        self._cell = self._body = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.scripts += tag == "script"
        self._body |= tag == "tbody"
        if self._body and tag == "tr":
            self.rows.append([])
        if self._body and tag == "td":
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell &= tag != "td"
        self._body &= tag != "tbody"

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())


@pytest.fixture(scope="module")
def page() -> _Page:
    return _Page(status_page(outcome_rows(FLEET, ["good", "bad", "silent"]), NOW))


def test_every_node_is_on_it_and_trouble_comes_first(page: _Page) -> None:
    assert [row[0].split()[0] for row in page.rows] == ["bad", "silent", "good"]
    good = dict(zip(COLUMNS, page.rows[2], strict=True))
    assert good == {
        "node": "good 8 x NVIDIA H100", "type": "h100",
        "state": "✓ serves · self-test: pass fell back: FLASHINFER -> FLASH_ATTN: inconclusive",
        "backend": "FLASH_ATTN", "provider": "vllm-flash-attn", "tokens/s": "3910.3", "report age": "24 h",
        "image": "cuda-ampere@aaaaaaaaaaaa", "driver": "580.65.06",
    }  # fmt: skip
    assert page.rows[0][2].startswith("✗ does not serve · self-test: fail")
    assert page.rows[1][1:3] == ["unknown", "✗ does not serve · self-test: no report no outcome (unreachable?)"]


def test_nothing_that_a_node_said_becomes_markup(page: _Page) -> None:
    assert page.scripts == 1
    assert 'broken <script>alert("1")</script> & more' in page.rows[0][2]


def test_nothing_comes_from_elsewhere(page: _Page) -> None:
    text = status_page(outcome_rows(FLEET, ["good"]), NOW)
    assert not [a for a in page.attributes if a[1] in ("src", "href", "srcset", "action") or (a[1] or "").startswith("on")]
    assert "url(" not in text and "@import" not in text and "//" not in text.replace("://registry", "")
    policy = next(
        value for tag, name, value in page.attributes if tag == "meta" and name == "content" and "default-src" in str(value)
    )
    assert policy is not None and "default-src 'none'" in policy


def test_it_counts(page: _Page) -> None:
    text = status_page(outcome_rows(FLEET, ["good", "bad", "silent"]), NOW)
    assert "1 of 3 nodes serve" in text and "2 do not" in " ".join(re.sub(r"<[^>]+>", "", text).split())
    assert "nodes serve</title>" in text
    assert status_page([], NOW).count("<tr>") == 1, "a fleet without nodes has a heading and no row"


def test_a_narrow_page_names_its_cells_and_a_dark_one_has_colours(page: _Page) -> None:
    labels = [value for tag, name, value in page.attributes if tag == "td" and name == "data-label"]
    assert labels == [*COLUMNS] * 3
    text = status_page([], NOW)
    assert "prefers-color-scheme: dark" in text and "max-width: 60rem" in text and 'name="viewport"' in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59, "59 s"), (150, "2 min"), (7200, "2 h"), (86400, "24 h"), (2 * 86400, "2 d")]
)
def test_span(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_short() -> None:
    assert short(IMAGE) == "cuda-ampere@aaaaaaaaaaaa"
    assert short("attnkit:cpu") == "attnkit:cpu"


@pytest.mark.docker
@pytest.mark.slow
def test_the_page_of_a_fleet(play: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    target = tmp_path / "out" / "status.html"
    done = play("status", "-e", json.dumps({"attnkit_page": str(target)}))
    assert done.returncode == 0, done.stdout[-4000:]
    assert "changed=0" in done.stdout and not re.search(r"changed=[1-9]", done.stdout)
    shown = _Page(target.read_text(encoding="utf-8"))
    assert [row[0].split()[0] for row in shown.rows] == ["node-1", "node-2", "node-3"]
    assert all(row[2].startswith("✓ serves · self-test: pass") and row[3] == "CPU_ATTN" for row in shown.rows)
