"""Boot as a process: its steps, files, exit codes, and the engine under it.

What is about verdicts runs the self-test; what is about files, signals and the engine simulates the device's answer.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from attnkit.boot.report import json_schema, load_report

Start = Callable[..., "Boot"]  # noqa: F821 - the class lives in conftest.py
Engine = Callable[..., "tuple[list[str], str]"]
SDPA = ("--backend", "TORCH_SDPA")
SIMULATED = (*SDPA, "--planted-answer", "right")
HANGS = (*SDPA, "--planted-answer", "hang")


def test_without_a_command_it_proves_and_reports(start: Start) -> None:
    boot = start(*SDPA)
    assert boot.wait() == 0
    assert boot.names()[:4] == ["boot", "detect", "devices", "select"]
    assert boot.names()[-2:] == ["selftest.verdict", "report"]
    cases = [e for e in boot.events if e["event"] == "selftest.case"]
    assert cases
    assert any(c["max_error"] <= c["max_bound"] for c in cases if c["outcome"] == "pass" and c["max_bound"] is not None)
    report = boot.report
    jsonschema.Draft202012Validator(json_schema()).validate(report)
    assert (report["verdict"], report["backend"], report["exit_code"]) == ("pass", "TORCH_SDPA", 0)
    assert [c["case"] for c in report["selftest"][0]["cases"]] == [c["case"] for c in cases]
    assert {r["backend"] for r in boot.event("select")["rejected"]} == {r["backend"] for r in report["decision"]["rejected"]}
    assert set(report["boot_seconds"]) == {"detect", "select", "selftest", "engine", "total"}
    assert boot.state() is None, "nothing serves"
    assert 'attnkit_verdict{outcome="pass"} 1.0' in boot.metrics_path.read_text()
    load_report(boot.report_path)


def test_a_served_engine_goes_through_every_state(start: Start, engine: Engine, tmp_path: Path) -> None:
    command, url = engine("--healthy-when", "loaded")
    boot = start(*SDPA, "--health-url", url, "--", *command)
    boot.until("engine-starting")
    (tmp_path / "loaded").touch()
    boot.until("ready")
    assert boot.states == [s for s in ("starting", "selftest", "engine-starting", "ready") if s in boot.states]
    assert {"selftest", "engine-starting"} <= set(boot.states)
    assert json.loads(boot.ready_path.read_text())["backend"] == "TORCH_SDPA"
    assert '"state": "ready"' in boot.ready_path.read_text()
    assert "attnkit_ready 1.0" in boot.metrics_path.read_text()
    boot.process.send_signal(signal.SIGTERM)
    assert boot.wait() == 0
    assert "engine: got SIGTERM" in boot.err
    engine_events = ["engine.start", "engine.healthy", "engine.completion", "engine.layers", "ready", "engine.exit"]
    assert boot.names()[-7:] == ["report", *engine_events]
    assert boot.event("engine.exit")["requested"] is True
    assert boot.report["engine"]["completion"]["completion_tokens"] == 32
    assert boot.report["engine"]["completion"]["tokens_per_s"] > 0
    assert boot.state() is None
    assert "attnkit_ready 0.0" in boot.metrics_path.read_text()


def test_a_stale_readiness_file_and_report_never_count(start: Start, tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text('{"state": "ready", "verdict": "pass", "backend": "STALE", "since": ""}\n')
    (tmp_path / "report.json").write_text("{}")
    boot = start(*HANGS)
    boot.until("selftest")
    assert not boot.report_path.exists(), "no report before its verdict"
    partial = load_report(boot.report_path.with_suffix(".partial.json"))
    assert partial.decision is not None
    assert partial.exit_code is None
    boot.process.send_signal(signal.SIGTERM)
    assert boot.wait() == 128 + signal.SIGTERM
    assert boot.report["decision"]["chosen"]["backend"] == "TORCH_SDPA"
    assert not boot.report_path.with_suffix(".partial.json").exists()
    assert boot.report_path.with_suffix(".previous.json").read_text() == "{}", "the report before is kept beside"
    assert boot.state() == "failed"


@pytest.mark.parametrize("which", ["report", "ready", "metrics"])
def test_an_unwritable_output_is_found_before_anything_else(start: Start, tmp_path: Path, which: str) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "out.json"
    boot = start(*SDPA, env={f"ATTNKIT_{which.upper()}": str(path)})
    assert boot.wait() == 2
    assert f"cannot write {path}" in boot.err
    assert f"ATTNKIT_{which.upper()} to change it" in boot.err
    assert boot.names() == ["error"]


def test_a_planted_fault_stops_an_explicit_backend_and_the_engine_never_starts(start: Start, tmp_path: Path) -> None:
    mark = tmp_path / "engine-ran"
    boot = start(*SDPA, "--", "touch", str(mark), env={"ATTNKIT_FAULT": "scale"})
    assert boot.wait() == 1
    assert not mark.exists()
    assert all(e["planted_fault"] == "scale" for e in boot.events)
    assert boot.report["planted_fault"] == "scale"
    assert boot.report["verdict"] == "fail"
    assert boot.report["backend"] is None
    assert boot.report["engine"] is None
    assert boot.state() == "failed"
    failed = [e for e in boot.events if e["event"] == "selftest.case" and e["outcome"] == "fail"]
    assert failed
    assert all(e["reason"] for e in failed)
    assert [(f["from"], f["to"]) for f in boot.report["fallbacks"]] == [("TORCH_SDPA", None)]
    assert "TORCH_SDPA" in boot.report["error"]


def test_fallback_goes_along_the_order_and_each_step_is_reported(start: Start) -> None:
    boot = start(env={"ATTNKIT_FAULT": "scale"})
    assert boot.wait() == 1
    accepted = [a["backend"] for a in boot.event("select")["accepted"]]
    steps = [(e["from"], e["to"]) for e in boot.events if e["event"] == "fallback"]
    assert steps == list(zip(accepted, [*accepted[1:], None], strict=True))
    assert [v["backend"] for v in boot.report["selftest"]] == accepted


def test_an_explicit_backend_that_cannot_serve_is_exit_code_3_with_reasons(start: Start) -> None:
    boot = start("--backend", "FLASH_ATTN")
    assert boot.wait() == 3
    assert "FLASH_ATTN cannot serve" in boot.err
    assert "never falls back" in boot.err
    assert "  FLASH_ATTN: " in boot.err
    assert boot.report["verdict"] == "skipped"
    assert boot.report["exit_code"] == 3
    assert boot.state() == "failed"
    assert boot.report["selftest"] == []


def test_the_engine_dies_before_it_serves(start: Start, engine: Engine) -> None:
    command, url = engine("--healthy-when", "never", "--die-when", "/", "3")
    boot = start(*SIMULATED, "--health-url", url, "--", *command)
    assert boot.wait() == 5
    assert boot.state() == "failed"
    event = boot.event("engine.exit")
    assert (event["code"], event["requested"]) == (3, False)
    assert "engine: out of memory while loading weights" in event["last_output"]
    assert boot.report["error"] == (
        "the engine ended before it served with exit code 3; its last line: engine: out of memory while loading weights"
    )
    assert (boot.report["exit_code"], boot.report["engine"]["exit_code"]) == (5, 3)
    assert boot.report["end"]["next_step"] == "free the device, or lower --max-model-len"
    assert "ready" not in boot.names()


def test_the_engine_is_killed_while_it_serves(start: Start, engine: Engine, tmp_path: Path) -> None:
    command, url = engine("--die-when", "served", "-9")
    boot = start(*SIMULATED, "--health-url", url, "--", *command)
    boot.until("ready")
    (tmp_path / "served").touch()
    assert boot.wait() == 137
    assert "ready" in boot.names()
    assert boot.event("engine.exit")["how"] == "signal SIGKILL"
    assert boot.state() == "failed"
    assert "attnkit_ready 0.0" in boot.metrics_path.read_text()


def test_an_engine_that_is_never_healthy_is_stopped(start: Start, engine: Engine) -> None:
    command, url = engine("--healthy-when", "never")
    boot = start(*SIMULATED, "--health-url", url, "--health-timeout", "2", "--", *command)
    assert boot.wait() == 1
    assert "not healthy within 2 s" in boot.report["error"]
    assert "engine: got SIGTERM" in boot.err
    assert boot.state() == "failed"


def test_a_self_test_that_takes_too_long_proves_nothing_either_way(start: Start, engine: Engine) -> None:
    command, url = engine()
    boot = start(*HANGS, "--selftest-timeout", "1", "--health-url", url, "--", *command)
    assert boot.wait() == 4
    (verdict,) = boot.report["selftest"]
    assert verdict["outcome"] == "inconclusive"
    assert "did not finish within 1 s" in verdict["cases"][-1]["reason"]
    assert boot.state() == "failed"


def test_an_engine_that_is_healthy_but_cannot_answer_is_not_ready(start: Start, engine: Engine) -> None:
    command, url = engine("--refuse-completions")
    boot = start(*SIMULATED, "--health-url", url, "--", *command)
    assert boot.wait() == 1
    assert "the kernel exploded" in boot.report["error"]
    assert "ready" not in boot.names()
    assert boot.state() == "failed"


def test_a_server_without_the_openai_api_is_ready_when_healthy(start: Start, engine: Engine) -> None:
    command, url = engine("--no-api")
    boot = start(*SIMULATED, "--health-url", url, "--", *command)
    boot.until("ready")
    boot.process.send_signal(signal.SIGINT)
    assert boot.wait() == 0
    assert "no completion was requested" in boot.event("ready")["why"]


def test_a_command_without_a_health_url_is_ready_once_it_stays_alive(start: Start) -> None:
    boot = start(*SIMULATED, "--", "sleep", "600")
    boot.until("ready")
    boot.process.send_signal(signal.SIGTERM)
    assert boot.wait() == 128 + signal.SIGTERM
    assert "no health endpoint is known" in boot.event("ready")["why"]
    assert any("started as given" in note for note in boot.report["engine"]["notes"])


def test_a_command_that_does_not_exist(start: Start) -> None:
    boot = start(*SIMULATED, "--", "no-such-engine")
    assert boot.wait() == 2
    assert "cannot start 'no-such-engine'" in boot.err
    assert boot.state() == "failed"
    assert boot.report["verdict"] == "skipped", "it is found before the self-test"
    assert "selftest.verdict" not in boot.names()


def test_a_second_signal_kills_an_engine_that_does_not_listen(start: Start, engine: Engine, tmp_path: Path) -> None:
    command, url = engine("--ignore-term")
    boot = start(*SIMULATED, "--health-url", url, "--", *command)
    boot.until("ready")
    boot.process.send_signal(signal.SIGTERM)
    _until((tmp_path / "got-SIGTERM").exists)
    _until(lambda: boot.state() == "stopping")
    assert boot.process.poll() is None
    boot.process.send_signal(signal.SIGTERM)
    assert boot.wait() == 137


def test_a_signal_before_the_engine_ends_the_boot_and_is_reported(start: Start) -> None:
    boot = start(*SDPA, "--level", "extended")
    boot.until("selftest")
    boot.process.send_signal(signal.SIGTERM)
    assert boot.wait() == 128 + signal.SIGTERM
    assert "SIGTERM" in boot.report["error"]
    assert boot.report["decision"]["chosen"]["backend"] == "TORCH_SDPA", "what was known is on disk"
    assert boot.state() == "failed"


def test_an_orphan_is_adopted_and_reaped(start: Start, engine: Engine, tmp_path: Path) -> None:
    command, url = engine("--orphan")
    boot = start(*SIMULATED, "--health-url", url, "--", *command)
    boot.until("ready")
    pid = int((tmp_path / "orphan.pid").read_text())
    orphan = Path(f"/proc/{pid}")
    assert _parent(orphan) == boot.process.pid
    os.kill(pid, signal.SIGKILL)
    _until(lambda: not orphan.exists())  # or it ended and stays as a zombie
    os.kill(boot.process.pid, signal.SIGTERM)
    assert boot.wait() == 0


def _until(true: Callable[[], bool], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout:g} s for it"
        time.sleep(0.01)


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
