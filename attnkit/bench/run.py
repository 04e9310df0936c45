"""The benchmark of our GPU kernels compared with their peers: `attnkit bench [GROUP …] --peers --out DIR`.

The GPU's ceilings first; then workload after workload, ours and every peer on the same inputs in this process, each answer
held against the float64 reference on sampled rows before its time counts. Times are medians of graph replays over rotating
inputs. Whatever fails is a row with the reason, and the report (DIR/peers.json) is rewritten after every row.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnkit import __version__
from attnkit.bench import GROUPS, show, work
from attnkit.bench.judging import Judge
from attnkit.bench.peers import ON_CPU, OURS, PEERS, Peer, Unsupported
from attnkit.bench.results import Report, Row
from attnkit.bench.timing import microseconds
from attnkit.bench.work import Work
from attnkit.spec import Call

FILE = "peers.json"


@dataclass(frozen=True)
class Options:
    """What to run.

    Args:
        out: directory of the report and the plot.
        groups: of work.py, in the order in which ties of rank are run.
        peers: the peers too, not only ours.
        only: part of a workload's name; "" takes all.
        implementations: parts of the names of what to run; empty takes all.
        without: parts of the names of what not to run.
        limit_seconds: no new workload is begun after this many seconds; what is left is listed as not run.
        ranks: workloads up to this rank; None takes all.
    """

    out: Path
    groups: Sequence[str] = GROUPS
    peers: bool = False
    only: str = ""
    implementations: Sequence[str] = ()
    without: Sequence[str] = ()
    limit_seconds: float | None = None
    ranks: int | None = None
    dtype: str = "bfloat16"
    device: str = "cuda"
    command: str = ""


def require_gpu() -> None:
    """End with exit code 3 where torch sees no GPU."""
    if not torch.cuda.is_available():
        print("attnkit bench needs a CUDA or ROCm GPU; torch sees none", file=sys.stderr)
        raise SystemExit(3)


def main(options: Options, works: Sequence[Work] | None = None, everyone: Sequence[Peer] | None = None) -> Report:
    """Run `works` (None: those that `options` choose) and write the report after every row.

    Args:
        everyone: the implementations; None for ours and, where asked for, the peers.

    Raises:
        UsageError: the report cannot be written.
    """
    begun = time.monotonic()
    torch.manual_seed(0)
    if everyone is None:
        everyone = _everyone(options)
    ceilings = _ceilings(options.device)
    report = Report(options.out / FILE, _head(options, everyone, ceilings))
    report.write()
    show.ceilings(report.head)
    absent = {peer.name: why for peer in everyone if (why := peer.absent())}
    for name, why in absent.items():
        show.line(f"absent: {name}: {why}")
    if works is None:
        works = [w for w in work.chosen(options.groups, options.only) if options.ranks is None or w.rank <= options.ranks]
    for item in works:
        fitting = [peer for peer in everyone if item.group in peer.groups]
        spent = time.monotonic() - begun
        if options.limit_seconds is not None and spent > options.limit_seconds:
            rows = [
                _empty(item, peer, f"not run: {spent:.0f} s of {options.limit_seconds:.0f} s were spent") for peer in fitting
            ]
            report.rows.extend(rows)
            continue
        _run_work(item, fitting, absent, options, report)
    report.finish()
    show.summary(report.rows)
    _plot(options, report)
    return report


def _everyone(options: Options) -> list[Peer]:
    if options.device == "cpu":
        everyone: tuple[Peer, ...] = (*OURS, *ON_CPU)
    else:
        everyone = (*OURS, *(PEERS if options.peers else ()))
    wanted, unwanted = options.implementations, options.without
    return [
        peer
        for peer in everyone
        if (not wanted or any(part in peer.name for part in wanted)) and not any(part in peer.name for part in unwanted)
    ]


def _ceilings(device: str) -> dict[str, float]:
    if device == "cpu":
        return {}
    from attnkit.bench import ceilings

    return asdict(ceilings.measure())


def _head(options: Options, everyone: Sequence[Peer], ceilings: dict[str, float]) -> dict[str, Any]:
    import triton

    from attnkit.hardware import detect

    on_gpu = options.device != "cpu"
    driver = next((d.driver for d in detect().devices if d.usable and d.vendor != "cpu"), None) if on_gpu else None
    versions = {peer.package: peer.version() for peer in everyone if peer.package}
    return {
        "command": options.command,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "attnkit": __version__,
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "driver": driver,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "dtype": options.dtype,
        "versions": {name: found for name, found in versions.items() if found and name != "torch"},
        "ceilings": ceilings,
    }


def _empty(item: Work, peer: Peer, note: str) -> Row:
    return Row(item.group, item.name, peer.name, comparable=peer.comparable, note=note)


def _run_work(item: Work, peers: Sequence[Peer], absent: dict[str, str], options: Options, report: Report) -> None:
    """All implementations on one workload; a row each, in order."""

    def add(row: Row) -> None:
        report.add(row)
        show.row(row, report.head)

    try:
        if options.device != "cpu":
            torch.cuda.empty_cache()
        calls = [item.make(getattr(torch, options.dtype), options.device) for _ in range(item.copies)]
        judge = Judge(calls[0])
    except Exception as failure:  # out of memory, say: this workload has no rows, the next may have
        for peer in peers:
            add(_empty(item, peer, f"no inputs: {_reason(failure)}"))
        return
    for peer in peers:
        if peer.name in absent:
            add(_empty(item, peer, f"absent: {absent[peer.name]}"))
            continue
        add(measure(item, peer, calls, judge, options.device))
        if options.device != "cpu":
            _require_context(peer)
            torch.cuda.empty_cache()


def _require_context(peer: Peer) -> None:
    """End the run where a kernel has broken the CUDA context: nothing after it could run, and the report has all until here.

    Raises:
        SystemExit: with what to do.
    """
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise SystemExit(
            f"{peer.name} broke the CUDA context ({_reason(error)}); run again with --without '{peer.name}'"
        ) from None


def _spoil(call: Call) -> None:
    """Fill the output that the call brings along, so that nobody is judged by what another wrote there."""
    out = call.batch.out
    if out is not None:
        out.fill_(float("nan"))


def measure(item: Work, peer: Peer, calls: Sequence[Call], judge: Judge, device: str) -> Row:
    """Prepare `peer` on all of `calls`, check its answer to the first, time all, check the last replay; failures are a row."""
    kernel, error, right, note = "", None, None, ""

    def check(out: Tensor, when: str) -> None:
        nonlocal error, right, note
        judgement = judge(out)
        error = judgement.error if isfinite(judgement.error) else None
        right = right is not False and not judgement.reason
        note = f"{when}: {judgement.reason}" if judgement.reason else note
        if not judgement.error <= item.largest_error:
            raise Unsupported(f"WRONG {when}: relative error {judgement.error:.2e}; {judgement.reason}")

    def after(replay: Callable[[], object], result: tuple[Tensor, str]) -> None:
        if device != "cpu":
            _spoil(calls[0])
            replay()
            check(result[0], "in a graph")

    try:
        _spoil(calls[0])
        first = peer.prepare(calls[0])
        out, kernel = first()
        check(out, "eagerly")
        micros, spread = microseconds([first, *(peer.prepare(call) for call in calls[1:])], device, after)
    except Exception as failure:  # a peer may fail in any way; that is a row, and the others still run
        note = str(failure) if isinstance(failure, Unsupported) else _reason(failure)
        return Row(item.group, item.name, peer.name, kernel, error=error, right=right, comparable=peer.comparable, note=note)
    return Row(
        item.group,
        item.name,
        peer.name,
        kernel,
        micros=round(micros, 3),
        spread=round(spread, 4),
        tflops=round(item.flops / micros / 1e6, 2),
        gbytes=round(item.nbytes / micros / 1e3, 1),
        error=error,
        right=right,
        comparable=peer.comparable,
        note=note,
    )


def _reason(failure: Exception) -> str:
    first = next(iter(str(failure).strip().splitlines()), "")
    return f"{type(failure).__name__}: {first[:200]}"


def _plot(options: Options, report: Report) -> None:
    try:
        from attnkit.bench import roofline

        roofline.plot(report.head, report.rows, options.out / "roofline.png")
    except ImportError as error:
        show.line(f"no plot: {error} (pip install 'attnkit[bench]')")
