"""The supervisor: exit codes, signals, orphans, the engine's last words."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from attnkit.boot.supervisor import KEPT_LINES, Supervisor
from attnkit.errors import UsageError


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
