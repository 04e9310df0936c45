"""The boot's results over HTTP and as node labels: a Prometheus parser reads them, Kubernetes would take them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families

import attnkit
from attnkit import publish
from attnkit.boot.metrics import render_metrics
from attnkit.boot.report import BootReport, Readiness
from attnkit.hardware.device import Detection

NOW = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


def _boot(directory: Path, *, state: str = "ready", backend: str = "TORCH_SDPA") -> None:
    """What a boot leaves, written with attnkit's own code."""
    report = BootReport(
        attnkit_version="0.1.0", created="2026-06-01T11:00:00.500Z", host={}, node_type="cpu", node_type_source="detected",
        detection=Detection(devices=(), probes=()), verdict="pass", backend=backend, provider="torch",
    )  # fmt: skip
    (directory / "report.json").write_text(report.text(), encoding="utf-8")
    (directory / "report.prom").write_text(render_metrics(report, ready=state == "ready"), encoding="utf-8")
    readiness = Readiness.model_validate({"state": state, "verdict": "pass", "backend": backend, "since": report.created})
    (directory / "ready.json").write_text(readiness.text(), encoding="utf-8")


def _samples(text: str) -> dict[tuple[str, ...], float]:
    families = list(text_string_to_metric_families(text))
    assert len({f.name for f in families}) == len(families), "every metric is described once"
    assert all(f.documentation and f.type == "gauge" for f in families)
    return {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}


def test_metrics(tmp_path: Path) -> None:
    _boot(tmp_path)
    samples = _samples(publish.metrics_text(tmp_path, NOW))
    assert samples["attnkit_verdict", "pass"] == 1 and samples["attnkit_verdict", "fail"] == 0
    assert samples["attnkit_readiness", "ready"] == 1
    assert samples["attnkit_report_age_seconds",] == pytest.approx(3600, abs=1)


def test_metrics_before_the_first_report(tmp_path: Path) -> None:
    assert _samples(publish.metrics_text(tmp_path, NOW)) == {("attnkit_readiness", "none"): 1}
    (tmp_path / "report.json").write_text('{"created": "20', encoding="utf-8")
    assert _samples(publish.metrics_text(tmp_path, NOW)) == {("attnkit_readiness", "none"): 1}


def test_labels(tmp_path: Path) -> None:
    none = {"attnkit.io/backend": "none", "attnkit.io/verdict": "none", "attnkit.io/ready": "false"}
    assert publish.node_labels(tmp_path) == none
    _boot(tmp_path)
    assert publish.node_labels(tmp_path) == {
        "attnkit.io/backend": "TORCH_SDPA", "attnkit.io/verdict": "pass", "attnkit.io/ready": "true",
    }  # fmt: skip
    _boot(tmp_path, state="engine-starting")
    assert publish.node_labels(tmp_path)["attnkit.io/ready"] == "false"


@pytest.mark.parametrize("text", ["TORCH_SDPA", "a b/c", "-x-", "ü" * 80, "x" * 62 + "." + "y", "", "___"])
def test_label_values_are_valid(text: str) -> None:
    value = publish.label_value(text)
    assert len(value) <= 63 and re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?", value)


def test_feature_file(tmp_path: Path) -> None:
    _boot(tmp_path)
    lines = publish.features_text(tmp_path, NOW).splitlines()
    assert lines[0] == "# +expiry-time=2026-06-01T12:05:00Z"
    assert lines[1:] == ["attnkit.io/backend=TORCH_SDPA", "attnkit.io/verdict=pass", "attnkit.io/ready=true"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(attnkit.__file__).parents[1])}
    child = subprocess.Popen([sys.executable, "-m", "attnkit.publish", *arguments], env=environment)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def _get(url: str) -> tuple[int, str, str]:
    """Status, content type and body; asks until the server is up."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read().decode()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_the_program(tmp_path: Path) -> None:
    """Served and written from the same folder, kept up to date, and gone with the program."""
    features, port = tmp_path / "features.d" / "attnkit", _free_port()
    base = f"http://127.0.0.1:{port}"
    with _running("--directory", str(tmp_path), "--port", str(port), "--features", str(features), "--every", "0.05") as child:
        assert _get(f"{base}/ready")[:1] == (503,)
        _boot(tmp_path)
        status, content_type, text = _get(f"{base}/metrics")
        assert (status, content_type) == (200, CONTENT_TYPE_LATEST)
        assert _samples(text)["attnkit_verdict", "pass"] == 1
        assert _get(f"{base}/ready") == (200, "text/plain; charset=utf-8", "ready\n")
        assert _get(f"{base}/report.json")[0] == 404, "nothing else of the folder is shown"
        deadline = time.monotonic() + 20
        while "verdict=pass" not in features.read_text(encoding="utf-8") and time.monotonic() < deadline:
            time.sleep(0.05)
        written = features.read_text(encoding="utf-8")
        assert "attnkit.io/verdict=pass" in written
        until = datetime.fromisoformat(written.splitlines()[0].partition("=")[2].replace("Z", "+00:00"))
        assert timedelta() < until - datetime.now(timezone.utc) <= publish.EXPIRES
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=20) == 0
    assert [p.name for p in features.parent.iterdir()] == []


def test_wrong_usage(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(attnkit.__file__).parents[1])}
        command = [sys.executable, "-m", "attnkit.publish", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    done = run()
    assert done.returncode == 2 and "--port, --features or both" in done.stderr
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        done = run("--directory", str(tmp_path), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2 and "Address already in use" in done.stderr and "Traceback" not in done.stderr


def test_what_the_text_says_is_json_for_nobody(tmp_path: Path) -> None:
    """A state that nobody knows cannot break the exposition format."""
    (tmp_path / "ready.json").write_text(json.dumps({"state": 'x"} 1\nfoo{bar="'}), encoding="utf-8")
    assert list(_samples(publish.metrics_text(tmp_path, NOW)).values()) == [1]
