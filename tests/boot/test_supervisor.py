"""The supervisor: exit codes, signals, orphans, the engine's last words."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from attnkit.boot.supervisor import KEPT_LINES, MAX_LINE, Supervisor
from attnkit.errors import UsageError
from attnkit.isolation.processes import ChildTask, messages


def _run(code: str) -> tuple[Supervisor, int]:
    supervisor = Supervisor([sys.executable, "-c", code], os.environ)
    supervisor.start()
    return supervisor, supervisor.wait()


@pytest.mark.parametrize(
    ("code", "exit_code"), [("pass", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_exit_code_is_the_childs(code: str, exit_code: int) -> None:
    supervisor, got = _run(code)
    assert got == exit_code
    assert supervisor.ended.is_set()
    assert not supervisor.stopped_on_request


def test_last_lines_are_kept_and_only_those() -> None:
    supervisor, _ = _run("import sys\nfor i in range(100): print('line', i)\nprint('the reason', file=sys.stderr)")
    assert len(supervisor.last_lines) == KEPT_LINES
    assert "the reason" in supervisor.last_lines
    assert "line 99" in supervisor.last_lines


def test_output_is_passed_on_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    _run("print('to stdout')")
    captured = capfd.readouterr()
    assert "to stdout" in captured.err
    assert captured.out == ""


def test_first_signal_is_forwarded_and_the_child_may_finish(tmp_path: Path) -> None:
    code = (
        "import signal, time, sys, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
        "time.sleep(600)"
    )
    supervisor = Supervisor([sys.executable, "-c", code], os.environ)
    supervisor.start()
    _signal_self(supervisor, tmp_path / "up", times=1)
    assert supervisor.wait() == 5
    assert supervisor.stopped_on_request


def test_second_signal_kills_a_child_that_does_not_listen(tmp_path: Path) -> None:
    code = (
        "import signal, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
        "time.sleep(600)"
    )
    supervisor = Supervisor([sys.executable, "-c", code], os.environ)
    supervisor.start()
    _signal_self(supervisor, tmp_path / "up", times=2)
    assert supervisor.wait() == 128 + signal.SIGKILL


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    _run("pass")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_command_that_does_not_exist_is_a_usage_error() -> None:
    supervisor = Supervisor(["no-such-engine-anywhere"], os.environ)
    with pytest.raises(UsageError, match="cannot start 'no-such-engine-anywhere': No such file"):
        supervisor.start()


def _signal_self(supervisor: Supervisor, when: Path, times: int) -> None:
    """From another thread: SIGTERM to this process once the file is there, a second once the supervisor has taken the first."""

    def send() -> None:
        while not when.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        if times == 2:
            while not supervisor.stopped_on_request:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()


def test_a_line_without_an_end_is_cut_and_bytes_that_are_no_text_are_replaced() -> None:
    code = (
        "import os\nfor _ in range(300): os.write(1, b'x' * 65536)\n"
        "os.write(1, b'\\nnext caf\\xe9\\n')\nos.write(1, b'no newline at the end')"
    )
    supervisor, got = _run(code)
    assert got == 0
    assert [line[:30] for line in supervisor.last_lines] == ["x" * 30, "next caf\ufffd", "no newline at the end"]
    assert len(supervisor.last_lines[0]) == MAX_LINE + len("… (cut)")


@pytest.mark.parametrize("target", ["full", "nobody"])
def test_a_stderr_that_takes_nothing_never_blocks_the_child(target: str) -> None:
    """A full disk, and a reader that does not read."""
    saved = os.dup(2)
    reader, writer = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full if target == "full" else writer, 2)
    try:
        supervisor, got = _run("for i in range(20000): print('a line of some length to fill the pipe', i)")
    finally:
        os.dup2(saved, 2)
        os.close(reader)
        for descriptor in (saved, writer, full):
            os.close(descriptor)
    assert got == 0
    assert supervisor.last_lines[-1].endswith("19999")


def test_what_is_masked_is_masked_on_the_way(capfd: pytest.CaptureFixture[str]) -> None:
    supervisor = Supervisor(
        [sys.executable, "-c", "print('key abc')"], os.environ, clean=lambda text: text.replace("abc", "***")
    )
    supervisor.start()
    supervisor.wait()
    assert supervisor.last_lines == ("key ***",)
    assert "key ***" in capfd.readouterr().err


@pytest.mark.parametrize("own_session", [False, True])
def test_workers_end_with_the_child(tmp_path: Path, own_session: bool) -> None:
    """Killed, the child cannot end its workers; one in a session of its own comes to us as an orphan."""
    code = (
        "import os, signal, subprocess, sys\n"
        f"worker = subprocess.Popen(['sleep', '600'], start_new_session={own_session})\n"
        f"open({str(tmp_path / 'worker')!r}, 'w').write(str(worker.pid))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    _, got = _run(code)
    assert got == 128 + signal.SIGKILL
    assert not Path("/proc", (tmp_path / "worker").read_text()).exists()


def test_a_self_test_beside_the_child_keeps_its_exit_code() -> None:
    """Both are this process's children; whoever reaps all of them must leave the one that another thread waits for."""
    supervisor = Supervisor(["sleep", "600"], os.environ)
    supervisor.start()
    found: list[tuple[int, dict[str, Any]]] = []

    def test_beside() -> None:
        found.extend(messages([ChildTask("attnkit.isolation.child", "the self-test", "no request", 60.0)]))
        supervisor.kill()

    thread = threading.Thread(target=test_beside)
    thread.start()
    assert supervisor.wait() == 128 + signal.SIGKILL
    thread.join()
    assert [message["reason"] for _, message in found] == ["the self-test ended with exit code 1; its traceback is on stderr"]
