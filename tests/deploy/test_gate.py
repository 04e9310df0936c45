"""The gate: when it opens, when it stays closed for good, when it waits, and what it says."""

from __future__ import annotations

import copy
import json
import os
import struct
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.attnkit.fleet.plugins.module_utils.boot_report import moment, objection, summary
from ansible_collections.attnkit.fleet.plugins.module_utils.docker_api import Docker, DockerError, demultiplex
from ansible_collections.attnkit.fleet.plugins.modules.attnkit_gate import ask, probe

IMAGE = "registry:5000/attnkit/cpu@sha256:" + "1" * 64
START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=timezone.utc)
REPORT = {
    "schema_version": 1,
    "created": (START + timedelta(seconds=20)).isoformat(),
    "node_type": "cpu",
    "verdict": "pass",
    "backend": "TORCH_SDPA",
    "provider": "torch",
    "selftest": [],
    "fallbacks": [{"from": "TRITON_ATTN", "to": "TORCH_SDPA", "reason": "not installed"}],
    "planted_fault": None,
    "boot_seconds": {"total": 52.5},
    "engine": {"completion": {"tokens_per_s": 101.5}},
    "exit_code": None,
}
FAILED = {
    **REPORT,
    "verdict": "fail",
    "backend": None,
    "planted_fault": "scale",
    "exit_code": 1,
    "selftest": [
        {
            "backend": "TORCH_SDPA",
            "cases": [
                {"case": "decode-ok", "outcome": "pass", "reason": ""},
                *(
                    {"case": f"decode-{i}", "outcome": "fail", "reason": f"largest error 0.{i} is over the bound"}
                    for i in range(1, 6)
                ),
            ],
        }
    ],
}
CONTAINER = {
    "Created": (START - timedelta(seconds=1)).isoformat(),
    "RestartCount": 0,
    "Config": {"Image": IMAGE},
    "State": {
        "Status": "running",
        "Running": True,
        "ExitCode": 0,
        "Error": "",
        "StartedAt": START.isoformat(),
        "Health": {"Status": "healthy"},
    },
}


def _judge(
    run_dir: Path,
    report: dict[str, Any] | None,
    *,
    ready: str | None = "ready",
    ready_at: int = 50,
    image: str = IMAGE,
    **state: Any,
) -> Any:
    """probe() at a container whose run directory holds this report and readiness."""
    if report is not None:
        (run_dir / "report.json").write_text(json.dumps(report), encoding="utf-8")
    if ready is not None:
        file = run_dir / "ready.json"
        file.write_text(json.dumps({"state": ready}), encoding="utf-8")
        at = (START + timedelta(seconds=ready_at)).timestamp()
        os.utime(file, (at, at))
    container = copy.deepcopy(CONTAINER)
    container["RestartCount"] = state.pop("RestartCount", 0)
    container["State"].update(state)
    return probe(container, str(run_dir), image=image, node_type="cpu")


def test_opens_only_with_everything_in_place(tmp_path: Path) -> None:
    seen = _judge(tmp_path, REPORT)
    assert (seen.done, seen.ok, seen.reason) == (True, True, "")


def test_a_busy_docker_that_notes_the_start_late_is_no_other_start(tmp_path: Path) -> None:
    """Seen: a report 66 ms older than the start of the service that wrote it; the rollout waited until its time was over."""
    seen = _judge(tmp_path, {**REPORT, "created": (START - timedelta(seconds=1)).isoformat()})
    assert (seen.done, seen.ok, seen.reason) == (True, True, "")


@pytest.mark.parametrize(
    ("report", "options", "says"),
    [
        (None, {}, "no boot report yet"),
        ({**REPORT, "created": (START - timedelta(seconds=60)).isoformat()}, {}, "no boot report yet"),
        (REPORT, {"ready": None}, "not ready"),
        (REPORT, {"ready": "engine-starting"}, "engine-starting"),
        (REPORT, {"ready_at": -5}, "readiness says nothing"),
        (REPORT, {"Health": {"Status": "starting"}}, "health check says starting"),
    ],
    ids=["no report", "report from before", "no readiness", "engine starts", "readiness from before", "not healthy yet"],
)
def test_waits(tmp_path: Path, report: dict[str, Any] | None, options: dict[str, Any], says: str) -> None:
    seen = _judge(tmp_path, report, **options)
    assert (seen.done, seen.ok) == (False, False)
    assert says in seen.reason


@pytest.mark.parametrize(
    ("report", "options", "says"),
    [
        (FAILED, {}, "fault 'scale' was injected on purpose"),
        ({**REPORT, "planted_fault": "scale"}, {}, "did not detect it"),
        ({**REPORT, "verdict": "inconclusive"}, {}, "was inconclusive"),
        ({**REPORT, "verdict": "skipped"}, {}, "no self-test ran"),
        ({**REPORT, "node_type": "h100"}, {}, "'h100' node, the fleet says 'cpu'"),
        ({**REPORT, "schema_version": 3}, {}, "schema_version 3"),
        (REPORT, {"image": IMAGE.replace("1", "2")}, "runs registry:5000"),
        (REPORT, {"Running": False, "Status": "exited", "ExitCode": 137}, "exit code 137"),
        (FAILED, {"Running": False, "Status": "exited", "ExitCode": 1}, "decode-1: largest error 0.1 is over the bound"),
        (FAILED, {"RestartCount": 1, "ready": "selftest"}, "exit code 1: the self-test failed"),
        ({**REPORT, "error": "it died"}, {"RestartCount": 2, "ready": "engine-starting"}, "restarted: it died"),
    ],
    ids=[
        "fault", "fault not seen", "inconclusive", "skipped", "other node", "schema", "other image", "ended",
        "ended with a failed self-test", "restarted after a failed self-test", "crash loop of the engine",
    ],
)  # fmt: skip
def test_stays_closed_for_good(tmp_path: Path, report: dict[str, Any], options: dict[str, Any], says: str) -> None:
    seen = _judge(tmp_path, report, **options)
    assert (seen.done, seen.ok) == (True, False)
    assert says in seen.reason


def test_a_container_that_was_started_again_keeps_why_it_ended(tmp_path: Path) -> None:
    """The new boot has begun: its own report is not there yet, and the one before says what happened."""
    (tmp_path / "report.previous.json").write_text(json.dumps(FAILED), encoding="utf-8")
    seen = _judge(tmp_path, None, RestartCount=1, ready="starting")
    assert (seen.done, seen.ok) == (True, False)
    assert "exit code 1: the self-test failed (fault 'scale' was injected on purpose)" in seen.reason


def test_the_report_of_an_earlier_container_explains_nothing(tmp_path: Path) -> None:
    old = {**FAILED, "created": (START - timedelta(hours=1)).isoformat()}
    (tmp_path / "report.previous.json").write_text(json.dumps(old), encoding="utf-8")
    assert _judge(tmp_path, None, RestartCount=1, ready="starting").reason.endswith("restarted: see the log")


def test_a_restart_long_ago_is_forgiven_once_it_serves(tmp_path: Path) -> None:
    assert _judge(tmp_path, REPORT, RestartCount=3).ok


def test_no_container(tmp_path: Path) -> None:
    seen = probe(None, str(tmp_path), image=None, node_type=None)
    assert (seen.done, seen.ok) == (True, False)
    assert "no such container" in seen.reason


def test_half_a_report_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"schema_version": 1, "created": "20', encoding="utf-8")
    seen = _judge(tmp_path, None)
    assert (seen.done, seen.reason) == (False, "no boot report yet")


def test_the_reason_names_some_cases_and_counts_the_rest() -> None:
    reason = objection(FAILED, node_type="cpu") or ""
    assert all(f"decode-{i}: " in reason for i in (1, 2, 3))
    assert "decode-4" not in reason and "and 2 more" in reason and "decode-ok" not in reason


def test_summary() -> None:
    shown = summary(REPORT)
    assert (shown["verdict"], shown["boot_seconds"], shown["tokens_per_s"]) == ("pass", 52.5, 101.5)
    assert shown["fallbacks"] == ["TRITON_ATTN -> TORCH_SDPA: not installed"]
    assert summary(None)["verdict"] is None


@pytest.mark.parametrize("digits", ["", ".1", ".12345", ".123456", ".123456789"])
def test_times_of_the_engine(digits: str) -> None:
    seen = moment(f"2026-03-01T12:00:00{digits}Z")
    assert seen.utcoffset() == timedelta(0)
    assert seen.microsecond == (int((digits[1:] + "000000")[:6]) if digits else 0)


def test_a_log_without_its_frames() -> None:
    frames = b"".join(
        struct.pack(">BxxxL", stream, len(text)) + text for stream, text in ((1, b'{"event": 1}\n'), (2, b"oops\n"))
    )
    assert demultiplex(frames) == '{"event": 1}\noops\n'
    assert demultiplex(b"a terminal's log has no frames\n") == "a terminal's log has no frames\n"


def test_the_engine_over_its_socket(engine_socket: Any) -> None:
    path, answers = engine_socket
    answers["/containers/attnkit/json"] = (200, json.dumps(CONTAINER).encode())
    answers["/info"] = (500, b'{"message": "broken"}')
    docker = Docker(path)
    assert docker.container("attnkit") == CONTAINER
    assert docker.container("other") is None
    with pytest.raises(DockerError, match="answered 500"):
        docker.get("/info")
    with pytest.raises(DockerError, match="no answer"):
        Docker(path + ".gone").get("/info")


def test_a_completion(web: Any) -> None:
    web.answers["/v1/models"] = (200, b'{"data": [{"id": "tiny"}]}')
    web.answers["/v1/completions"] = (200, b'{"choices": [{"text": " it works"}], "usage": {"completion_tokens": 16}}')
    answer = ask(web.url, None, "It passes because", 16)
    assert (answer["model"], answer["text"], answer["completion_tokens"]) == ("tiny", " it works", 16)
    assert web.posted == [
        {"model": "tiny", "prompt": "It passes because", "max_tokens": 16, "temperature": 0.0, "ignore_eos": True}
    ]


def test_an_engine_that_wants_a_key(web: Any) -> None:
    web.api_key = "sesame"
    web.answers["/v1/models"] = (200, b'{"data": [{"id": "tiny"}]}')
    web.answers["/v1/completions"] = (200, b'{"choices": [{"text": "!"}], "usage": {"completion_tokens": 1}}')
    assert ask(web.url, None, "It passes because", 1, "sesame")["text"] == "!"
    for key in (None, "wrong"):
        with pytest.raises(OSError, match="401"):
            ask(web.url, None, "It passes because", 1, key)


@pytest.mark.slow
def test_the_module(tmp_path: Path, engine_socket: Any, web: Any, module: Any) -> None:
    """Through Ansible: open with a completion; closed where the engine gives none; check mode looks once."""
    path, answers = engine_socket
    answers["/containers/attnkit/json"] = (200, json.dumps(CONTAINER).encode())
    answers["/containers/attnkit/logs?stdout=1&stderr=0&tail=500"] = (200, b'{"event": "boot"}\nnoise\n')
    answers["/containers/attnkit/logs?stdout=1&stderr=1&tail=60"] = (200, b"the end of the log\n")
    web.answers["/v1/models"] = (200, b'{"data": [{"id": "tiny"}]}')
    web.answers["/v1/completions"] = (200, b'{"choices": [{"text": "!"}], "usage": {"completion_tokens": 1}}')
    _judge(tmp_path, REPORT)
    asked = {"container": "attnkit", "run_dir": str(tmp_path), "docker_socket": path, "url": web.url, "timeout": 5}
    opened = module("attnkit_gate", asked)
    assert opened["ok"] and opened["completion"]["text"] == "!" and opened["events"] == ['{"event": "boot"}'], opened
    web.answers["/v1/completions"] = (200, b'{"choices": [{"text": ""}], "usage": {"completion_tokens": 0}}')
    closed = module("attnkit_gate", asked)
    assert not closed["ok"] and "no tokens" in closed["reason"] and closed["log_tail"] == ["the end of the log"]
    (tmp_path / "report.json").unlink()
    late = module("attnkit_gate", {**asked, "timeout": 1})
    assert late["reason"] == "no boot report yet after 1 s"
    looked = module("attnkit_gate", {**asked, "timeout": 600}, check=True)
    assert not looked["ok"] and looked["reason"] == "no boot report yet" and not looked["changed"]


@pytest.mark.slow
def test_ready_for_a_moment_is_not_enough(tmp_path: Path, engine_socket: Any, web: Any, module: Any) -> None:
    """An engine that was ready, answered and died: the gate looks once more, and at the start that it saw before."""
    path, answers = engine_socket
    web.answers["/v1/models"] = (200, b'{"data": [{"id": "tiny"}]}')
    web.answers["/v1/completions"] = (200, b'{"choices": [{"text": "!"}], "usage": {"completion_tokens": 1}}')
    answers["/containers/attnkit/logs?stdout=1&stderr=0&tail=500"] = (200, b"")
    answers["/containers/attnkit/logs?stdout=1&stderr=1&tail=60"] = (200, b"out of memory\n")
    asked = {"container": "attnkit", "run_dir": str(tmp_path), "docker_socket": path, "url": web.url, "timeout": 5}
    again = {**CONTAINER, "RestartCount": 1, "State": {**CONTAINER["State"], "StartedAt": "2126-01-01T00:00:00Z"}}

    def judged(settle: float) -> Any:
        web.posted.clear()
        _judge(tmp_path, REPORT)
        os.utime(tmp_path / "ready.json", (time.time() + 3600,) * 2)  # ready since no time at all, however long a module takes
        answers["/containers/attnkit/json"] = (200, json.dumps(CONTAINER).encode())
        over = threading.Event()

        def die() -> None:
            while not web.posted and not over.wait(0.05):
                pass
            answers["/containers/attnkit/json"] = (200, json.dumps(again).encode())

        dying = threading.Thread(target=die)
        dying.start()
        try:
            return module("attnkit_gate", {**asked, "settle": settle})
        finally:
            over.set()
            dying.join()

    assert judged(0)["ok"], "without it, a moment is enough"
    closed = judged(2)
    assert not closed["ok"] and closed["log_tail"] == ["out of memory"]
    assert closed["reason"].startswith("it was ready and answered, and then: the service ended"), closed["reason"]
