"""`attnkit report`: the boot's end first, readable at 80 columns; two reports compared; files, stdin, http; JUnit."""

from __future__ import annotations

import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from attnkit.boot.ending import failed_end, good_end
from attnkit.boot.report import BootReport, EngineReport, Levels, load_report, parse_report
from attnkit.cli import main
from attnkit.cli.report_compare import differences
from attnkit.cli.report_junit import junit_text
from attnkit.cli.report_tables import show_report
from attnkit.errors import EXIT_ENGINE
from attnkit.hardware.device import Detection, Device
from attnkit.selftest.results import CaseResult, Verdict

DEVICE = Device("nvidia", "gpu", "A \x1b[31mcard\x1b[0m [bold]", "sm_90", uuid="GPU-1", driver="570.1")
LAYER = "paged bfloat16, 32/8 heads of 128, blocks of 16"


def report(**changes: Any) -> BootReport:
    """A boot whose self-test passed and whose engine never became healthy, or what `changes` say."""
    cases = (
        CaseResult("decode-a", "the scale", "pass", "", "k", 0.25, 1.0, 0.1, 0.2),
        CaseResult("decode-b", "the mask", "pass", "", "k", 0.9, 1.0),
        CaseResult("alibi", "slopes", "skipped", "not claimed"),
    )
    made = BootReport(
        attnkit_version="0.1.0", created="2026-01-01T00:00:00Z", host={"hostname": "node-1"}, node_type="h100",
        node_type_source="detected", detection=Detection((DEVICE,), ()), verdict="pass", backend="FLASH_ATTN",
        provider="flash-attn", selftest=[Verdict("FLASH_ATTN", "flash-attn", "card", "standard", "pass", cases, layer=LAYER)],
        engine=EngineReport(command=["vllm"], argv=["vllm", "serve"], env={}, name="vllm", version="0.33.0"),
        versions={"torch": "2.13.0", "driver": "570.1"}, levels=Levels(ran="standard", profile="standard", enough=True),
    )  # fmt: skip
    made.error = "the engine was not healthy within 600 s: http://127.0.0.1:8000/health: it answered HTTP 503"
    made.summarise()
    made.end = failed_end(made, "engine did not start", made.error, "set ATTNKIT_HEALTH_TIMEOUT above 600", 1)
    return made.model_copy(update=changes)


FAILING = CaseResult("tree [8 nodes]", "positions", "fail", "error 2.0 over 1.0 at [3, 4]: " + "long " * 60, "k", 2.0, 1.0)


def shown(made: BootReport, capsys: pytest.CaptureFixture[str], **options: Any) -> list[str]:
    show_report(made, **options)
    return capsys.readouterr().out.splitlines()


def test_the_boots_end_comes_first_with_reason_and_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(report(), capsys)
    assert lines[0].startswith("✗ engine did not start; self-test passed")
    assert lines[1].startswith("why  the engine was not healthy within 600 s")
    assert any(line.startswith("next set ATTNKIT_HEALTH_TIMEOUT above 600") for line in lines[:5])
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "torch 2.13.0" in text
    assert "✓ 2 passed; nearest to its bound: ▰▰▰▰▰▰▰▰▰▱ 0.90 decode-b" in text
    assert "decode-a" not in text, "passes are folded"
    assert "1 skipped: not claimed" in text
    assert "layer      ✓ paged bfloat16" in text
    assert "decode-a" in "\n".join(shown(report(), capsys, everything=True))


def test_failures_come_first_with_the_reason_on_lines_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    passed = report().selftest[0].cases
    verdict = Verdict("TREE", "p", "card", "quick", "fail", (*passed, FAILING))
    made = report(selftest=[verdict], verdict="fail", backend=None)
    made.end = failed_end(made, "self-test failed", "x", "", 1)
    lines = shown(made, capsys)
    assert lines[0].startswith("✗ self-test failed  ")
    position = next(i for i, line in enumerate(lines) if "✗ tree [8 nodes]" in line)
    assert "▰▰▰▰▰▰▰▰▰▰ 2.00" in lines[position]
    assert lines[position + 1].startswith("    error 2.0 over 1.0 at [3, 4]: long")
    assert len(lines[position + 2].split()) > 5, "not a column of four characters"
    assert position < next(i for i, line in enumerate(lines) if "2 passed" in line)
    assert "attnkit selftest --backend TREE" in "\n".join(lines)


def test_text_from_outside_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    """No markup, no escape sequence: a device's name is data."""
    from attnkit.cli.tables import show_machine
    from attnkit.profiles.match import NodeMatch
    from attnkit.select.node import Machine

    show_machine(Machine(Detection((DEVICE,), ()), NodeMatch(None, DEVICE, "key must be [num_tokens], as [/query]")), ())
    out = capsys.readouterr().out
    assert "A \\x1b[31mcard\\x1b[0m [bold]" in out
    assert "key must be [num_tokens], as [/query]" in out
    assert "\x1b" not in out


def test_two_reports_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before, after = report(), report(versions={"torch": "2.14.0", "driver": "570.1"})
    cases = (CaseResult("decode-a", "the scale", "pass", "", "k", 0.95, 1.0), *report().selftest[0].cases[1:], FAILING)
    after.selftest = [Verdict("FLASH_ATTN", "flash-attn", "card", "standard", "fail", cases, layer=LAYER)]
    after.boot_seconds.total, before.boot_seconds.total = 90.0, 30.0
    after.end = good_end(after, "serving")
    found = differences(before, after)
    assert found["versions"] == [("torch", "2.13.0", "2.14.0")]
    assert [(name, new.split()[0]) for name, _, new in found["errors"]] == [("decode-a", "pass"), ("tree [8 nodes]", "fail")]
    assert found["speed"] == [("total seconds", "30", "90")]
    assert found["end"][0][0] == "end"
    assert differences(before, before) == {}
    for name, made in (("a", before), ("b", after)):
        (tmp_path / name).write_text(made.text())
    main(["report", str(tmp_path / "a"), str(tmp_path / "b")], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("2.14.0" in line for line in lines)


def test_what_a_newer_attnkit_says_beyond_is_ignored_and_version_1_is_read(tmp_path: Path) -> None:
    document = json.loads(report().text())
    document |= {"later": {"x": 1}}
    document["engine"]["later"] = document["selftest"][0]["later"] = 3
    assert parse_report(document, "x") == report()
    old = {k: v for k, v in document.items() if k not in ("end", "versions", "levels", "layer_kinds", "proof_key", "later")}
    old |= {"schema_version": 1, "exit_code": 0}
    (tmp_path / "old.json").write_text(json.dumps(old))
    read = load_report(tmp_path / "old.json")
    assert read.end is not None
    assert (read.end.kind, read.end.headline) == ("failed", "boot failed; self-test: pass")


def test_a_report_from_stdin_and_by_url(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = report().text().encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    main(["report", "-"], standalone_mode=False)
    from_stdin = capsys.readouterr().out

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/report.json" else 404)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_arguments: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        main(["report", f"{address}/report.json"], standalone_mode=False)
        assert capsys.readouterr().out == from_stdin
        with pytest.raises(SystemExit) as caught:
            main(["report", f"{address}/other"])
        assert caught.value.code == 2
        assert "HTTP 404" in capsys.readouterr().err
    finally:
        server.shutdown()
        server.server_close()


def test_junit() -> None:
    made = report(selftest=[Verdict("TREE", "p", "card", "quick", "fail", (*report().selftest[0].cases, FAILING))])
    root = ElementTree.fromstring(junit_text(made).encode())
    boot, tree = root.findall("testsuite")
    assert boot.find("testcase/failure").get("message") == "engine did not start; self-test passed"  # type: ignore[union-attr]
    assert (tree.get("tests"), tree.get("failures"), tree.get("skipped")) == ("4", "1", "1")
    assert "long long" in str(tree.find("testcase/failure").get("message"))  # type: ignore[union-attr]


def test_the_page_has_the_end_first_and_folds_what_passed() -> None:
    from attnkit.cli.report_page import render_html

    page = render_html(report())
    assert page.index("engine did not start; self-test passed") < page.index("set ATTNKIT_HEALTH_TIMEOUT above 600")
    assert (
        page.index("set ATTNKIT_HEALTH_TIMEOUT above 600") < page.index("<h2>Self-test</h2>") < page.index("<h2>Devices</h2>")
    )
    assert "<details><summary" in page
    assert 'style="width: 90%"' in page
    assert "<td>torch</td><td>2.13.0</td>" in page


def test_metrics_say_how_the_boot_ended() -> None:
    from attnkit.boot.metrics import render_metrics

    failed = render_metrics(report(exit_code=EXIT_ENGINE))
    assert "attnkit_boot_ok 0.0" in failed
    assert "attnkit_boot_exit_code 5.0" in failed
    serving = report()
    serving.end = good_end(serving, "serving")
    assert "attnkit_boot_ok 1.0" in render_metrics(serving)
    assert "attnkit_boot_exit_code" not in render_metrics(serving)


@pytest.mark.parametrize(
    ("last", "step"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "lower --max-model-len"),
        ("OSError: [Errno 98] Address already in use", "another one (--port)"),
        ("api_server.py: error: unrecognized arguments: --foo", "correct the engine's options"),
        ("something else", "read the engine's last lines"),
    ],
)
def test_the_next_step_follows_from_what_the_engine_said(last: str, step: str) -> None:
    made = report()
    assert made.engine is not None
    made.engine.exit_code, made.engine.last_output = 1, [last]
    assert step in failed_end(made, "engine did not start", "x", "", EXIT_ENGINE).next_step


def test_progress_says_n_of_n_and_time_left() -> None:
    from attnkit.cli.progress import Progress

    progress = Progress()
    assert progress.line("A", 0, 3, 4.0) == "A (1 of 3): 0 cases in 4 s"
    assert progress.line("B", 1, 3, 6.0) == "B (2 of 3): 0 cases in 6 s, about 12 s left"
