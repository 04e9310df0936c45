"""A simulated device: what a self-test comes to on a machine that has no such device, to rehearse a fleet without one.

`attnkit boot --simulated-device ANSWER` (ATTNKIT_SIMULATED_DEVICE) is a debug switch. All of the boot is real (detection,
selection, the child process, fallback, report, engine) except that no kernel runs: the child gives the stated answer. Nothing
of it can be taken for a verdict: the boot's own is never "pass" but "planted", the backend's is "skipped", every event and the
report carry `planted_answer`, libraries count as "assumed" to be installed, and a rollout refuses such a report unless its
inventory says that it is a rehearsal.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnkit.backends.registry import canonical
from attnkit.errors import UsageError
from attnkit.hardware.device import Device
from attnkit.selftest.results import CaseResult, Level, Outcome, Verdict

CASE = "planted-device-answer"
GUARDS = "nothing: no kernel ran"
ANSWERS = ("right", "wrong", "crash", "hang")


@dataclass(frozen=True)
class SimulatedAnswer:
    """What the device is made to answer.

    Args:
        answer: right, wrong, crash (the self-test's process dies of SIGSEGV) or hang (it never ends).
        backends: the backends that answer so, every other one is right; empty: all of them.
    """

    answer: str
    backends: tuple[str, ...] = ()

    def answer_of(self, backend: str) -> str:
        """The answer of one backend."""
        return self.answer if not self.backends or backend in self.backends else "right"


def parse(text: str) -> SimulatedAnswer:
    """ANSWER or ANSWER:BACKEND[,BACKEND].

    Raises:
        UsageError: an unknown answer or backend.
    """
    answer, _, names = text.partition(":")
    if answer not in ANSWERS:
        raise UsageError(
            f"unknown simulated device {answer!r}. Known: {', '.join(ANSWERS)}, each also as ANSWER:BACKEND,BACKEND"
        )
    return SimulatedAnswer(answer, tuple(canonical(name.strip()) for name in names.split(",") if name.strip()))


def run_simulated(
    text: str, *, backend: str, provider: str | None, device: Device, level: Level, send: Callable[[str, Any], None]
) -> None:
    """In the self-test's child process: send the simulated case and verdict of `backend`, or end as a broken device."""
    answer = parse(text).answer_of(backend)
    if answer == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    while answer == "hang":
        time.sleep(3600)
    outcome: Outcome = "fail" if answer == "wrong" else "skipped"
    case = CaseResult(
        case=CASE, guards=GUARDS, outcome=outcome, reason=f"no kernel ran: the device was simulated as {answer!r}"
    )
    send("case", case)
    verdict = Verdict(
        backend=backend,
        provider=provider or "",
        device=f"{device.name} ({device.arch})",
        level=level,
        outcome=outcome,
        cases=(case,),
        unseen=("everything: the device was simulated",),
    )
    send("verdict", verdict)
