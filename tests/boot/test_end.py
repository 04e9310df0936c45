"""However a boot ends, one place ends it: state failed, an exit code of its own, a report, no engine left."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from attnkit.boot.events import Events
from attnkit.boot.options import BootOptions
from attnkit.boot.outputs import Outputs
from attnkit.boot.report import load_report
from attnkit.boot.run import boot
from attnkit.errors import EXIT_ENGINE, EXIT_INTERNAL, EXIT_USAGE, AttnkitError, UsageError

TREES = Path(__file__).resolve().parents[1] / "data" / "trees"
Run = Callable[..., "tuple[int, dict[str, Any], dict[str, Any]]"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(command=…) → exit code, report and readiness file of a boot in this process, with a simulated device."""
    for name in [name for name in os.environ if name.startswith(("ATTNKIT_", "VLLM_"))]:
        monkeypatch.delenv(name)

    def begin(events: Events | None = None, **options: Any) -> tuple[int, dict[str, Any], dict[str, Any]]:
        files = {name: tmp_path / f"{name}.json" for name in ("report", "ready", "metrics")}
        asked = BootOptions(**files, simulated_device="right", root=TREES / "cpu", level="quick", **options)
        try:
            code = boot(asked, events or Events(io.StringIO()))
        except AttnkitError as error:
            code = error.exit_code
        ready = json.loads(files["ready"].read_text()) if files["ready"].exists() else {"state": None}
        return code, json.loads(files["report"].read_text()), ready

    return begin


@contextmanager
def limit(kind: int, most: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


class Broken(io.StringIO):
    """A stream that breaks in a way that nobody foresaw, from an event on."""

    def __init__(self, event: str) -> None:
        super().__init__()
        self.event = event
        self.broken = False

    def write(self, text: str) -> int:
        self.broken = self.broken or f'"event": "{self.event}"' in text
        if self.broken:
            raise KeyError("unforeseen")
        return super().write(text)


@pytest.mark.parametrize("event", ["boot", "select", "selftest.verdict"])
def test_an_unforeseen_exception(run: Run, event: str, tmp_path: Path) -> None:
    mark = tmp_path / "engine-ran"
    code, report, ready = run(Events(Broken(event)), command=("touch", str(mark)))
    assert (code, report["exit_code"], ready["state"]) == (EXIT_INTERNAL, EXIT_INTERNAL, "failed")
    assert "attnkit itself broke: KeyError: 'unforeseen' (test_end.py:" in report["error"]
    assert report["end"]["kind"] == "failed"
    assert not mark.exists()


def test_an_unforeseen_exception_while_the_engine_runs_ends_it(run: Run, tmp_path: Path) -> None:
    code, report, ready = run(Events(Broken("ready")), command=("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 600"))
    assert (code, ready["state"]) == (EXIT_INTERNAL, "failed")
    assert "KeyError" in report["error"]
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"selftest_timeout": float("inf")}, "--selftest-timeout must be 1 to"),
        ({"selftest_timeout": float("nan")}, "--selftest-timeout must be 1 to"),
        ({"health_timeout": float("inf")}, "--health-timeout must be 1 to"),
        ({"health_url": "file:///etc/passwd"}, "--health-url: file"),
        ({"health_url": "data:,ok"}, "--health-url: data"),
        ({"command": ("vllm", "serve", "m", "--port", "²")}, "--port must be a whole number"),
        ({"command": ("vllm", "serve", "m", "--block-size", "²")}, "--block-size must be a whole number"),
        ({"command": ("vllm", "serve", "m", "--block-size", "9" * 5000)}, "--block-size must be a whole number"),
        ({"command": ("vllm", "serve", "m", "--attention-config", "[" * 5000)}, "--attention-config: nested deeper"),
        ({"command": ("vllm", "serve", "m", "--attention-config", '{"backend": 3}')}, "unknown backend '3'"),
        ({"model": "n" * 300}, "File name too long"),
        ({"model": "zero\0byte"}, "unknown model preset"),
        ({"node": "n" * 300}, "unknown node type"),
        ({"command": ("zero\0byte",)}, "cannot start"),
    ],
)
def test_what_is_wrong_is_said_in_every_file(run: Run, options: dict[str, Any], says: str) -> None:
    code, report, ready = run(**options)
    assert (code, report["exit_code"], ready["state"]) == (EXIT_USAGE, EXIT_USAGE, "failed")
    assert says in report["error"]
    assert report["end"]["next_step"]


def test_few_file_descriptors(run: Run, tmp_path: Path) -> None:
    """With any number of them the boot ends, and where it began, it says so."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    seen = set()
    for most in range(4, 14):
        (tmp_path / "report.json").unlink(missing_ok=True)
        (tmp_path / "report.json").write_text("{}")
        with limit(resource.RLIMIT_NOFILE, before + most):
            code, report, ready = run(command=("true",))
        assert code in (0, EXIT_USAGE, EXIT_INTERNAL)
        if code == EXIT_INTERNAL:
            assert "Too many open files" in report["error"]
            assert "ulimit -n" in report["end"]["next_step"]
            assert (ready["state"], report["exit_code"]) == ("failed", EXIT_INTERNAL)
        seen.add(code)
    assert EXIT_INTERNAL in seen


def test_stdout_on_a_full_disk_ends_nothing(run: Run) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        events = Events(full)
        code, report, _ = run(events)
        with suppress(OSError):
            full.flush()
        assert (code, report["verdict"]) == (4, "planted")
        assert events.lost > 0
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_a_byte_that_is_no_utf_8_and_an_encoding_without_the_character(run: Run, tmp_path: Path) -> None:
    raw = io.BytesIO()
    events = Events(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    code, _, _ = run(events, command=("sh", "-c", "exit 0", "\udcff", "é😀"))
    assert code == 0
    started = next(e for e in map(json.loads, raw.getvalue().splitlines()) if e["event"] == "engine.start")
    assert started["argv"][-2:] == ["?", "é😀"]
    report = load_report(tmp_path / "report.json")
    assert report.engine is not None
    assert report.engine.argv[-1] == "é😀"


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6])
def test_an_engines_code_is_a_field_of_its_own(run: Run, code: int) -> None:
    got, report, ready = run(command=("sh", "-c", f"echo no such file; exit {code}"))
    assert (got, report["exit_code"], report["engine"]["exit_code"]) == (EXIT_ENGINE, EXIT_ENGINE, code)
    assert ready["state"] == "failed"
    assert report["end"]["headline"] == "engine did not start; simulated device, no kernel ran"
    assert ready["headline"] == report["end"]["headline"]
    assert report["end"]["next_step"] == "check the model's path inside the container"


def test_the_exit_code_is_null_until_the_end(run: Run, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    run(command=("sh", "-c", f"cp {tmp_path}/report.json {seen}; exit 9"))
    assert json.loads(seen.read_text())["exit_code"] is None


def test_secrets_are_in_no_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "tok-12345")
    stream = io.StringIO()
    script = "echo with $HF_TOKEN and key-67890 from http://u:hunter2@h/; exit 9"
    from attnkit.boot.redact import Redactor

    command = ("sh", "-c", script, "--api-key", "key-67890")
    run(Events(stream, redactor=Redactor(command, os.environ)), command=command)
    written = stream.getvalue() + "".join(p.read_text() for p in tmp_path.iterdir() if p.is_file())
    assert "with ***" in written
    for secret in ("tok-12345", "key-67890", "hunter2"):
        assert secret not in written


def test_a_command_line_that_is_refused_leaves_no_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnkit.cli import main

    (tmp_path / "ready.json").write_text('{"state": "ready"}')
    (tmp_path / "report.json").write_text('{"verdict": "pass"}')
    monkeypatch.setenv("ATTNKIT_READY", str(tmp_path / "ready.json"))
    arguments = ["boot", "--report", str(tmp_path / "report.json"), "--health-timeout", "soon"]
    monkeypatch.setattr(sys, "argv", ["attnkit", *arguments])
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == EXIT_USAGE
    assert json.loads((tmp_path / "ready.json").read_text())["state"] == "failed"
    assert json.loads((tmp_path / "report.json").read_text())["exit_code"] == EXIT_USAGE


def outputs(folder: Path) -> Outputs:
    return Outputs(folder / "report.json", folder / "ready.json", folder / "a.prom")


def test_two_boots_in_one_directory(tmp_path: Path) -> None:
    first, second = outputs(tmp_path), outputs(tmp_path)
    first.begin()
    first.write_ready_file("ready", "pass", "A")
    with pytest.raises(UsageError, match="another attnkit boot is using"):
        second.begin()
    assert json.loads(first.ready.read_text())["state"] == "ready"
    first.release()
    second.begin()
    assert json.loads(first.ready.read_text())["state"] == "starting"
    second.release()


def test_readiness_has_a_pid_and_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnkit.boot.outputs.BEAT_SECONDS", 0.05)
    files = outputs(tmp_path)
    files.begin()
    files.write_ready_file("ready", "pass", "A")
    first = json.loads(files.ready.read_text())
    assert first["pid"] == os.getpid()
    until(lambda: json.loads(files.ready.read_text())["heartbeat"] > first["heartbeat"])
    assert json.loads(files.ready.read_text())["since"] == first["since"]
    files.stopping()  # taken away first, then written anew: for a moment there is none
    with suppress(FileNotFoundError):
        until(lambda: '"stopping"' in files.ready.read_text())
    until(files.ready.exists)
    assert json.loads(files.ready.read_text())["state"] == "stopping"
    files.write_ready_file("ready", "pass", "A")
    assert json.loads(files.ready.read_text())["state"] == "stopping", "an engine that stops does not become ready"
    files.release()


def test_on_a_full_disk_readiness_is_taken_away(tmp_path: Path) -> None:
    files = outputs(tmp_path)
    files.begin()
    files.write_ready_file("ready", "pass", "A")
    files.metrics.write_text("attnkit_ready 1.0\n")
    with limit(resource.RLIMIT_FSIZE, 0):  # every write fails, as on a full disk
        with pytest.raises(UsageError, match="cannot write"):
            files.write_ready_file("failed", "pass", "A")
        assert '"ready"' in files.ready.read_text()
        files.withdraw()
    assert not files.ready.exists()
    assert not files.metrics.exists()
    files.release()


def test_files_that_cannot_be_written_end_no_serving_engine(run: Run, tmp_path: Path) -> None:
    """Full from the engine's start on: it serves, and its end still takes readiness away."""
    stream = io.StringIO()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(io.StringIO):
        def write(self, text: str) -> int:
            if '"event": "engine.start"' in text:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            return stream.write(text)

    try:
        with suppress(ValueError, FileNotFoundError):
            run(Events(Filling()), command=("sleep", "3"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    names = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert "engine.exit" in names or "error" in names
    assert not (tmp_path / "ready.json").exists() or json.loads((tmp_path / "ready.json").read_text())["state"] != "ready"


def test_a_boot_that_is_killed_leaves_no_engine(start: Callable[..., Any], tmp_path: Path) -> None:
    """SIGKILL to boot: the engine and its workers go too, and the readiness file goes stale."""
    script = f"sleep 600 & echo $! > {tmp_path}/worker; echo $$ > {tmp_path}/engine; exec sleep 600"
    begun = start("--backend", "TORCH_SDPA", "--simulated-device", "right", "--", "sh", "-c", script)
    begun.until("ready")
    pids = [int((tmp_path / name).read_text()) for name in ("engine", "worker")]
    os.kill(begun.process.pid, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in pids))
    from attnkit.publish import node_labels, state_of

    later = datetime.now(timezone.utc) + timedelta(seconds=90)
    assert state_of(tmp_path, datetime.now(timezone.utc)) == "ready"
    assert state_of(tmp_path, later) == "lost"
    assert node_labels(tmp_path, later)["attnkit.io/ready"] == "false"


def test_a_report_from_the_future_is_none(tmp_path: Path) -> None:
    from attnkit.publish import metrics_text, node_labels

    now = datetime.now(timezone.utc)
    for ahead, backend in ((timedelta(seconds=30), "A"), (timedelta(hours=1), "none")):
        (tmp_path / "report.json").write_text(json.dumps({"created": (now + ahead).isoformat(), "backend": "A"}))
        assert node_labels(tmp_path, now)["attnkit.io/backend"] == backend
    assert "attnkit_report_age_seconds" not in metrics_text(tmp_path, now)


def test_the_profiles_variables_reach_the_self_test() -> None:
    from attnkit.hardware.archs import pretend
    from attnkit.isolation.messages import Request
    from attnkit.isolation.parent import run_isolated

    request = Request("TORCH_SDPA", None, pretend("x86_64", "CPU"), (), "quick", planted_answer="hang")
    found: list[bytes] = []

    def look() -> None:
        deadline = time.monotonic() + 20
        while not found and time.monotonic() < deadline:
            for child in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    ours = int((child / "stat").read_text().rsplit(")", 1)[1].split()[1]) == os.getpid()
                    if ours and b"attnkit.isolation.child" in (child / "cmdline").read_bytes():
                        text = (child / "environ").read_bytes()
                        found.extend(v for v in text.split(b"\0") if v.startswith((b"PROFILE_SAYS=", b"PATH=")))

    watcher = threading.Thread(target=look)
    watcher.start()
    run_isolated(request, timeout=3, env={"PROFILE_SAYS": "so", "PATH": "overridden"})
    watcher.join()
    assert b"PROFILE_SAYS=so" in found
    assert b"PATH=overridden" not in found, "what the user set wins"


def until(true: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout:g} s for it"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_this_module_leaves_nothing_running() -> None:
    shown = subprocess.run(
        ["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=False
    ).stdout
    assert "sleep 600" not in shown


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://127.0.0.1:8000/health", True),
        ("http://localhost:1/health", True),
        ("http://[::1]:8000/health", True),
        ("http://engine.example:8000/health", True),
        ("http://other.example:8000/health", False),
        ("http://127.0.0.1.other.example/health", False),
    ],
)
def test_the_api_key_goes_to_the_engines_own_host(tmp_path: Path, url: str, sent: bool) -> None:
    from attnkit.boot.report import BootReport
    from attnkit.boot.serving import EngineSettings, Serving

    command = ("vllm", "serve", "m", "--api-key", "k", "--host", "engine.example")
    serving = Serving(
        EngineSettings(command, url, 1.0), BootReport.model_construct(), outputs(tmp_path), Events(io.StringIO()), 0.0
    )
    assert serving._api_key(url) == ("k" if sent else None)
