"""A simulated device: what a self-test comes to on a machine that has no such device, to rehearse a fleet without one.

`attnkit boot --simulated-device ANSWER` (ATTNKIT_SIMULATED_DEVICE) is a debug switch. All of the boot is real (detection,
selection, the child process, fallback, report, engine) except that no kernel runs: the child gives the stated answer. Nothing
of it can be taken for a verdict: the boot's own is never "pass" but "planted", the backend's is "skipped", every event and the
report carry `planted_answer`, libraries count as "assumed" to be installed, and a rollout refuses such a report unless its
inventory says that it is a rehearsal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnkit.backends.registry import canonical
from attnkit.errors import UsageError
from attnkit.hardware.device import Device
from attnkit.isolation.injected import break_process, split_devices
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
        devices: indices of the devices that answer so, every other one is right; empty: all of them.
    """

    answer: str
    backends: tuple[str, ...] = ()
    devices: tuple[int, ...] = ()

    def answer_of(self, backend: str, device: Device) -> str:
        """The answer of one backend on one device."""
        concerned = (not self.backends or backend in self.backends) and (not self.devices or device.index in self.devices)
        return self.answer if concerned else "right"


def parse(text: str) -> SimulatedAnswer:
    """ANSWER[@INDEX[,INDEX]][:BACKEND[,BACKEND]].

    Raises:
        UsageError: an unknown answer or backend, or an index that is no number.
    """
    head, _, names = text.partition(":")
    answer, devices = split_devices(head)
    if answer not in ANSWERS:
        raise UsageError(
            f"unknown simulated device {answer!r}. Known: {', '.join(ANSWERS)}, each also as ANSWER:BACKEND,BACKEND and, for "
            "some devices alone, ANSWER@INDEX,INDEX"
        )
    return SimulatedAnswer(answer, tuple(canonical(name.strip()) for name in names.split(",") if name.strip()), devices)


def run_simulated(
    text: str, *, backend: str, provider: str | None, device: Device, level: Level, send: Callable[[str, Any], None]
) -> None:
    """In the self-test's child process: send the simulated case and verdict of `backend`, or end as a broken device."""
    answer = parse(text).answer_of(backend, device)
    break_process(answer)
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
