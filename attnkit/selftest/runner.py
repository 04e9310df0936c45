"""Running cases against a backend, and injecting faults, every one of which must be caught."""

from __future__ import annotations

import math
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from attnkit.backends.base import Backend, Provider
from attnkit.backends.installed import first_provider
from attnkit.errors import AttnkitError, UnsupportedError
from attnkit.hardware.device import Device
from attnkit.hardware.torch_names import torch_name
from attnkit.selftest.cases import Case, cases, drawn_anew
from attnkit.selftest.faults import FAULTS, NOISE, find_fault, with_fault
from attnkit.selftest.results import CaseResult, FaultResult, Level, Speed, Verdict, roll_up
from attnkit.spec import AttentionOutput, AttentionSpec, Call

if TYPE_CHECKING:
    from attnkit.selftest.memory import Watched
    from attnkit.selftest.tolerance import Judgement

_T = TypeVar("_T")

UNSEEN: dict[Level, tuple[str, ...]] = {
    "quick": (
        "contexts over 300 tokens, and corruption that starts only there",
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
    seed: int | None = None,
) -> Verdict:
    """Test one provider of one backend on one device.

    Args:
        backend: the backend. spec: a model's need, whose geometry and features are tested; None tests all that is claimed.
        level: quick, standard or extended.
        fault: inject this fault (a name of `FAULTS`).
        provider: which provider; None takes the first that claims the device, an installed one before others.
        on_case: called after each case.
        torch_device: where the tensors live ("cuda:0"); None derives it from `device`.
        seed: of the case that is drawn anew; None draws one. It is in the verdict.

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
    asked = list(cases(level, capability, device, spec))
    seed = secrets.randbits(32) if seed is None else seed
    if asked:
        asked.append(drawn_anew(asked, seed))  # no answer to it can have been learnt
    for case, question, seconds in _questions(asked, where):
        record(_run_case(tested, chosen, case, question, where, seconds))
    outcome = roll_up(result.outcome for result in results)
    if refused and outcome == "pass":
        outcome = "inconclusive"  # what passed is not what the model needs
    speed: tuple[Speed, ...] = ()
    if level != "quick" and fault is None:
        speed = tuple(_speed(backend, chosen, device, spec, where, record))
        if any(one.outcome == "fail" for one in speed):
            outcome = "fail"
    seconds = time.monotonic() - started
    return Verdict(
        backend.name, name, _words(device), level, outcome, tuple(results), UNSEEN[level], seconds, fault, speed, seed=seed
    )


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
    capability = chosen.capability
    where = torch_device or torch_name(device)
    by_dtype: dict[str, list[Case]] = {}
    for case in cases(level, capability, device, spec):
        if max(total for _, total in case.seqs) <= 2048 and not case.far:
            by_dtype.setdefault(case.dtype, []).append(case)
    results: list[FaultResult] = []
    for dtype, offered in by_dtype.items():
        questions = [q for q in (_ask(case, where) for case in offered) if isinstance(q, _Question)]
        sound = [q for q in questions if _examine(backend, chosen, q, where).outcome == "pass"]
        for fault_name, fault in FAULTS.items():
            able = [q for q in sound if fault.applies(q.call)]
            if able and (capability.deterministic or fault_name != NOISE):
                faulty = with_fault(backend, fault_name)
                by = next((q.case.name for q in able if _examine(faulty, chosen, q, where).outcome == "fail"), None)
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


def _questions(asked: Sequence[Case], where: str) -> Iterator[tuple[Case, _Question | str, float]]:
    """Each case with its question, or why it cannot be asked, and the seconds waited for it.

    For an accelerator the right answers are worked out on the host's cores while the device is busy with the case before.
    """
    workers = 0 if where.startswith("cpu") else min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers or 1) as pool:
        ahead: deque[Future[_Question | str]] = deque()
        rest = iter(asked)
        for case in asked:
            started = time.monotonic()
            if not workers:
                question = _ask(case, where)
            else:
                ahead.extend(pool.submit(_ask, one, "cpu") for one in islice(rest, 2 * workers - len(ahead)))
                question = _moved(ahead.popleft().result(), where)
            yield case, question, time.monotonic() - started


def _run_case(
    backend: Backend, provider: Provider, case: Case, question: _Question | str, where: str, seconds: float
) -> CaseResult:
    started = time.monotonic() - seconds
    if isinstance(question, str):
        # a cache past 2**31 elements is asked where there is room for it
        result = CaseResult(case.name, case.guards, "skipped" if case.far else "inconclusive", question)
    else:
        result = _examine(backend, provider, question, where)
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

    def work() -> _Question:
        call = build(case, where)
        return _Question(case, call, reference(call), baselines(call))

    found = _attempt(work)
    if isinstance(found, _Question) and not all(torch.isfinite(one.out).all() for one in (found.oracle, *found.baselines)):
        return "the oracle or the baseline is not finite"
    return found


def _moved(question: _Question | str, where: str) -> _Question | str:
    """The question with its call on a device."""
    from attnkit.selftest.tensors import build

    if isinstance(question, str):
        return question
    return _attempt(lambda: replace(question, call=build(question.case, where)))


def _attempt(work: Callable[[], _T]) -> _T | str:
    import torch

    try:
        return work()
    except (torch.OutOfMemoryError, MemoryError) as error:
        return f"not enough memory for this case: {_line(error)}"
    except (RuntimeError, ValueError, TypeError) as error:
        return f"the question itself could not be worked out: {_line(error)}"


def _examine(backend: Backend, provider: Provider, question: _Question, where: str) -> CaseResult:
    """Everything that one case asks: the right answer in the right place, the same bits again, the same under graph replay."""
    import torch

    case = question.case
    try:
        result = _answer(backend, provider, question, where)
        if result.outcome == "pass":
            complaint = next(_soak(backend, provider, question, where), "")
            if complaint:
                result = replace(result, outcome="fail", reason=complaint)
        return result
    except (torch.OutOfMemoryError, MemoryError) as error:
        return CaseResult(case.name, case.guards, "inconclusive", f"not enough memory: {_line(error)}")
    except ImportError as error:
        return CaseResult(case.name, case.guards, "inconclusive", f"a library is missing: {_line(error)}")
    except AttnkitError as error:
        # refusing is allowed at the edges alone: what is claimed is served
        return CaseResult(case.name, case.guards, "skipped" if case.edge else "fail", f"refused: {_line(error)}")
    except Exception as error:  # whatever a kernel library raises is its failure, and the next case still runs
        if "can't allocate memory" in str(error):  # torch's CPU allocator has no exception class of its own
            return CaseResult(case.name, case.guards, "inconclusive", f"not enough memory: {_line(error)}")
        return CaseResult(case.name, case.guards, "fail", f"{type(error).__name__}: {_line(error)}")


def _answer(backend: Backend, provider: Provider, question: _Question, where: str) -> CaseResult:
    """First with what torch allocates poisoned, then as it serves; both answers are judged, and what lies around them."""
    import torch

    from attnkit.selftest.memory import poisoned, watched

    case, held = question.case, watched(question.call)

    def run() -> AttentionOutput:
        assert held.call.batch.out is not None
        held.call.batch.out.fill_(math.nan)
        return backend.run(held.call, provider.name)

    with poisoned():
        result = run()
    first = replace(result, out=result.out.clone())
    verdict = _judged(question, provider, first)
    reason = verdict.reason or _misplaced(held, result, provider)
    if not reason:
        again = run()
        if not _same(first, again):  # the poison may have changed torch's choice of an algorithm
            reason = _judged(question, provider, again).reason
            before = replace(again, out=again.out.clone())
            if not reason and provider.capability.deterministic and not _same(before, run()):
                reason = "the same input gave other bits the second time, though the backend claims determinism"
    if not reason and provider.capability.graphs and where.startswith("cuda"):
        replayed = _judged(question, provider, _replay(backend, provider.name, held.call)).reason
        reason = f"under graph replay: {replayed}" if replayed else ""
    torch.cuda.synchronize() if where.startswith("cuda") else None
    reason = reason or held.complaint(result)
    return CaseResult(
        case.name,
        case.guards,
        "fail" if reason else "pass",
        reason,
        result.kernel,
        verdict.max_error,
        verdict.max_bound,
        verdict.mean_error,
        verdict.mean_bound,
        verdict.lse_max_error,
        verdict.lse_max_bound,
    )


def _judged(question: _Question, provider: Provider, result: AttentionOutput) -> Judgement:
    from attnkit.selftest.tolerance import judge

    case = question.case
    # Triton's interpreter cuts bfloat16 off, whatever the kernel asks of the hardware
    cut = provider.kind == "interpreter" and case.dtype == "bfloat16"
    natural = case.content in ("random", "sharp") and not cut
    return judge(result, question.oracle, question.baselines, case.spec(), natural=natural)


def _misplaced(held: Watched, result: AttentionOutput, provider: Provider) -> str:
    """What is wrong with an answer beside its numbers: where it lies, and what says that it computed it."""
    if provider.kernels and not any(fnmatchcase(result.kernel, pattern) for pattern in provider.kernels):
        return f"{result.kernel or 'nothing'} ran, which is no kernel of {provider.name}: {', '.join(provider.kernels)}"
    return held.complaint(result)


def _same(one: AttentionOutput, other: AttentionOutput) -> bool:
    """The same bits."""
    import torch

    same_lse = one.lse is None or other.lse is None or torch.equal(one.lse, other.lse)
    return bool(same_lse and torch.equal(one.out, other.out))


def _soak(backend: Backend, provider: Provider, question: _Question, where: str) -> Iterator[str]:
    """The same question again and again under background GEMM load. Yields a complaint."""
    runs, complaint = question.case.soak, ""
    if runs:
        with _busy(where):
            for number in range(1, runs + 1):
                result = backend.run(_fresh(question.call), provider.name)
                reason = _judged(question, provider, result).reason
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
