"""`attnkit bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from attnkit.errors import require_packages, unknown_name


def bench(
    group: Annotated[
        list[str] | None,
        typer.Argument(help="decode, prefill, paged, mixed, mla, fp8, tree, dual_chunk, differential, all (default); or cpu."),
    ] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Beside ours, every peer that is installed.")] = False,
    out: Annotated[Path, typer.Option("--out", help="Directory for peers.json and roofline.png, or cpu.json.")] = Path(),
    only: Annotated[str, typer.Option("--only", help="Only workloads with this in their name.")] = "",
    implementation: Annotated[
        list[str] | None, typer.Option("--implementation", help="Only implementations with this in their name; repeatable.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="No implementation with this in its name; repeatable.")
    ] = None,
    limit_seconds: Annotated[
        float | None, typer.Option("--limit-seconds", help="Begin no new workload after this many seconds.", min=1)
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Only workloads up to this rank (0: one of everything).", min=0)
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="bfloat16 or float16.")] = "bfloat16",
    submit: Annotated[
        Path | None, typer.Option("--submit", help="Everything worth sending back, as one file; four minutes on a Turing card.")
    ] = None,
) -> None:
    """Our kernels on this GPU, with --peers beside every other implementation that is installed: the card's ceilings first,
    then each workload, every answer checked before it is timed. `cpu`: our C++ kernels beside vLLM's CPU_ATTN.
    """
    if group == ["cpu"]:
        require_packages("attnkit bench cpu", "torch", "vllm")
        from attnkit.bench import cpu

        cpu.main(out)
        return
    require_packages("attnkit bench", "torch", "triton")
    if submit is not None:
        from attnkit.bench.submission import write

        write(submit)
        return
    from attnkit.bench import run as benchmark
    from attnkit.bench.work import GROUPS

    groups = [name for name in group or ["all"] if name != "all"]
    for name in groups:
        if name not in GROUPS:
            raise unknown_name("benchmark", name, (*GROUPS, "all", "cpu"))
    if dtype not in ("bfloat16", "float16"):
        raise unknown_name("dtype", dtype, ("bfloat16", "float16"))
    benchmark.require_gpu()
    benchmark.main(
        benchmark.Options(
            out=out,
            groups=groups or GROUPS,
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
