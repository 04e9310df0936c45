"""A whole benchmark on the CPU, small: our kernels in Triton's interpreter beside plain torch and the composed operations.

Usage: TRITON_INTERPRET=1 python tiny_run.py DIR [NAME]; with NAME the process is killed where that workload's inputs are made.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from attnkit.bench import run, workloads
from attnkit.bench.peers import ON_CPU, OURS
from attnkit.bench.peers.composed import ComposedOurs
from attnkit.bench.work import ROTATE_BYTES, Work
from attnkit.bench.workloads import Shape
from attnkit.spec import Call

DECODE = Shape("decode", (1, 1), (40, 40), num_heads=8, num_kv_heads=2, head_dim=32)
PREFILL = Shape("prefill", (20, 20), (20, 20), num_heads=8, num_kv_heads=2, head_dim=32)
CHUNK = Shape("paged", (8, 8), (40, 40), num_heads=8, num_kv_heads=2, head_dim=32)
LONG = Shape("dual_chunk", (4,), (100,), num_heads=8, num_kv_heads=2, head_dim=32)
PAIRS = Shape("differential", (2, 2), (40, 30), num_heads=8, num_kv_heads=4, head_dim=32)

MAKERS: dict[str, Callable[[torch.dtype, str], Call]] = {
    "decode": lambda d, v: workloads.paged_call(DECODE, d, v),
    "prefill": lambda d, v: workloads.varlen_call(PREFILL, d, v),
    "paged": lambda d, v: workloads.paged_call(CHUNK, d, v),
    "fp8": lambda d, v: workloads.fp8_call(DECODE, d, v),
    "mla": lambda d, v: workloads.mla_call(2, 40, d, device=v, heads=16),
    "tree": lambda d, v: workloads.tree_call(2, 8, 32, d, v),
    "dual_chunk": lambda d, v: workloads.dual_chunk_call(LONG, 40, 8, d, v),
    "differential": lambda d, v: workloads.differential_call(PAIRS, d, v),
}


def works(killed_at: str = "") -> list[Work]:
    """One workload a group, without copies that rotate."""

    def make(name: str) -> Callable[[torch.dtype, str], Call]:
        def called(dtype: torch.dtype, device: str) -> Call:
            if name == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return MAKERS[name](dtype, device)

        return called

    return [Work(name, name, 1e6, ROTATE_BYTES, make(name)) for name in MAKERS]


if __name__ == "__main__":
    out, *killed_at = sys.argv[1:]
    options = run.Options(Path(out), device="cpu", dtype="float32", command="tiny_run.py")
    run.main(options, works(*killed_at), everyone=[*OURS, *ON_CPU, ComposedOurs()])
