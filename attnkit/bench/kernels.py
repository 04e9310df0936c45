"""Our Triton kernels beside torch's FlashAttention on the same work: `python -m attnkit.bench.kernels --out DIR`.

Every timed configuration is checked on sampled rows against float64 in the same process before its time counts. Writes
DIR/kernels.json and prints tables; needs one CUDA or ROCm GPU. --sweep times other tile sizes than those of configs.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnkit.bench import workloads
from attnkit.bench.timing import graph_microseconds, matmul_flops, read_bandwidth
from attnkit.bench.workloads import Shape
from attnkit.kernels.triton import attention, mla_decode
from attnkit.kernels.triton.configs import Tile
from attnkit.spec import MlaDecode, PagedAttention

ROTATE_BYTES = 200 << 20
"""Inputs rotate over at least this much memory, several times an L2 cache."""

GROUPS = ("prefill", "decode", "mixed", "mla")

LARGEST_ERROR = 8e-3
"""Relative error (norms) from which a configuration is reported as wrong and not timed; bfloat16 rounding alone is 2e-3."""


@dataclass(frozen=True)
class Row:
    """One measurement: microseconds a call, useful TFLOP/s, GB/s of cache read once, relative error against float64."""

    workload: str
    implementation: str
    kernel: str
    micros: float
    spread: float
    tflops: float
    gbytes: float
    error: float | None
    note: str = ""


def measure(
    workload: str,
    implementation: str,
    run: Sequence[Callable[[], tuple[Tensor, str]]],
    check: Callable[[Tensor], float] | None,
    flops: float,
    cache_bytes: int,
) -> Row:
    """Check the first of `run`, then time all of them; a failure is a row with a note, so that the rest still runs."""
    try:
        out, kernel = run[0]()
        error = check(out) if check else None
        if error is not None and not error <= LARGEST_ERROR:
            return Row(workload, implementation, kernel, 0.0, 0.0, 0.0, 0.0, error, "WRONG")
        micros, spread = graph_microseconds(run)
    except Exception as failure:  # a tile that does not fit is a result of a sweep
        return Row(workload, implementation, "", 0.0, 0.0, 0.0, 0.0, None, f"{type(failure).__name__}: {str(failure)[:120]}")
    return Row(workload, implementation, kernel, micros, spread, flops / micros / 1e6, cache_bytes / micros / 1e3, error)


def copies(nbytes: int) -> int:
    """How many sets of inputs of `nbytes` rotate."""
    return max(1, min(32, -(-ROTATE_BYTES // max(1, nbytes))))


def paged_rows(shape: Shape, dtype: torch.dtype, tiles: Sequence[tuple[str, dict[str, Any]]]) -> list[Row]:
    """Our kernels on `shape` with each of the named overrides."""
    calls = [workloads.paged_call(shape, dtype) for _ in range(copies(shape.cache_bytes))]

    def runner(call: PagedAttention, options: dict[str, Any]) -> Callable[[], tuple[Tensor, str]]:
        def run() -> tuple[Tensor, str]:
            out, _, kernel = attention.paged(call, **options)
            return out, kernel

        return run

    return [
        measure(
            shape.name,
            f"attnkit {name}".strip(),
            [runner(call, options) for call in calls],
            lambda out: workloads.relative_error(calls[0], out),
            shape.flops,
            shape.cache_bytes,
        )
        for name, options in tiles
    ]


def sdpa_row(shape: Shape, dtype: torch.dtype) -> Row:
    """torch's FlashAttention on contiguous keys and values of the same size, for uniform batches."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    batch, new, length = len(shape.seq_lens), shape.query_lens[0], shape.seq_lens[0]

    def runner() -> Callable[[], tuple[Tensor, str]]:
        q = torch.randn(batch, shape.num_heads, new, shape.head_dim, dtype=dtype, device="cuda")
        k = torch.randn(batch, shape.num_kv_heads, length, shape.head_dim, dtype=dtype, device="cuda")
        v = torch.randn_like(k)

        def run() -> tuple[Tensor, str]:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=new > 1, enable_gqa=True)
            return out, "flash"

        return run

    runs = [runner() for _ in range(copies(shape.cache_bytes))]
    return measure(shape.name, "torch SDPA flash, contiguous", runs, None, shape.flops, shape.cache_bytes)


def mla_rows(batch: int, context: int, dtype: torch.dtype, tiles: Sequence[tuple[str, dict[str, Any]]]) -> list[Row]:
    """Our MLA decode."""
    nbytes = batch * context * 576 * 2
    flops = 2.0 * batch * 128 * context * (576 + 512)
    calls = [workloads.mla_call(batch, context, dtype) for _ in range(copies(nbytes))]

    def runner(call: MlaDecode, options: dict[str, Any]) -> Callable[[], tuple[Tensor, str]]:
        def run() -> tuple[Tensor, str]:
            out, _, kernel = mla_decode.run(call, **options)
            return out, kernel

        return run

    return [
        measure(
            f"mla B{batch} ctx{context}",
            f"attnkit {name}".strip(),
            [runner(call, options) for call in calls],
            lambda out: workloads.relative_error(calls[0], out),
            flops,
            nbytes,
        )
        for name, options in tiles
    ]


PREFILL_SWEEP = (
    Tile(128, 128, 8, 2),
    Tile(128, 64, 8, 2),
    Tile(128, 64, 8, 3),
    Tile(128, 32, 8, 4),
    Tile(64, 64, 4, 2),
    Tile(64, 64, 4, 3),
    Tile(64, 128, 4, 2),
    Tile(64, 32, 4, 3),
)
DECODE_SWEEP = (
    Tile(16, 64, 4, 2),
    Tile(16, 64, 4, 3),
    Tile(16, 32, 4, 3),
    Tile(16, 32, 4, 4),
    Tile(16, 128, 4, 2),
    Tile(16, 128, 8, 3),
    Tile(16, 32, 2, 4),
)
SPLIT_SWEEP = (1, 2, 4, 8, 16, 32, 64)
MLA_SWEEP = (
    Tile(64, 64, 8, 2),
    Tile(64, 32, 8, 2),
    Tile(64, 32, 8, 3),
    Tile(64, 64, 4, 2),
    Tile(32, 64, 4, 2),
    Tile(16, 64, 4, 2),
)


def named(option: str, tiles: Sequence[Tile]) -> list[tuple[str, dict[str, Any]]]:
    """Each tile as (its name, keyword arguments)."""
    return [(f"{t.block_m}x{t.block_n} w{t.num_warps} s{t.num_stages}", {option: t}) for t in tiles]


def run_all(what: Sequence[str], dtype: torch.dtype, sweep: bool, show: Callable[[Row], None]) -> list[Row]:
    """Every measurement asked for, shown as it comes."""
    rows: list[Row] = []

    def add(found: list[Row]) -> None:
        rows.extend(found)
        for row in found:
            show(row)
        torch.cuda.empty_cache()

    plain: list[tuple[str, dict[str, Any]]] = [("", {})]
    if "prefill" in what:
        for shape in workloads.PREFILLS:
            add([sdpa_row(shape, dtype)])
            add(paged_rows(shape, dtype, plain + (named("prefill_tile", PREFILL_SWEEP) if sweep else [])))
    if "decode" in what:
        for shape in workloads.DECODES:
            more = named("decode_tile", DECODE_SWEEP) if sweep else []
            if sweep and len(shape.seq_lens) <= 64:
                more += [(f"splits {n}", {"splits": n}) for n in SPLIT_SWEEP]
            add([sdpa_row(shape, dtype)])
            add(paged_rows(shape, dtype, plain + more))
    if "mixed" in what:
        add(paged_rows(workloads.MIXED, dtype, plain + (named("prefill_tile", PREFILL_SWEEP[:6]) if sweep else [])))
    if "mla" in what:
        for batch, context in workloads.MLA:
            add(mla_rows(batch, context, dtype, plain + (named("tile", MLA_SWEEP) if sweep else [])))
    return rows


def show_row(row: Row) -> None:
    """One line of the table."""
    error = "" if row.error is None else f"{row.error:.1e}"
    print(
        f"{row.workload:30} {row.implementation:30} {row.micros:10.1f} us {row.tflops:7.1f} TFLOP/s {row.gbytes:7.0f} GB/s "
        f"+-{row.spread:4.0%} {error:8} {row.kernel} {row.note}",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Parse arguments (None: the process's), measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="directory for kernels.json")
    parser.add_argument("--only", nargs="*", choices=GROUPS, default=list(GROUPS), help="which groups to run")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--sweep", action="store_true", help="time other tile sizes too")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.exit(3, "attnkit.bench.kernels needs a CUDA or ROCm GPU; torch sees none\n")
    torch.manual_seed(0)
    limits = {"read_gbytes": read_bandwidth() / 1e9, "matmul_tflops": matmul_flops() / 1e12}
    torch.cuda.empty_cache()
    gbytes, tflops = limits["read_gbytes"], limits["matmul_tflops"]
    print(f"{torch.cuda.get_device_name()}: reads {gbytes:.0f} GB/s, multiplies {tflops:.0f} TFLOP/s", flush=True)
    rows = run_all(args.only, getattr(torch, args.dtype), args.sweep, show_row)
    args.out.mkdir(parents=True, exist_ok=True)
    import triton

    document = {
        "kind": "bench",
        "created": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "dtype": args.dtype,
        "limits": limits,
        "rows": [asdict(row) for row in rows],
    }
    (args.out / "kernels.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
