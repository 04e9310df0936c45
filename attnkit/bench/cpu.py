"""Our CPU kernels compared with vLLM's CPU_ATTN on the same work: `attnkit bench cpu --out DIR`.

Both run in one process on the same number of threads, one after the other in turn, so that what else the machine does meets
both alike; the ratio is taken pair by pair. vLLM's own layer, cache layout and metadata builder are used; its metadata are
built once outside the timing, as are our tensors. Every shape is checked against the other one before its time counts.
Needs vLLM's CPU build and compiled CPU kernels (attnkit kernels build --target cpu).
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from attnkit.backends.registry import get
from attnkit.hardware import detect
from attnkit.jsonio import check_writable, now, write_atomically
from attnkit.kernels.cpu.library import PROVIDER
from attnkit.spec import PagedAttention, Softmax

LARGEST_DIFFERENCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Relative difference (norms) of the two implementations from which a shape counts as wrong and is not timed."""


@dataclass(frozen=True)
class Shape:
    """New tokens and length of each sequence."""

    name: str
    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    block_size: int = 128


SHAPES = (
    Shape("decode B1 ctx1024", (1,), (1024,)),
    Shape("decode B1 ctx16384", (1,), (16384,)),
    Shape("decode B16 ctx1024", (1,) * 16, (1024,) * 16),
    Shape("decode B16 ctx1024 mha", (1,) * 16, (1024,) * 16, heads=8, kv_heads=8),
    Shape("decode B16 ctx256 d64", (1,) * 16, (256,) * 16, heads=8, kv_heads=2, head_dim=64),
    Shape("prefill B1 S1024", (1024,), (1024,)),
    Shape("prefill B8 S128", (128,) * 8, (128,) * 8),
    Shape("chunked 256 over 2048", (256,), (2304,)),
    Shape("mixed 1x256+15 decodes", (1,) * 15 + (256,), (1024,) * 16),
)


@dataclass(frozen=True)
class Row:
    """One shape: medians in microseconds, and the ratio theirs / ours (above 1: ours is faster) with its quartiles.

    `tokens_first`: the same call of ours over a cache with tokens before heads in memory, over ours; the median of its ratios.
    """

    workload: str
    dtype: str
    kernel: str
    peer: str
    ours_us: float
    peer_us: float
    ratio: float
    ratio_low: float
    ratio_high: float
    pairs: int
    difference: float
    tokens_first: float = 0.0
    note: str = ""


def make_call(shape: Shape, dtype: torch.dtype) -> PagedAttention:
    """A batch with a permuted block table and random contents; heads before tokens in memory, as our plugin has it on a CPU.

    That is CPU_ATTN's own order, too. With tokens before heads each row of a key head is far from the next.
    """
    draw = torch.Generator().manual_seed(0)
    blocks = [-(-n // shape.block_size) for n in shape.seq_lens]
    order = torch.randperm(sum(blocks), generator=draw).to(torch.int32)
    table = torch.zeros(len(blocks), max(blocks), dtype=torch.int32)
    for row, (first, count) in enumerate(zip(itertools.accumulate([0, *blocks[:-1]]), blocks, strict=True)):
        table[row, :count] = order[first : first + count]
    size = (sum(blocks), shape.kv_heads, shape.block_size, shape.head_dim)
    query = torch.randn(sum(shape.query_lens), shape.heads, shape.head_dim, generator=draw).to(dtype)
    return PagedAttention(
        query,
        torch.randn(size, generator=draw).to(dtype).transpose(1, 2),
        torch.randn(size, generator=draw).to(dtype).transpose(1, 2),
        table,
        torch.tensor(shape.seq_lens, dtype=torch.int32),
        torch.tensor([0, *itertools.accumulate(shape.query_lens)], dtype=torch.int32),
        max(shape.query_lens),
        max(shape.seq_lens),
        Softmax(shape.head_dim**-0.5),
        out=torch.empty_like(query),
    )


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measure(shape: Shape, dtype: torch.dtype, pairs: int) -> Row:
    """Interleaved pairs of one shape."""
    from attnkit.engines.vllm import layer as vllm_layer

    call, backend = make_call(shape, dtype), get("TORCH_SDPA")
    name = str(dtype).removeprefix("torch.")
    with vllm_layer.engine_layer("CPU_ATTN", call) as layer:
        peer_out = vllm_layer.forward(layer, call)
        theirs = peer_out.out.clone()
        batch = vllm_layer.as_batch(call)
        assert batch is not None
        metadata: Any = layer.builder.build(common_prefix_len=0, common_attn_metadata=vllm_layer.batch_metadata(call, batch))
        key, value, out = batch.key[batch.new], batch.value[batch.new], torch.empty_like(call.query)

        def peer() -> None:
            layer.module.impl.forward(layer.module, call.query, key, value, layer.cache, metadata, output=out)

        with torch.inference_mode():
            ours = backend.run(call, PROVIDER)
            difference = ((ours.out.double() - theirs.double()).norm() / theirs.double().norm()).item()
            if not difference <= LARGEST_DIFFERENCE[name]:
                return Row(shape.name, name, ours.kernel, peer_out.kernel, 0, 0, 0, 0, 0, 0, difference, note="WRONG")
            turned = replace(call, key_cache=call.key_cache.contiguous(), value_cache=call.value_cache.contiguous())
            runs: list[Callable[[], object]] = [
                lambda: backend.run(call, PROVIDER),
                peer,
                lambda: backend.run(turned, PROVIDER),
            ]
            for run in runs * 2:
                run()
            times = [tuple(seconds(run) for run in runs) for _ in range(pairs)]
    ratios = sorted(theirs_s / ours_s for ours_s, theirs_s, _ in times)
    quarter = statistics.quantiles(ratios, n=4)
    return Row(
        shape.name,
        name,
        ours.kernel,
        peer_out.kernel,
        statistics.median(t[0] for t in times) * 1e6,
        statistics.median(t[1] for t in times) * 1e6,
        statistics.median(ratios),
        quarter[0],
        quarter[2],
        pairs,
        difference,
        statistics.median(turned_s / ours_s for ours_s, _, turned_s in times),
    )


def main(directory: Path, pairs: int = 25) -> None:
    """Measure every shape on as many threads as torch uses, print, and write DIRECTORY/cpu.json after each.

    Raises:
        UsageError: the directory cannot be written.
        UnsupportedError: the CPU kernels are not compiled here.
    """
    import vllm

    document: dict[str, Any] = {
        "kind": "bench",
        "created": now(),
        "command": "attnkit bench cpu",
        "device": next(device.name for device in detect().devices if device.kind == "cpu"),
        "torch": torch.__version__,
        "vllm": vllm.__version__,
        "threads": torch.get_num_threads(),
        "load_average_before": os.getloadavg(),
        "rows": [],
    }
    check_writable(directory / "cpu.json")
    for dtype, shape in itertools.product((torch.float32, torch.bfloat16), SHAPES):
        row = measure(shape, dtype, pairs)
        document["rows"].append(asdict(row))
        document["load_average_after"] = os.getloadavg()
        write_atomically(directory / "cpu.json", json.dumps(document, indent=1) + "\n")
        print(
            f"{row.workload:24} {row.dtype:9} {row.ours_us:8.0f} us {row.peer_us:8.0f} us  {row.ratio:.2f} "
            f"({row.ratio_low:.2f}-{row.ratio_high:.2f}) tokens first {row.tokens_first:.2f} {row.note}",
            flush=True,
        )
