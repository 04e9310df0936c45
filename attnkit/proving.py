"""The self-test in a process of its own.

A kernel that crashes, hangs or corrupts the device's context must not take the supervisor, or the next candidate's test, with
it; and the supervisor that stays for the engine's lifetime must hold neither torch nor device memory. So each candidate is
tested in a child (`python -m attnkit.proving`): the request goes to its stdin, cases and verdicts come back as JSON lines on a
pipe of their own, and whatever libraries print goes to stderr.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from attnkit.backends.base import Backend
from attnkit.errors import AttnkitError, UsageError
from attnkit.events import describe_exit
from attnkit.hardware.device import Device
from attnkit.plain import to_plain
from attnkit.selftest.model import CaseResult, Level, Outcome, Verdict
from attnkit.spec import AttentionSpec

CRASH_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV"}


@dataclass(frozen=True)
class Request:
    """One candidate to be tested.

    Args:
        backend, provider: what to run; provider None takes the first that can. "vllm:NAME" is vLLM's own implementation.
        device: what it runs on; every visible accelerator of its vendor is tested.
        specs: the need, one per kind of layer; empty tests the level's own cases only.
        level: quick, standard or extended.
        fault: a fault planted on purpose, or None.
        planted_answer: what the device is made to answer (see `attnkit.planted`), or None: it is really asked.
        prove: plant every fault instead, and report which case catches it.
    """

    backend: str
    provider: str | None
    device: Device
    specs: tuple[AttentionSpec, ...]
    level: Level
    fault: str | None = None
    planted_answer: str | None = None
    prove: bool = False


@dataclass(frozen=True)
class Proof:
    """Whether the self-test caught one planted fault, and through which case."""

    fault: str
    caught: bool
    by: str | None
    dtype: str | None


_REQUEST = TypeAdapter(Request)
_CASE = TypeAdapter(CaseResult)
_VERDICT = TypeAdapter(Verdict)
_PROOF = TypeAdapter(Proof)


def run_isolated(
    request: Request,
    *,
    timeout: float,
    on_case: Callable[[CaseResult], None] | None = None,
    on_kernels: Callable[[int, int, str], None] | None = None,
) -> tuple[Verdict, ...]:
    """Test one candidate in a child process.

    Args:
        request: what to test.
        timeout: seconds it may take.
        on_case: called after each case.
        on_kernels: called at the end with how many Triton kernels came from the bake, how many were compiled on the spot, and
            why the bake was of no use, where there is one and it was not.

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
    for message in _messages(request, timeout):
        if "case" in message:
            cases.append(_CASE.validate_python(message["case"]))
            if on_case:
                on_case(cases[-1])
        elif "verdict" in message:
            verdicts.append(_VERDICT.validate_python(message["verdict"]))
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
                outcome="fail" if outcome == "fail" or any(c.outcome == "fail" for c in cases) else outcome,
                cases=(*cases, broken),
                seconds=time.monotonic() - started,
                fault=request.fault,
            )
        )
    return tuple(verdicts)


def prove_isolated(request: Request, *, timeout: float) -> tuple[Proof, ...]:
    """Plant every fault in a child process.

    Raises:
        UsageError: the request is wrong.
        AttnkitError: the child crashed or took longer than `timeout` seconds.
    """
    proofs: list[Proof] = []
    for message in _messages(replace(request, prove=True), timeout):
        if "proof" in message:
            proofs.append(_PROOF.validate_python(message["proof"]))
        elif "usage" in message:
            raise UsageError(message["usage"])
        elif "problem" in message:
            raise AttnkitError(f"{request.backend}: {message['reason']}")
    return tuple(proofs)


def _messages(request: Request, timeout: float) -> Iterator[dict[str, Any]]:
    """The child's messages as they come, then at most one {"problem": outcome, "reason": text} of our own."""
    read_end, write_end = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "attnkit.proving", str(write_end)],
        stdin=subprocess.PIPE,
        stdout=2,  # library chatter must not mix with our events
        pass_fds=(write_end,),
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


def _torch_devices(device: Device) -> list[str | None]:
    """torch's names of every visible device of this vendor; [None] where torch does not run it or sees none."""
    if device.kind == "cpu":
        return ["cpu"]
    if device.vendor == "google":
        return [None]
    import torch

    kind, count = ("xpu", torch.xpu.device_count()) if device.vendor == "intel" else ("cuda", torch.cuda.device_count())
    return [f"{kind}:{index}" for index in range(count)] or [None]


def _watches_triton(device: Device) -> bool:
    """Whether Triton's kernels are counted: on GPUs, where it compiles, and where it is installed."""
    return device.kind == "gpu" and importlib.util.find_spec("triton") is not None


def _count_kernels(request: Request, send: Callable[[str, Any], None]) -> None:
    """Test with Triton's kernels taken from the bake that $ATTNKIT_KERNELS names, if any; everything compiled is counted."""
    if not _watches_triton(request.device):
        _work(request, send)
        send("kernels", {"baked": 0, "jit_compiles": _compiled_graphs()})
        return
    from attnkit.kernels import aot

    bake = os.environ.get("ATTNKIT_KERNELS")
    if bake:
        aot.use(bake)
    with aot.watch() as count:
        _work(request, send)
    unused = aot.unused(bake, count.jit_compiles) if bake and count.compiled and not count.baked else ""
    jit_compiles = count.jit_compiles + _compiled_graphs()
    send("kernels", {"baked": count.baked, "jit_compiles": jit_compiles, "unused": unused})


def _compiled_graphs() -> int:
    """Graphs that torch.compile has captured in this process; 0 where it was never loaded."""
    loaded = sys.modules.get("torch._dynamo.utils")
    return int(loaded.counters["stats"]["unique_graphs"]) if loaded else 0


def _backend(name: str) -> Backend:
    """attnkit's backend, or vLLM's own where the name says so."""
    from attnkit.backends.registry import get
    from attnkit.engines import vllm_driver

    return vllm_driver.engine_backend(name) if name.startswith(vllm_driver.PREFIX) else get(name)


def _prove(request: Request, send: Callable[[str, Any], None]) -> None:
    from attnkit import selftest

    spec = request.specs[0] if request.specs else None
    backend = _backend(request.backend)
    for proof in selftest.prove(backend, request.device, spec, level=request.level, provider=request.provider):
        send("proof", {"fault": proof.fault, "caught": proof.caught, "by": proof.by, "dtype": proof.dtype})


def _work(request: Request, send: Callable[[str, Any], None]) -> None:
    names = _torch_devices(request.device)
    for index, name in enumerate(names):
        device = replace(request.device, index=index) if len(names) > 1 else request.device
        for spec in request.specs or (None,):
            verdict = _judge(request, device, spec, name, lambda case: send("case", case))
            send("verdict", replace(verdict, device=f"{verdict.device} [{name}]") if len(names) > 1 else verdict)


def _judge(
    request: Request,
    device: Device,
    spec: AttentionSpec | None,
    torch_device: str | None,
    on_case: Callable[[CaseResult], None],
) -> Verdict:
    from attnkit import selftest
    from attnkit.engines import vllm_driver

    if request.backend.startswith(vllm_driver.PREFIX):
        return vllm_driver.validate_engine_backend(
            request.backend,
            spec,
            request.level,
            device=device,
            fault=request.fault,
            on_case=on_case,
            torch_device=torch_device,
        )
    return selftest.run_selftest(
        _backend(request.backend),
        device,
        spec,
        level=request.level,
        fault=request.fault,
        provider=request.provider,
        on_case=on_case,
        torch_device=torch_device,
    )


def _plant(answer: str, request: Request, send: Callable[[str, Any], None]) -> None:
    from attnkit import planted

    planted.give(
        answer, backend=request.backend, provider=request.provider, device=request.device, level=request.level, send=send
    )


def _main(descriptor: int) -> None:
    with os.fdopen(descriptor, "w", encoding="utf-8") as pipe:

        def send(kind: str, value: Any) -> None:
            pipe.write(json.dumps({kind: to_plain(value)}) + "\n")
            pipe.flush()

        try:
            request = _REQUEST.validate_json(sys.stdin.buffer.read())
            if request.planted_answer is not None:
                _plant(request.planted_answer, request, send)
            elif request.prove:
                _prove(request, send)
            else:
                _count_kernels(request, send)
        except AttnkitError as error:
            send("usage", str(error))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
