"""Turing's code on a newer GPU: `python -m attnkit.bench.turing --out DIR`.

Every kernel here is compiled for sm_75 and its sm_75 PTX is translated by this GPU's driver, so the arithmetic is that of
Turing's matrix instructions; the speed is this GPU's and no Turing GPU's. On a real Turing GPU the same program measures it.

1. dot products of every form that the hook rewrites, against exact results;
2. the self-tests (quick and standard) of every backend whose kernels go through the hook, with the kernel names they report;
3. throughput of TURING_ATTN compared with the same kernel with stock Triton's sm_75 code (in tiles chosen for that) and with
   torch's efficient kernel (which has code for this GPU, and that cannot be taken away from it);
4. throughput of the other operations compared with stock Triton's code of the same kernel.

Writes DIR/hook.json. --checks stops after the quick self-test (for compute-sanitizer). --sweep times other tile sizes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton

from attnkit.backends.base import Backend
from attnkit.backends.registry import all_backends
from attnkit.backends.torch_device import current_device
from attnkit.backends.triton_common import code_of, own
from attnkit.bench import work, workloads
from attnkit.bench.judging import Judge
from attnkit.bench.timing import graph_microseconds
from attnkit.bench.turing_dots import check_dots
from attnkit.bench.work import Work
from attnkit.bench.workloads import Shape
from attnkit.hardware.device import Device
from attnkit.kernels.triton import differential
from attnkit.kernels.triton.dual_chunk import plan as dual_chunk
from attnkit.kernels.triton.mla import plan as mla_plan
from attnkit.kernels.triton.paged import plan as paged_plan
from attnkit.kernels.triton.tile_sizes import Tile
from attnkit.kernels.turing import hook
from attnkit.kernels.turing.emulate import TARGET_DEVICE, emulate
from attnkit.select.evidence import TURING_NATIVE
from attnkit.selftest import run_selftest
from attnkit.selftest.results import Level
from attnkit.spec import Call, DifferentialAttention, DualChunkAttention, MlaDecode, TreeAttention

PREFILLS = tuple(workloads.prefill(2, 2048, d) for d in (64, 128, 256))
DECODES = (
    Shape("decode B8 ctx4096 D64", (1,) * 8, (4096,) * 8, head_dim=64),
    Shape("decode B8 ctx4096 D128", (1,) * 8, (4096,) * 8),
    Shape("decode B64 ctx4096 D128", (1,) * 64, (4096,) * 64),
)
MIXED = Shape("mixed 2x512@2048+14dec@2048", (512,) * 2 + (1,) * 14, (2560,) * 2 + (2048,) * 14)

OTHERS = {
    "tree B8 64@4096": True,
    "mla B64 ctx4096": False,
    "dual chunk 1x1 len131072": True,
    "differential 16x1 len8192": True,
    "differential 4x2048 len2048": True,
}
"""Of work.py, and whether the kernel has tiles for stock Triton on sm_75."""

HOOKED = "TURING_ATTN"
"""Rows of the code with tensor cores, whichever backend runs it."""
STOCK = "stock Triton for sm_75"

SWEEP = {
    64: (Tile(64, 64, 4, 1), Tile(64, 64, 4, 2), Tile(128, 64, 8, 1), Tile(128, 64, 8, 2), Tile(64, 32, 4, 2)),
    128: (Tile(128, 32, 8, 1), Tile(128, 32, 8, 2), Tile(64, 32, 4, 1), Tile(64, 64, 8, 1), Tile(32, 64, 4, 1)),
    256: (Tile(32, 32, 4, 1), Tile(64, 32, 8, 1), Tile(64, 16, 8, 1)),
}
"""num_stages 2 is double buffering through registers."""

DECODE_SWEEP = (Tile(16, 64, 4, 1), Tile(16, 64, 4, 2), Tile(16, 32, 4, 1), Tile(16, 32, 4, 2), Tile(16, 32, 2, 2))


def on_sm75(*, stock: bool = False) -> AbstractContextManager[Device]:
    """The sm_75 device: this card where it is one, else emulated on it."""
    device = current_device("cuda")
    if device.arch == "sm_75" and not stock:
        hook.enable()
        return nullcontext(device)
    return emulate(stock=stock)


def hooked() -> list[Backend]:
    """The backends whose kernels are compiled through Turing's hook, TURING_ATTN first."""
    ours = [b for b in all_backends() if code_of(b.name, "sm_75") == "sm_75" and own(b, TARGET_DEVICE) is not None]
    return sorted(ours, key=lambda backend: backend.name != "TURING_ATTN")


def selftests(levels: tuple[Level, ...]) -> list[dict[str, Any]]:
    """Verdicts on sm_75 code."""
    found = []
    for level, backend in itertools.product(levels, hooked()):
        with on_sm75() as device:
            verdict = run_selftest(backend, device, None, level=level)
        kernels = sorted({c.kernel for c in verdict.cases if c.kernel})
        print(f"{backend.name} {level}: {verdict.outcome}, {len(verdict.cases)} cases, {verdict.seconds:.1f} s", flush=True)
        print(f"  kernels: {', '.join(kernels)}")
        for case in verdict.cases:
            if case.outcome != "pass":
                print(f"  {case.outcome}: {case.case}: {case.reason}")
        found.append({**asdict(verdict), "kernels": kernels})
    return found


def ours(shape: Shape, *, stock: bool = False, **tiles: Any) -> dict[str, Any]:
    """Time our kernel on sm_75 code, once its result was held against float64."""
    call = workloads.paged_call(shape, torch.float16)
    name = STOCK if stock else HOOKED
    with on_sm75(stock=stock):

        def run() -> str:
            return paged_plan.paged(call, arch="sm_75-scalar" if stock else "sm_75", **tiles)[2]

        kernel = run()
        assert call.out is not None
        error = workloads.relative_error(call, call.out)
        micros, spread = graph_microseconds([run], replays=3 if stock else 11, warmup=1)
    return row(shape, name, kernel, micros, spread, error, tiles)


def launch(call: Call, arch: str) -> str:
    """Run one of the other operations for `arch`; the kernel's name."""
    if isinstance(call, TreeAttention):
        return paged_plan.paged(call.paged, tree_mask=call.tree_mask, arch=arch)[2]
    if isinstance(call, MlaDecode):
        return mla_plan.run(call, arch=arch)[2]
    if isinstance(call, DualChunkAttention):
        return dual_chunk.run(call, arch=arch)[2]
    if isinstance(call, DifferentialAttention):
        return differential.run(call, arch=arch)[1]
    raise TypeError(f"no kernel of its own computes {call.op}")


def other(item: Work, *, stock: bool = False) -> dict[str, Any]:
    """Time one of the other operations on sm_75 code, once its result was held against the reference."""
    call = item.make(torch.float16, "cuda")
    judge, out = Judge(call), call.batch.out
    assert out is not None
    out.fill_(math.nan)
    with on_sm75(stock=stock):

        def run() -> str:
            return launch(call, "sm_75-scalar" if stock else "sm_75")

        kernel = run()
        judgement = judge(out)
        if judgement.reason:
            raise RuntimeError(judgement.reason)
        micros, spread = graph_microseconds([run], replays=3 if stock else 11, warmup=1)
    return row(item, STOCK if stock else HOOKED, kernel, micros, spread, judgement.error, {})


def efficient(shape: Shape) -> dict[str, Any]:
    """torch's efficient (CUTLASS) kernel on contiguous tensors of the same size, with this card's own code."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    batch, new, length = len(shape.seq_lens), shape.query_lens[0], shape.seq_lens[0]
    query = torch.randn(batch, shape.num_heads, new, shape.head_dim, dtype=torch.float16, device="cuda")
    key = torch.randn(batch, shape.num_heads, length, shape.head_dim, dtype=torch.float16, device="cuda")
    value = torch.randn_like(key)

    def run() -> None:
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=new > 1)

    micros, spread = graph_microseconds([run], replays=11)
    return row(shape, "torch efficient, this card's own code", "efficient", micros, spread, None, {})


def row(
    shape: Shape | Work, name: str, kernel: str, micros: float, spread: float, error: float | None, tiles: dict[str, Any]
) -> dict[str, Any]:
    """One line of the table, printed as it comes."""
    result = {
        "workload": shape.name,
        "implementation": name,
        "kernel": kernel,
        "tiles": {k: (asdict(v) if isinstance(v, Tile) else v) for k, v in tiles.items()},
        "micros": micros,
        "spread": spread,
        "tflops": shape.flops / micros / 1e6,
        "gbytes_per_s": (shape.cache_bytes if isinstance(shape, Shape) else shape.nbytes) / micros / 1e3,
        "relative_error": error,
    }
    wrong = "-" if error is None else f"{error:.1e}"
    print(
        f"{shape.name:<28} {name:<38} {micros:>10.1f} us {result['tflops']:>8.2f} TFLOP/s "
        f"{result['gbytes_per_s']:>8.1f} GB/s  error {wrong}  {list(tiles.values()) or ''}"
    )
    return result


@contextmanager
def noted(rows: list[dict[str, Any]], workload: str, name: str) -> Iterator[None]:
    """A measurement that cannot be made becomes a row that says why, and the rest goes on."""
    from triton.runtime.errors import OutOfResources

    from attnkit.errors import AttnkitError

    try:
        yield
    except (AttnkitError, OutOfResources, RuntimeError) as error:
        rows.append({"workload": workload, "implementation": name, "not_run": f"{type(error).__name__}: {error}"})
        print(f"{workload:<28} {name:<38} not run: {str(error).splitlines()[0]}")


def throughput(sweep: bool, until: float) -> list[dict[str, Any]]:
    """All timed rows; stops with a row that says so when the clock passes `until`."""
    rows: list[dict[str, Any]] = []
    plans: list[tuple[Shape | Work, str, Callable[[], dict[str, Any]]]] = []
    for shape in (*PREFILLS, MIXED, *DECODES):
        plans.append((shape, HOOKED, lambda s=shape: ours(s)))  # type: ignore[misc]
        plans.append((shape, STOCK, lambda s=shape: ours(s, stock=True)))  # type: ignore[misc]
        if shape is not MIXED:
            plans.append((shape, "torch efficient", lambda s=shape: efficient(s)))  # type: ignore[misc]
    for item in (one for one in work.WORKS if one.name in OTHERS):
        plans.append((item, HOOKED, lambda i=item: other(i)))  # type: ignore[misc]
        if OTHERS[item.name]:
            plans.append((item, STOCK, lambda i=item: other(i, stock=True)))  # type: ignore[misc]
    if sweep:
        for shape in PREFILLS:
            for tile in SWEEP[shape.head_dim]:
                plans.append((shape, f"{tile}", lambda s=shape, t=tile: ours(s, prefill_tile=t)))  # type: ignore[misc]
        for shape in DECODES[:2]:
            for tile in DECODE_SWEEP:
                plans.append((shape, f"{tile}", lambda s=shape, t=tile: ours(s, decode_tile=t)))  # type: ignore[misc]
    for timed, name, plan in plans:
        if time.monotonic() > until:
            rows.append({"workload": timed.name, "implementation": name, "not_run": "out of time"})
            continue
        with noted(rows, timed.name, name):
            rows.append(plan())
    return rows


def speedups(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times faster the code with tensor cores is than each other implementation, by workload."""
    timed = {(r["workload"], r["implementation"]): r["micros"] for r in rows if "micros" in r and not r["tiles"]}
    found: dict[str, dict[str, float]] = {}
    for (workload, name), micros in timed.items():
        mine = timed.get((workload, HOOKED))
        if mine is not None and name != HOOKED:
            found.setdefault(workload, {})[name] = micros / mine
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything; 1 where a check failed."""
    parser = argparse.ArgumentParser(description="Turing's code, checked and timed on this GPU.")
    parser.add_argument("--out", type=Path, default=Path(), help="directory for hook.json")
    parser.add_argument("--checks", action="store_true", help="only the dot products and the quick self-test")
    parser.add_argument("--sweep", action="store_true", help="time other tile sizes too")
    parser.add_argument("--seconds", type=float, default=220.0, help="start no new measurement after this long")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.exit(3, "attnkit.bench.turing needs an NVIDIA GPU; torch sees none\n")
    native = current_device("cuda").arch == "sm_75"
    started = time.monotonic()
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}")
    with on_sm75():
        dots = check_dots()
    tests = selftests(("quick",) if args.checks else ("quick", "standard"))
    rows = [] if args.checks else throughput(args.sweep, started + args.seconds)
    result = {
        "kind": "turing",
        "created": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": "python -m attnkit.bench.turing" + (" --checks" if args.checks else "") + (" --sweep" if args.sweep else ""),
        "device": torch.cuda.get_device_name(),
        "code": TURING_NATIVE if native else "sm_75 PTX, translated by the driver of this card",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "seconds": time.monotonic() - started,
        "dots": dots,
        "selftest": tests,
        "throughput": rows,
        "speedup_of_turing_attn": speedups(rows),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "hook.json"
    path.write_text(json.dumps(result, indent=1, default=str) + "\n")
    for workload, over in result["speedup_of_turing_attn"].items():
        print(f"{workload:<28} " + ", ".join(f"{times:.1f} x {name}" for name, times in over.items()))
    passed = all(d["ok"] for d in dots) and all(t["outcome"] == "pass" for t in tests)
    print(f"{'pass' if passed else 'FAIL'}; wrote {path} after {result['seconds']:.0f} s")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
