"""`attnkit bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from attnkit.bench import GROUPS
from attnkit.cli.choices import check_choice
from attnkit.errors import UsageError, require_packages


def bench(
    group: Annotated[
        list[str] | None,
        typer.Argument(help="Groups of workloads to run (default: all); cpu: our C++ kernels."),
    ] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Compare with every installed peer.")] = False,
    out: Annotated[Path, typer.Option("--out", help="Output directory for peers.json and roofline.png, or cpu.json.")] = Path(),
    only: Annotated[str, typer.Option("--only", help="Run only workloads whose name contains this.")] = "",
    implementation: Annotated[
        list[str] | None,
        typer.Option("--implementation", help="Run only implementations whose name contains this; repeatable."),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="Skip implementations whose name contains this; repeatable.")
    ] = None,
    limit_seconds: Annotated[
        float | None, typer.Option("--limit-seconds", help="Start no new workload after this many seconds.", min=1)
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Run only workloads up to this rank (0: one of each kind).", min=0)
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Data type of the inputs.")] = "bfloat16",
    submit: Annotated[
        Path | None, typer.Option("--submit", help="Write a submission report to this file (4 min on a Turing GPU).")
    ] = None,
) -> None:
    """Benchmark attention kernels, optionally against peers.

    The GPU's limits are measured first, then each workload; every result is checked before it is timed. cpu compares our C++
    kernels with vLLM's CPU_ATTN.
    """
    for name in group or ():
        check_choice("group", name)
    check_choice("dtype", dtype)
    if group == ["cpu"]:
        require_packages("attnkit bench cpu", "torch", "vllm")
        from attnkit.bench import cpu

        cpu.main(out)
        return
    if group and "cpu" in group:
        raise UsageError("cpu is a benchmark of its own and takes no other group: run `attnkit bench cpu`")
    require_packages("attnkit bench", "torch", "triton")
    if submit is not None:
        from attnkit.bench.submission import write

        write(submit)
        return
    from attnkit.bench import run as benchmark

    benchmark.require_gpu()
    benchmark.main(
        benchmark.Options(
            out=out,
            groups=GROUPS if not group or "all" in group else group,
            peers=peers,
            only=only,
            implementations=implementation or (),
            without=without or (),
            limit_seconds=limit_seconds,
            ranks=rank,
            dtype=dtype,
            command=" ".join(["attnkit", *("DIR" if word == str(out) else word for word in sys.argv[1:])]),
        )
    )
