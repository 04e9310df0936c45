"""The self-test in a process of its own, one for each device.

A kernel that crashes, hangs or corrupts the device's context must not take the supervisor, another device's test or the next
candidate's with it; and the supervisor that stays for the engine's lifetime must hold neither torch nor device memory. So each
candidate is tested in children (`python -m attnkit.isolation.child`), all devices at once, each child seeing its device alone:
the request goes to its stdin, cases and verdicts come back as JSON lines on a pipe of their own, and whatever libraries print
goes to stderr.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attnkit.errors import AttnkitError, UsageError
from attnkit.isolation.messages import CASE, FAULT_RESULT, VERDICT, Request
from attnkit.isolation.processes import ChildTask, messages
from attnkit.selftest.results import CaseResult, FaultResult, Outcome, Verdict, roll_up


@dataclass(frozen=True)
class Kernels:
    """What one child found out about Triton's kernels.

    Args:
        baked, jit_compiles: kernels that were precompiled, and those compiled just in time; names as in the boot report.
        unused: why no precompiled kernel was used, where there is a kernel directory.
    """

    baked: int
    jit_compiles: int
    unused: str = ""


@dataclass(frozen=True)
class DeviceTask:
    """One candidate on one device.

    Args:
        request: what to test.
        timeout: seconds it may take.
        environment: the variables that make the child see that device alone, beside those of this process.
    """

    request: Request
    timeout: float
    environment: Mapping[str, str] = field(default_factory=dict)


def run_isolated(
    request: Request,
    *,
    timeout: float,
    on_case: Callable[[CaseResult], None] | None = None,
    on_kernels: Callable[[int, int, str], None] | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[Verdict, ...]:
    """Test one candidate on one device in a child process: `run_on_devices` for one.

    Args:
        request, timeout: as in `DeviceTask`.
        on_case: called after each case.
        on_kernels: called at the end with the fields of `Kernels`.
        env: variables that the engine will have (the profile's); those of this process win.
    """

    def case(_device: int, result: CaseResult) -> None:
        if on_case:
            on_case(result)

    def kernels(found: Kernels) -> None:
        if on_kernels:
            on_kernels(found.baked, found.jit_compiles, found.unused)

    task = DeviceTask(request, timeout, beside(env or {}))
    (verdicts,) = run_on_devices([task], on_case=case, on_kernels=kernels)
    return verdicts


def beside(env: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Of a profile's variables, those that `environment` does not set: what the user gave wins, as it does for the engine."""
    return {name: value for name, value in env.items() if name not in environment}


def run_on_devices(
    tasks: Sequence[DeviceTask],
    *,
    on_case: Callable[[int, CaseResult], None] | None = None,
    on_kernels: Callable[[Kernels], None] | None = None,
) -> tuple[tuple[Verdict, ...], ...]:
    """Test candidates on several devices at once, each in a child process of its own.

    Args:
        tasks: one for each device.
        on_case: called after each case, with the position of its task.
        on_kernels: called as a child ends, with what it says about Triton's kernels.

    Returns:
        For each task, a verdict per spec, whatever became of the others. A crash is a fail; a run over its time and a
        child that could not judge (an import that fails, killed for memory) are inconclusive, with the last case before.

    Raises:
        UsageError: a request itself is wrong (an unknown fault or backend).
    """
    verdicts: list[list[Verdict]] = [[] for _ in tasks]
    cases: list[list[CaseResult]] = [[] for _ in tasks]
    problems: dict[int, tuple[Outcome, str]] = {}
    started = time.monotonic()
    seconds = [0.0 for _ in tasks]
    for position, message in _messages(tasks):
        seconds[position] = time.monotonic() - started
        if "case" in message:
            cases[position].append(CASE.validate_python(message["case"]))
            if on_case:
                on_case(position, cases[position][-1])
        elif "verdict" in message:
            verdicts[position].append(VERDICT.validate_python(message["verdict"]))
            cases[position].clear()
        elif "kernels" in message:
            if on_kernels:
                on_kernels(Kernels(**message["kernels"]))
        elif "usage" in message:
            raise UsageError(message["usage"])
        elif "problem" in message:
            problems[position] = message["problem"], message["reason"]
    for position, task in enumerate(tasks):
        problem = problems.get(position)
        if problem is not None or not verdicts[position]:
            problem = problem or ("inconclusive", "the self-test process ended without a verdict")
            broken = _broken(problem, cases[position])
            if on_case:
                on_case(position, broken)
            verdicts[position].append(_without_verdict(task.request, (*cases[position], broken), seconds[position]))
    return tuple(
        tuple(_named(verdict, task.request, several=len(tasks) > 1) for verdict in found)
        for task, found in zip(tasks, verdicts, strict=True)
    )


def _broken(problem: tuple[Outcome, str], cases: Sequence[CaseResult]) -> CaseResult:
    outcome, reason = problem
    after = f" (after case {cases[-1].case})" if cases else " (before its first case)"
    return CaseResult(case="process", guards="the self-test's own process", outcome=outcome, reason=reason + after)


def _without_verdict(request: Request, cases: tuple[CaseResult, ...], seconds: float) -> Verdict:
    """The verdict of a child that gave none."""
    return Verdict(
        backend=request.backend,
        provider=request.provider or "",
        device=f"{request.device.name} ({request.device.arch})",
        level=request.level,
        outcome=roll_up(case.outcome for case in cases),
        cases=cases,
        seconds=seconds,
        fault=request.fault,
    )


def _named(verdict: Verdict, request: Request, *, several: bool) -> Verdict:
    """The verdict with the device that it is about: in its text too, where there are several."""
    device = request.device
    return replace(
        verdict,
        device=f"{verdict.device}, {device.label}" if several else verdict.device,
        device_index=device.index,
        device_uuid=device.uuid,
        pci_address=device.pci_address,
    )


def inject_isolated(request: Request, *, timeout: float, env: Mapping[str, str] | None = None) -> tuple[FaultResult, ...]:
    """Inject every fault, in a child process; arguments as of `run_isolated`.

    Raises:
        UsageError: the request is wrong.
        AttnkitError: the child crashed or took longer than `timeout` seconds.
    """
    results: list[FaultResult] = []
    for _, message in _messages([DeviceTask(replace(request, inject_faults=True), timeout, beside(env or {}))]):
        if "fault" in message:
            results.append(FAULT_RESULT.validate_python(message["fault"]))
        elif "usage" in message:
            raise UsageError(message["usage"])
        elif "problem" in message:
            raise AttnkitError(f"{request.backend}: {message['reason']}")
    return tuple(results)


def _messages(tasks: Sequence[DeviceTask]) -> Iterator[tuple[int, dict[str, Any]]]:
    hint = "boot: --selftest-timeout"
    return messages(
        [
            ChildTask("attnkit.isolation.child", "the self-test process", t.request, t.timeout, t.environment, hint)
            for t in tasks
        ]
    )
