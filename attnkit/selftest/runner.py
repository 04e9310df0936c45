"""Running cases against a backend, and injecting faults, every one of which must be caught."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from attnkit.backends.base import Backend, Capability, Provider
from attnkit.backends.installed import first_provider
from attnkit.errors import UnsupportedError
from attnkit.hardware.device import Device
from attnkit.hardware.torch_names import torch_name
from attnkit.selftest.cases import Case, cases
from attnkit.selftest.faults import FAULTS, NOISE, find_fault, with_fault
from attnkit.selftest.results import CaseResult, FaultResult, Level, Speed, Verdict, roll_up
from attnkit.spec import AttentionOutput, AttentionSpec, Call

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

UNSEEN: dict[Level, tuple[str, ...]] = {
    "quick": (
        "contexts over 130 tokens, and corruption that starts only there",
        "head sizes, block sizes, dtypes and features that the model does not ask for",
        "throughput, and errors that come only under load",
    ),
    "standard": ("contexts over 65537 tokens", "errors that come only under load or after hours", "several devices at once"),
    "extended": ("contexts over 131071 tokens", "errors that come only after hours", "several devices at once"),
}
"""What a level cannot see, said in every verdict."""


@dataclass(frozen=True)
class _Question:
    """A case with its call, oracle and baselines, worked out once."""

    case: Case
    call: Call
    oracle: AttentionOutput
    baselines: tuple[AttentionOutput, ...]


def run_selftest(
    backend: Backend,
    device: Device,
    spec: AttentionSpec | None,
    *,
    level: Level,
    fault: str | None = None,
    provider: str | None = None,
    on_case: Callable[[CaseResult], None] | None = None,
    torch_device: str | None = None,
) -> Verdict:
    """Test one provider of one backend on one device.

    Args:
        backend: the backend. spec: a model's need, whose geometry and features are tested; None tests all that is claimed.
        level: quick, standard or extended.
        fault: inject this fault (a name of `FAULTS`).
        provider: which provider; None takes the first that claims the device, an installed one before others.
        on_case: called after each case.
        torch_device: where the tensors live ("cuda:0"); None derives it from `device`.

    Raises:
        UsageError: an unknown fault. UnsupportedError: no such provider, or none for this device.
    """
    started = time.monotonic()
    if fault is not None:
        find_fault(fault)
    chosen = _provider(backend, device, provider)
    name, capability = chosen.name, chosen.capability
    where = torch_device or torch_name(device)
    tested = backend if fault is None else with_fault(backend, fault)
    results: list[CaseResult] = []

    def record(result: CaseResult) -> None:
        results.append(result)
        if on_case is not None:
            on_case(result)

    if backend.name == "NO_ATTENTION":
        record(CaseResult("none", "nothing", "skipped", "NO_ATTENTION computes nothing; it is for debugging and never ready"))
        return Verdict(backend.name, name, _words(device), level, "skipped", tuple(results), UNSEEN[level], fault=fault)
    refused = () if spec is None else capability.reject(spec, device)
    if refused:
        for reason in refused:
            record(CaseResult("need", "what the model asks for", "skipped", reason.message))
    for case in cases(level, capability, device, spec):
        record(_run_case(tested, name, capability, case, where))
    outcome = roll_up(result.outcome for result in results)
    if refused and outcome == "pass":
        outcome = "inconclusive"  # what passed is not what the model needs
    speed: tuple[Speed, ...] = ()
    if level != "quick" and fault is None:
        speed = tuple(_speed(backend, chosen, device, spec, where, record))
        if any(one.outcome == "fail" for one in speed):
            outcome = "fail"
    seconds = time.monotonic() - started
    return Verdict(backend.name, name, _words(device), level, outcome, tuple(results), UNSEEN[level], seconds, fault, speed)


def inject_faults(
    backend: Backend,
    device: Device,
    spec: AttentionSpec | None = None,
    *,
    level: Level = "quick",
    provider: str | None = None,
    torch_device: str | None = None,
) -> tuple[FaultResult, ...]:
    """Inject every fault into `backend` and see whether a case of `level` catches it, for every dtype.

    A fault counts as caught only through a case that passes without it. Bits that vary are a fault only of a backend that
    claims determinism.
    """
    chosen = _provider(backend, device, provider)
    name, capability = chosen.name, chosen.capability
    where = torch_device or torch_name(device)
    by_dtype: dict[str, list[Case]] = {}
    for case in cases(level, capability, device, spec):
        if max(total for _, total in case.seqs) <= 2048:
            by_dtype.setdefault(case.dtype, []).append(case)
    results: list[FaultResult] = []
    for dtype, offered in by_dtype.items():
        questions = [q for q in (_ask(case, where) for case in offered) if isinstance(q, _Question)]
        sound = [q for q in questions if _examine(backend, name, capability, q, where).outcome == "pass"]
        for fault_name, fault in FAULTS.items():
            able = [q for q in sound if fault.applies(q.call)]
            if able and (capability.deterministic or fault_name != NOISE):
                faulty = with_fault(backend, fault_name)
                by = next((q.case.name for q in able if _examine(faulty, name, capability, q, where).outcome == "fail"), None)
                results.append(FaultResult(fault_name, by is not None, by, dtype))
    return tuple(results)


def _provider(backend: Backend, device: Device, provider: str | None) -> Provider:
    if provider is None:
        found = first_provider(backend, device)
    else:
        found = next((p for p in backend.providers if p.name == provider), None)
    if found is not None:
        return found
    known = ", ".join(p.name for p in backend.providers)
    raise UnsupportedError(f"{backend.name} has no provider {provider or 'for ' + device.vendor}; it has {known}")


def _speed(
    backend: Backend,
    provider: Provider,
    device: Device,
    spec: AttentionSpec | None,
    where: str,
    record: Callable[[CaseResult], None],
) -> Iterator[Speed]:
    """The speeds, each also recorded as a case, so that whoever lists the cases shows it."""
    from attnkit.selftest.speed import measure

    guards = "a speed that only something badly broken is under"
    try:
        for speed in measure(backend, provider, device, spec, where):
            record(
                CaseResult(
                    f"speed-{speed.work}", guards, speed.outcome, speed.reason, speed.kernel, seconds=speed.seconds or 0.0
                )
            )
            yield speed
    except Exception as error:  # as in `_examine`: the larger work is a case like the others
        record(CaseResult("speed", guards, "fail", f"{type(error).__name__}: {_line(error)}"))
        yield Speed("any", "fail", f"{type(error).__name__}: {_line(error)}")


def _run_case(backend: Backend, provider: str, capability: Capability, case: Case, where: str) -> CaseResult:
    started = time.monotonic()
    question = _ask(case, where)
    if isinstance(question, str):
        result = CaseResult(case.name, case.guards, "inconclusive", question)
    else:
        result = _examine(backend, provider, capability, question, where)
    return replace(result, case=full_name(case), seconds=time.monotonic() - started)


def full_name(case: Case) -> str:
    """Operation, case, dtype and geometry in one word, as reports show it."""
    size = f"d{case.head_dim}" if case.head_dim == case.head_dim_v else f"d{case.head_dim}/{case.head_dim_v}"
    page = "" if case.op == "varlen" else f"-page{case.block_size}"
    return f"{case.op}-{case.name}-{case.dtype}-h{case.heads}/{case.kv_heads}-{size}{page}"


def _ask(case: Case, where: str) -> _Question | str:
    """The question, or why it cannot be asked: the fault is then not the backend's."""
    import torch

    from attnkit.selftest.baseline import baselines
    from attnkit.selftest.reference import reference
    from attnkit.selftest.tensors import build

    try:
        call = build(case, where)
        oracle = reference(call)
        yardsticks = baselines(call)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return f"not enough memory for this case: {_line(error)}"
    except (RuntimeError, ValueError, TypeError) as error:
        return f"the question itself could not be worked out: {_line(error)}"
    if not (torch.isfinite(oracle.out).all() and all(torch.isfinite(one.out).all() for one in yardsticks)):
        return "the oracle or the baseline is not finite"
    return _Question(case, call, oracle, yardsticks)


def _examine(backend: Backend, provider: str, capability: Capability, question: _Question, where: str) -> CaseResult:
    """Everything that one case asks: the right answer, the same bits again, the same under graph replay."""
    import torch

    case = question.case
    try:
        result = _answer(backend, provider, question)
        if result.outcome == "pass":
            checks = chain(_again(backend, provider, capability, question, where), _soak(backend, provider, question, where))
            complaint = next(checks, "")
            if complaint:
                result = replace(result, outcome="fail", reason=complaint)
        return result
    except (torch.OutOfMemoryError, MemoryError) as error:
        return CaseResult(case.name, case.guards, "inconclusive", f"not enough memory: {_line(error)}")
    except ImportError as error:
        return CaseResult(case.name, case.guards, "inconclusive", f"a library is missing: {_line(error)}")
    except Exception as error:  # whatever a kernel library raises is its failure, and the next case still runs
        if "can't allocate memory" in str(error):  # torch's CPU allocator has no exception class of its own
            return CaseResult(case.name, case.guards, "inconclusive", f"not enough memory: {_line(error)}")
        return CaseResult(case.name, case.guards, "fail", f"{type(error).__name__}: {_line(error)}")


def _answer(backend: Backend, provider: str, question: _Question) -> CaseResult:

    from attnkit.selftest.tolerance import judge

    case = question.case
    result = backend.run(_fresh(question.call), provider)
    verdict = judge(result, question.oracle, question.baselines, case.spec())
    return CaseResult(
        case.name,
        case.guards,
        "fail" if verdict.reason else "pass",
        verdict.reason,
        result.kernel,
        verdict.max_error,
        verdict.max_bound,
        verdict.mean_error,
        verdict.mean_bound,
        verdict.lse_max_error,
        verdict.lse_max_bound,
    )


def _again(backend: Backend, provider: str, capability: Capability, question: _Question, where: str) -> Iterator[str]:
    """The claims beyond one right answer: the same bits twice, and the same under graph replay. Yields a complaint."""
    import torch

    from attnkit.selftest.tolerance import judge

    if capability.deterministic:
        first, second = (backend.run(_fresh(question.call), provider) for _ in range(2))
        same_lse = first.lse is None or second.lse is None or torch.equal(first.lse, second.lse)
        if not (same_lse and torch.equal(first.out, second.out)):
            yield "the same input gave other bits the second time, though the backend claims determinism"
            return
    if capability.graphs and where.startswith("cuda"):
        replayed = _replay(backend, provider, _fresh(question.call))
        verdict = judge(replayed, question.oracle, question.baselines, question.case.spec())
        if verdict.reason:
            yield f"under graph replay: {verdict.reason}"


def _soak(backend: Backend, provider: str, question: _Question, where: str) -> Iterator[str]:
    """The same question again and again under background GEMM load. Yields a complaint."""
    from attnkit.selftest.tolerance import judge

    runs, complaint = question.case.soak, ""
    if runs:
        with _busy(where):
            for number in range(1, runs + 1):
                result = backend.run(_fresh(question.call), provider)
                reason = judge(result, question.oracle, question.baselines, question.case.spec()).reason
                if reason:
                    complaint = f"in run {number} of {runs} under load: {reason}"
                    break
    if complaint:
        yield complaint


@contextmanager
def _busy(where: str) -> Iterator[None]:
    """Inside, a thread keeps the device busy; on a GPU in a stream of its own."""
    import torch

    over = threading.Event()

    def work() -> None:
        square = torch.ones(512, 512, device=where)
        stream = torch.cuda.Stream(where) if where.startswith("cuda") else None
        while not over.is_set():
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                torch.mm(square, square)
                if stream is not None:
                    stream.synchronize()  # a few at a time, or the queue grows without end

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _replay(backend: Backend, provider: str, call: Call) -> AttentionOutput:
    """The answer of a captured graph, with the output filled with NaN between capture and replay."""
    import torch

    device = call.batch.query.device
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            backend.run(call, provider)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):  # torch's own capture stream is of the device that captured first
            result = backend.run(call, provider)
        result.out.fill_(math.nan)
        graph.replay()
        torch.cuda.synchronize()
    return result


def _fresh(call: Call) -> Call:
    """The call with an output buffer of its own, full of NaN."""
    out = call.batch.out
    assert out is not None
    return call.with_batch(out=out.new_full(out.shape, math.nan))


def _words(device: Device) -> str:
    return f"{device.name} ({device.arch})"


def _line(error: BaseException) -> str:
    """The first line of an error's text, not too long for a report; of torch's compiler, which says there only that there was
    an exception, also the line that says which."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    context = next((line.strip() for line in others if line.strip().startswith("Developer debug context:")), "")
    return " ".join(filter(None, (first[:300], context[:300])))
