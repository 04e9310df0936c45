"""The self-test in a process of its own.

A kernel that crashes, hangs or corrupts the device's context must not take the supervisor, or the next candidate's test, with
it; and the supervisor that stays for the engine's lifetime must hold neither torch nor device memory. So each candidate is
tested in a child (`python -m attnkit.isolation.child`): the request goes to its stdin, cases and verdicts come back as JSON
lines on a pipe of their own, and whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from attnkit.errors import AttnkitError, UsageError, describe_exit
from attnkit.isolation.messages import CASE, FAULT_RESULT, VERDICT, Request
from attnkit.jsonio import to_plain
from attnkit.selftest.results import CaseResult, FaultResult, Outcome, Verdict, roll_up

CRASH_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV"}


def run_isolated(
    request: Request,
    *,
    timeout: float,
    on_case: Callable[[CaseResult], None] | None = None,
    on_kernels: Callable[[int, int, str], None] | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[Verdict, ...]:
    """Test one candidate in a child process.

    Args:
        request: what to test.
        timeout: seconds it may take.
        on_case: called after each case.
        on_kernels: called at the end with how many Triton kernels were precompiled, how many were compiled just in time, and
            why no precompiled kernel was used, where there is a kernel directory.
        env: variables that the engine will have (the profile's); those of this process win.

    Returns:
        A verdict per spec and device. A crash is a fail, a run over `timeout` seconds too, with the last case that was begun
        after; a child that could not judge (an import that fails, killed for memory) is inconclusive.

    Raises:
        UsageError: the request itself is wrong (an unknown fault or backend).
    """
    verdicts: list[Verdict] = []
    cases: list[CaseResult] = []
    started = time.monotonic()
    problem: tuple[Outcome, str] | None = None
    for message in _messages(request, timeout, env):
        if "case" in message:
            cases.append(CASE.validate_python(message["case"]))
            if on_case:
                on_case(cases[-1])
        elif "verdict" in message:
            verdicts.append(VERDICT.validate_python(message["verdict"]))
            cases.clear()
        elif "kernels" in message:
            if on_kernels:
                found = message["kernels"]
                on_kernels(found["baked"], found["jit_compiles"], found.get("unused", ""))
        elif "usage" in message:
            raise UsageError(message["usage"])
        elif "problem" in message:
            problem = message["problem"], message["reason"]
    if problem is not None or not verdicts:
        outcome, reason = problem or ("inconclusive", "the self-test process ended without a verdict")
        after = f" (after case {cases[-1].case})" if cases else " (before its first case)"
        broken = CaseResult(case="process", guards="the self-test's own process", outcome=outcome, reason=reason + after)
        if on_case:
            on_case(broken)
        verdicts.append(
            Verdict(
                backend=request.backend,
                provider=request.provider or "",
                device=f"{request.device.name} ({request.device.arch})",
                level=request.level,
                outcome=roll_up((outcome, *(case.outcome for case in cases))),
                cases=(*cases, broken),
                seconds=time.monotonic() - started,
                fault=request.fault,
            )
        )
    return tuple(verdicts)


def inject_isolated(request: Request, *, timeout: float, env: Mapping[str, str] | None = None) -> tuple[FaultResult, ...]:
    """Inject every fault, in a child process; arguments as of `run_isolated`.

    Raises:
        UsageError: the request is wrong.
        AttnkitError: the child crashed or took longer than `timeout` seconds.
    """
    results: list[FaultResult] = []
    for message in _messages(replace(request, inject_faults=True), timeout, env):
        if "fault" in message:
            results.append(FAULT_RESULT.validate_python(message["fault"]))
        elif "usage" in message:
            raise UsageError(message["usage"])
        elif "problem" in message:
            raise AttnkitError(f"{request.backend}: {message['reason']}")
    return tuple(results)


def _messages(request: Request, timeout: float, env: Mapping[str, str] | None) -> Iterator[dict[str, Any]]:
    """The child's messages as they come, then at most one {"problem": outcome, "reason": text} of our own."""
    read_end, write_end = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "attnkit.isolation.child", str(write_end)],
        stdin=subprocess.PIPE,
        stdout=2,  # library chatter must not mix with our events
        pass_fds=(write_end,),
        env={**(env or {}), **os.environ},
    )
    os.close(write_end)
    try:
        assert child.stdin is not None
        with suppress(BrokenPipeError), child.stdin:
            child.stdin.write(json.dumps(to_plain(request)).encode())
        deadline = time.monotonic() + timeout
        for line in _lines(read_end, deadline):
            if line is None:
                child.kill()
                child.wait()
                # a kernel that hangs, or a machine that is too slow or too busy: nobody can tell from here
                yield {"problem": "inconclusive", "reason": f"did not finish within {timeout:.0f} s (boot: --selftest-timeout)"}
                return
            yield json.loads(line)
        yield from _exit_problem(child.wait())
    finally:
        os.close(read_end)
        if child.poll() is None:
            child.kill()
            child.wait()


def _lines(descriptor: int, deadline: float) -> Iterator[bytes | None]:
    """Whole lines until the writer closes; None once where the deadline passes first."""
    rest = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            yield None
            return
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


def _exit_problem(code: int) -> Iterator[dict[str, Any]]:
    if code == 0:
        return
    if -code in CRASH_SIGNALS:
        yield {"problem": "fail", "reason": f"the self-test process crashed with {CRASH_SIGNALS[-code]}"}
    elif code < 0:
        yield {"problem": "inconclusive", "reason": f"the self-test process was ended by {describe_exit(128 - code)}"}
    else:
        yield {
            "problem": "inconclusive",
            "reason": f"the self-test process ended with exit code {code}; its traceback is on stderr",
        }
