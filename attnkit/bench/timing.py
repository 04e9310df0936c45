"""Timing: graph replays over rotating inputs on a GPU, medians and spread.

On a CPU a loop by the host's clock stands in, so that everything around it can be run and tested without a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

After: TypeAlias = Callable[[Callable[[], object], Any], None]
"""(run everything once more, what the first call returned: a graph writes it anew on every run) -> None."""

WARM_MILLISECONDS = 10.0
"""Replays before the timed ones, so that whoever comes first does not meet the clocks of an idle GPU."""


def microseconds(calls: Sequence[Callable[[], object]], device: str, after: After | None = None) -> tuple[float, float]:
    """Median time of one call on `device` ("cuda" or "cpu"), and the spread (max - min) / median."""
    return loop_microseconds(calls, after=after) if device == "cpu" else graph_microseconds(calls, after=after)


def graph_microseconds(
    calls: Sequence[Callable[[], object]], replays: int = 15, warmup: int = 3, after: After | None = None
) -> tuple[float, float]:
    """Median time of one call, and the spread (max - min) / median of the replays.

    All `calls` are captured in one graph, in order; each should use inputs of its own, so that together they do not fit the
    L2 cache. Nothing of the host is in the time.

    Args:
        calls: functions without arguments that only enqueue work on the current stream.
        replays: timed replays of the graph.
        warmup: calls before the capture, each compiling what it needs.
        after: called after the timed replays, while the graph and what it writes are still there.
    """
    for _ in range(warmup):
        calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = calls[0]()
        for call in calls[1:]:
            call()
    spent = 0.0
    while spent < WARM_MILLISECONDS:
        spent += _replay(graph)
    times = [_replay(graph) * 1e3 / len(calls) for _ in range(replays)]
    if after is not None:
        after(lambda: _replay(graph), first)
    return _median_and_spread(times)


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds of one replay."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def loop_microseconds(
    calls: Sequence[Callable[[], object]], replays: int = 3, after: After | None = None
) -> tuple[float, float]:
    """The same by the host's clock, for a CPU: median time of one call over `replays` rounds through `calls`."""
    first = calls[0]()
    times: list[float] = []
    for _ in range(replays):
        begin = time.perf_counter()
        for call in calls:
            call()
        times.append((time.perf_counter() - begin) * 1e6 / len(calls))
    if after is not None:
        after(lambda: None, first)
    return _median_and_spread(times)


def _median_and_spread(times: Sequence[float]) -> tuple[float, float]:
    middle = statistics.median(times)
    return middle, (max(times) - min(times)) / middle


def read_bandwidth() -> float:
    """What this GPU reads from memory, bytes a second: amax over rows of 4 GiB."""
    data = torch.ones(1 << 14, 1 << 17, dtype=torch.bfloat16, device="cuda")
    data.view(torch.int32).amax(dim=1)
    micros, _ = graph_microseconds([lambda: data.view(torch.int32).amax(dim=1)], replays=7)
    return 2.0 * int(data.numel()) / (micros * 1e-6)


def matmul_flops() -> float:
    """What this GPU multiplies, floating-point operations a second: bfloat16, 8192 cubed."""
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    b = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    micros, _ = graph_microseconds([lambda: torch.matmul(a, b)] * 4, replays=7)
    return 2 * 8192**3 / (micros * 1e-6)
