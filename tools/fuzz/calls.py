"""Random calls of what backends claim, against float64: `python -m tools.fuzz.calls --backend NAME --device cuda --draws N`.

A call passes where it is refused with `UnsupportedError`, or where the output is right by the self-test's rule, the log-sum-exp
too, and nothing else was written: inputs, caches and the memory around the output are compared afterwards. A failing draw is
printed as a test. Without --backend: every backend that has a provider here, each provider by itself.

With --jobs the draws are cut into pieces that processes take, one provider after the other; with --seconds every piece ends in
time, and the report says how many draws there were. The oracle is computed on the CPU, by one thread a process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path

import torch

from attnkit.backends import registry
from attnkit.backends.base import Backend, Provider, missing
from attnkit.backends.torch_device import device_of
from attnkit.boot.versions import versions
from attnkit.contract import check
from attnkit.errors import UnsupportedError
from attnkit.jsonio import now, to_json, write_atomically
from attnkit.selftest.baseline import baselines
from attnkit.selftest.reference import reference
from attnkit.selftest.tolerance import judge
from attnkit.spec import AttentionOutput, Call, VarlenAttention
from tools.evidence import command_line
from tools.fuzz.build import Built, build
from tools.fuzz.draws import Draw, draws

FLOAT32 = 1e-4
"""Allowed of the largest number in float32; the baselines of `judge` would take most of the time."""
PIECE = 2
"""Kinds of calls in what one process does at a time."""
TOGETHER = 4
"""Calls at once, each in a thread and, on a GPU, on a stream of its own."""


@dataclass
class Count:
    """What became of the draws of a provider."""

    run: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Count) -> None:
        """Take another's draws in."""
        self.run += other.run
        self.refused.update(other.refused)
        self.wrong += other.wrong
        self.seconds += other.seconds


def problem(draw: Draw, backend: str, provider: str | None = None, device: str = "cpu") -> str:
    """What is wrong with the answer to a draw; "" where it is right.

    Raises:
        UnsupportedError: the call is refused.
    """
    made = build(draw, device)
    before = made.snapshot()
    result = _run(made, backend, provider)
    return _wrong(made, result, before)


def _run(made: Built, backend: str, provider: str | None) -> AttentionOutput:
    check(made.call)
    return registry.get(backend).run(made.call, provider)


def _wrong(made: Built, result: AttentionOutput, before: list[torch.Tensor]) -> str:
    if made.out is not None and result.out.data_ptr() != made.out.data_ptr():
        return "the result is not in `out`"
    after = made.snapshot()
    if not all(torch.equal(one, other) for one, other in zip(before, after, strict=True)):
        return "an input, or memory around the output, was written"
    call, rows = made.call, made.rows
    if not rows:
        return ""
    oracle = _first(reference(call), rows)
    found = _first(result, rows)
    wrong = _far(found.out, oracle.out, "output", _bound(call)) or _lse(found, oracle, _bound(call))
    if not wrong or call.spec().dtype == "float32" or not oracle.out.any():
        return wrong
    return judge(found, oracle, [_first(one, rows) for one in baselines(call)], call.spec()).reason


def _bound(call: Call) -> float:
    """What is right without asking the baseline, whose own error in few rows is a matter of luck: of the largest number."""
    return FLOAT32 if call.spec().dtype == "float32" else 4 * torch.finfo(call.batch.query.dtype).eps


def _lse(found: AttentionOutput, oracle: AttentionOutput, part: float) -> str:
    return "" if oracle.lse is None else _far(found.lse, oracle.lse, "log-sum-exp", part)


def _far(found: torch.Tensor | None, oracle: torch.Tensor, what: str, part: float) -> str:
    if found is None:
        return f"{what} is missing"
    found = found.cpu().double()
    same = found == oracle  # infinities, too
    error = torch.where(same, 0.0, (found - oracle).abs())
    bound = part * max(1.0, float(oracle.masked_fill(~oracle.isfinite(), 0.0).abs().max()))
    return (
        "" if bool((error <= bound).all()) else f"{what}: largest error {float(error.max()):.3g} is over the bound {bound:.3g}"
    )


def _first(result: AttentionOutput, rows: int) -> AttentionOutput:
    return replace(result, out=result.out[:rows], lse=None if result.lse is None else result.lse[:rows])


def replayed(draw: Draw, backend: str, provider: str) -> str:
    """A captured graph, run again after lengths and blocks have changed; "" where both answers are right."""
    made = build(draw, "cuda")
    batch = made.call.batch
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        _run(made, backend, provider)  # compiles
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            result = _run(made, backend, provider)
    lens = batch.key_start_loc if isinstance(batch, VarlenAttention) else batch.seq_lens
    for shorter in (False, True):
        if shorter and isinstance(batch, VarlenAttention):
            lens.copy_((lens // 2).sort().values)
        elif shorter:
            lens.copy_(lens // 2)
        before = made.snapshot()
        graph.replay()
        torch.cuda.synchronize()
        if wrong := _wrong(made, result, before):
            return f"graph, {'shorter' if shorter else 'same'} lengths: {wrong}"
    return ""


def together(found: Sequence[Draw], backend: str, provider: str, device: str) -> Iterator[tuple[Draw, str]]:
    """Several draws at once; those whose answer is not the one that they had alone."""
    made = [build(draw, device) for draw in found]

    def one(at: int) -> AttentionOutput:
        if device == "cpu":
            return _run(made[at], backend, provider)
        with torch.cuda.stream(torch.cuda.Stream()):
            result = _run(made[at], backend, provider)
            torch.cuda.current_stream().synchronize()
        return result

    before = [x.snapshot() for x in made]
    if device != "cpu":
        torch.cuda.synchronize()
    with ThreadPoolExecutor(len(made)) as pool:
        results = list(pool.map(one, range(len(made))))
    for draw, x, result, was in zip(found, made, results, before, strict=True):
        yield draw, _wrong(x, result, was)


def fuzz(
    backend: Backend, provider: Provider, device: str, number: int, seed: int, alike: int = 1, until: float = float("inf")
) -> Count:
    """`number` draws of what a provider claims, none begun after `until` (as of time.time()); `alike` as of `draws`."""
    begin = time.monotonic()
    where = device_of(torch.empty(0, device=device))
    count, ran = Count(), []
    found = draws(provider.capability, where, seed, small=device == "cpu", alike=alike)
    for draw in islice(found, number):
        if time.time() > until:
            break
        far = device != "cpu" and draw.op != "varlen" and draw.seed % 50 == 0
        draw = replace(draw, far=far)
        try:
            wrong = problem(draw, backend.name, provider.name, device)
            if not wrong and provider.capability.graphs and device != "cpu" and draw.seed % 4 == 0:
                wrong = replayed(draw, backend.name, provider.name)
        except UnsupportedError as error:
            count.refused[str(error).split(":")[0]] += 1
            continue
        except Exception as error:  # whatever it is, the call was neither honoured nor refused
            wrong = f"{type(error).__name__}: {str(error)[:200]}"
        count.run += 1
        if wrong:
            count.wrong.append(as_test(draw, backend.name, provider.name, device, wrong))
        elif provider.kind != "interpreter" and not far:
            ran.append(draw)
        if far:
            torch.cuda.empty_cache()  # gigabytes, of which other processes want some
    for at in range(0, min(len(ran), 10 * TOGETHER), TOGETHER):
        for draw, wrong in together(ran[at : at + TOGETHER], backend.name, provider.name, device):
            if wrong:
                count.wrong.append(as_test(draw, backend.name, provider.name, device, f"with others at once: {wrong}"))
    count.seconds = time.monotonic() - begin
    return count


@dataclass(frozen=True)
class Piece:
    """Some draws of one provider, for a process of its own."""

    backend: str
    provider: str
    device: str
    number: int
    seed: int
    alike: int
    until: float

    def count(self) -> Count:
        """What becomes of them."""
        torch.set_num_threads(1)
        backend = registry.get(self.backend)
        provider = next(p for p in backend.providers if p.name == self.provider)
        return fuzz(backend, provider, self.device, self.number, self.seed, self.alike, self.until)


def side_by_side(pieces: Sequence[Piece], jobs: int) -> Iterator[tuple[Piece, Count]]:
    """The counts of pieces in processes of their own, `jobs` at a time; no CUDA context survives a fork."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for piece, future in [(piece, pool.submit(piece.count)) for piece in pieces]:
            try:
                yield piece, future.result()
            except BrokenProcessPool as error:  # one crash ends them all; what was counted before stays
                yield piece, Count(wrong=[f"# a process died, here or in another piece: {piece}: {error}\n"])


def in_turn(lists: Sequence[Sequence[Piece]]) -> list[Piece]:
    """The first of each list, the second of each, …"""
    return [piece for row in zip_longest(*lists) for piece in row if piece is not None]


def as_test(draw: Draw, backend: str, provider: str, device: str, wrong: str) -> str:
    """A failing draw as a test."""
    return (
        "def test_draw():\n"
        "    from tools.fuzz.calls import problem\n"
        "    from tools.fuzz.draws import Draw\n\n"
        f"    draw = {draw}\n"
        f'    assert problem(draw, "{backend}", "{provider}", "{device}") == ""\n'
        f"    # {wrong}\n"
    )


def providers(device: str, names: Sequence[str]) -> Iterator[tuple[Backend, Provider]]:
    """Every provider of the backends named (none: of all) that can run on `device` with what is installed."""
    where = device_of(torch.empty(0, device=device))
    for backend in registry.all_backends():
        if (names and backend.name not in names) or (not names and not backend.automatic):
            continue
        for provider in backend.providers:
            if not provider.capability.device_reasons(where) and not missing(provider, backend.installed()):
                yield backend, provider


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where a call was wrong, 2 where no provider can run."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz.calls", description=__doc__)
    parser.add_argument("--backend", action="append", default=[], help="a backend's name; may be repeated")
    parser.add_argument("--provider", default="", help="only this provider")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--draws", type=int, default=100, help="calls a provider")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alike", type=int, default=1, help="draws in a row that a compiler is asked once for")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no draw begins later")
    parser.add_argument("--json", type=Path, help="counts, versions, date and command go to this file")
    asked = parser.parse_args(arguments)
    names = [registry.canonical(name) for name in asked.backend]
    chosen = [pair for pair in providers(asked.device, names) if asked.provider in ("", pair[1].name)]
    until = time.time() + asked.seconds
    size = asked.draws if asked.jobs == 1 else asked.alike * PIECE
    pieces = [
        [
            Piece(b.name, p.name, asked.device, min(size, asked.draws - at), asked.seed + at, asked.alike, until)
            for at in range(0, asked.draws, size)
        ]
        for b, p in chosen
    ]
    counts = {f"{b.name}/{p.name}": Count() for b, p in chosen}
    turns = in_turn(pieces)
    for piece, count in side_by_side(turns, asked.jobs) if asked.jobs > 1 else ((piece, piece.count()) for piece in turns):
        counts[f"{piece.backend}/{piece.provider}"].add(count)
    for name, count in counts.items():
        print(f"{name}: {count.run} run, {sum(count.refused.values())} refused, "
              f"{len(count.wrong)} wrong, {count.seconds:.1f} s")  # fmt: skip
        for reason, times in count.refused.most_common():
            print(f"    refused {times}: {reason}")
        print("\n".join(count.wrong), end="")
    if asked.json:
        command = command_line("tools.fuzz.calls", sys.argv[1:] if arguments is None else arguments)
        where = device_of(torch.empty(0, device=asked.device))
        report = {"taken": now(), "command": command, "device": where.name, "versions": versions(where), "providers": counts}
        write_atomically(asked.json, to_json(report))
    if not chosen:
        print(f"no provider of {', '.join(names) or 'any backend'} runs on {asked.device} here", file=sys.stderr)
        return 2
    return 1 if any(count.wrong for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
