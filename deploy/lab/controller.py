"""Runs a playbook as an operator does, acts at a chosen moment of it, and measures what the controller spends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.machines import LAB, ROOT

DEPLOY = ROOT / "deploy"
SAMPLE_SECONDS = 1.0


@dataclass
class Moment:
    """Something that happens once, as soon as a task is done on a node.

    Args:
        task: its name.
        node: the node.
        act: what happens; gets the playbook's process.
    """

    task: str
    node: str
    act: Callable[[subprocess.Popen[str]], None]
    came: bool = False


@dataclass(frozen=True)
class Run:
    """One run of a playbook.

    Args:
        code: exit code; negative where a signal ended it.
        text: its output.
        seconds: wall clock.
        cpu_seconds: CPU time of the controller's processes (the SSH masters, which outlive the run, left out).
        peak_bytes: the most memory that these processes had at once (proportional set size, looked at once a second).
    """

    code: int
    text: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int

    @property
    def changed(self) -> dict[str, int]:
        """How many tasks changed something, by node."""
        line = re.compile(r"^(?!localhost )(\S+)\s*:\s*ok=\d+\s+changed=(\d+)", re.MULTILINE)
        return {m[1]: int(m[2]) for m in line.finditer(self.text)}

    def says(self, words: str) -> bool:
        """Whether the operator saw these words, wherever lines were broken."""
        return words in " ".join(self.text.split()).replace("''", "'")


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9 for the playbook and every process of it, as when the controller loses power."""
    os.killpg(process.pid, signal.SIGKILL)


def play(
    playbook: Path | str, inventory: Path, log: Path, *options: str, moments: Sequence[Moment] = (), user: str = "lab"
) -> Run:
    """Run a playbook.

    Args:
        playbook: a name in deploy/playbooks, or a file.
        inventory: the inventory file.
        log: file for the output.
        options: more options of ansible-playbook.
        moments: what happens on the way.
        user: the operator's name, for the locks.
    """
    environment = {
        **os.environ,
        "ANSIBLE_HOME": str(LAB.state / "ansible"),
        "ANSIBLE_CONFIG": str(DEPLOY / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ATTNKIT_FLEET_SHOW_TASKS": "true",  # for the moments
        "PYTHONUNBUFFERED": "1",
        "USER": user,
    }
    file = playbook if isinstance(playbook, Path) else f"playbooks/{playbook}.yml"
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), str(file), *options]
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=DEPLOY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    memory = _Memory(process.pid)
    memory.start()
    lines = _follow(process, log, moments)
    _, status, used = os.wait4(process.pid, 0)  # with what the children used
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    memory.over.set()
    memory.join()
    return Run(process.returncode, "".join(lines), seconds, used.ru_utime + used.ru_stime, memory.peak)


def _follow(process: subprocess.Popen[str], log: Path, moments: Sequence[Moment]) -> list[str]:
    """Read the output until it ends; call what waits for a task."""
    lines: list[str] = []
    task = ""
    assert process.stdout is not None
    with log.open("w", encoding="utf-8") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            lines.append(line)
            if heading := re.match(r"^TASK \[(?:\S+ : )?(.*)\]", line):
                task = heading[1]
            elif done := re.match(r"^(?:ok|changed): \[([^\]]+)\]", line):
                for moment in moments:
                    if not moment.came and (moment.task, moment.node) == (task, done[1]):
                        moment.came = True
                        moment.act(process)
    return lines


class _Memory(threading.Thread):
    """Looks at the memory of a session's processes until it is over."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.session = session
        self.peak = 0
        self.over = threading.Event()

    def run(self) -> None:
        """The thread."""
        while not self.over.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, memory_of(self.session))


def memory_of(session: int) -> int:
    """Bytes of memory that the processes of a session have, pages that several share counted once."""
    total = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[3]) == session:
                shown = re.search(r"^Pss:\s+(\d+)", (folder / "smaps_rollup").read_text(encoding="utf-8"), re.MULTILINE)
                total += int(shown[1]) * 1024 if shown else 0
    return total
