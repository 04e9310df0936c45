# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""What the GPU itself can do, measured in the same process as the kernels: the roof that a row is held against.

read: a reduction that only reads 4 GiB (the better of a Triton kernel's and torch's); copy: bytes read and written;
matmul: bfloat16, 8192 cubed; launch: the smallest kernel there is, in a graph, which no row can be faster than.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from attnkit.bench.timing import graph_microseconds, matmul_flops, read_bandwidth


@dataclass(frozen=True)
class Ceilings:
    """GB/s read, GB/s copied (read + written), TFLOP/s of a bfloat16 product, microseconds of an empty launch."""

    read_gbytes: float
    copy_gbytes: float
    matmul_tflops: float
    launch_micros: float


@triton.jit
def read_all(source, sums, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    """Each program reads ROUNDS * BLOCK int32 in one run and keeps their sum, so that no load is dropped."""
    at = tl.program_id(0).to(tl.int64) * ROUNDS * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int32)
    for i in range(ROUNDS):
        total += tl.load(source + at + i * BLOCK)
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))


def triton_read_bandwidth(nbytes: int = 1 << 32) -> float:
    """Bytes a second that `read_all` reads, the best of a few shapes."""
    data = torch.ones(nbytes // 4, dtype=torch.int32, device="cuda")
    best = 0.0
    for block, rounds in ((4096, 32), (16384, 8), (8192, 8)):
        programs = data.numel() // (block * rounds)
        sums = torch.empty(programs, dtype=torch.int32, device="cuda")

        def run(block: int = block, rounds: int = rounds, programs: int = programs, sums: torch.Tensor = sums) -> None:
            read_all[(programs,)](data, sums, rounds, block, num_warps=8)

        micros, _ = graph_microseconds([run], replays=7)
        best = max(best, nbytes / (micros * 1e-6))
    return best


def copy_bandwidth(nbytes: int = 1 << 32) -> float:
    """Bytes a second, read and written, of a device-to-device copy."""
    source = torch.ones(nbytes // 4, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    micros, _ = graph_microseconds([lambda: target.copy_(source)], replays=7)
    return 2 * nbytes / (micros * 1e-6)


def launch_floor() -> float:
    """Microseconds of the smallest copy, one of 64 in a graph."""
    source = torch.ones(32, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    micros, _ = graph_microseconds([lambda: target.copy_(source)] * 64)
    return micros


def measure() -> Ceilings:
    """All four, and the memory given back."""
    read = max(triton_read_bandwidth(), read_bandwidth())
    found = Ceilings(read / 1e9, copy_bandwidth() / 1e9, matmul_flops() / 1e12, launch_floor())
    torch.cuda.empty_cache()
    return found
