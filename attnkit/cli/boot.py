"""`attnkit boot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnkit.cli.options import Explicit, Fault, LevelOption, Model, Node, Planted, Root, Workload


def boot(
    command: Annotated[list[str] | None, typer.Argument(help="The engine's command, after --.", show_default=False)] = None,
    node: Node = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", envvar="ATTNKIT_REPORT", help="The boot report; default: /run/attnkit/report.json."),
    ] = None,
    ready: Annotated[
        Path | None,
        typer.Option("--ready", envvar="ATTNKIT_READY", help="The readiness file; default: /run/attnkit/ready.json."),
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option("--metrics", envvar="ATTNKIT_METRICS", help="Prometheus text; default: beside the report.")
    ] = None,
    workload: Workload = None,
    backend: Explicit = None,
    model: Model = None,
    level: LevelOption = None,
    fault: Fault = None,
    planted_answer: Planted = None,
    root: Root = Path("/"),
    health_url: Annotated[
        str | None,
        typer.Option("--health-url", envvar="ATTNKIT_HEALTH_URL", help="The engine's health endpoint; known for vllm serve."),
    ] = None,
    health_timeout: Annotated[
        float, typer.Option("--health-timeout", envvar="ATTNKIT_HEALTH_TIMEOUT", help="Seconds the engine may take.")
    ] = 600.0,
    selftest_timeout: Annotated[
        float,
        typer.Option(
            "--selftest-timeout", envvar="ATTNKIT_SELFTEST_TIMEOUT", min=1.0, help="Seconds one candidate's self-test may take."
        ),
    ] = 900.0,
    engine_check: Annotated[
        bool,
        typer.Option(
            "--engine-check/--no-engine-check",
            envvar="ATTNKIT_ENGINE_CHECK",
            help="Prove vLLM's own implementation and hold its log against it; off only for a vLLM too new to be driven.",
        ),
    ] = True,
) -> None:
    """Detect, select, prove, report, then start and watch the engine: the images' entrypoint."""
    from attnkit.boot.outputs import default_directory
    from attnkit.boot.run import BootOptions
    from attnkit.boot.run import boot as run_boot

    report = report or default_directory() / "report.json"
    options = BootOptions(
        command=tuple(command or ()),
        node=node,
        report=report,
        ready=ready or default_directory() / "ready.json",
        metrics=metrics or report.with_suffix(".prom"),
        workload=workload,
        backend=backend,
        model=model,
        level=level,
        fault=fault,
        planted_answer=planted_answer,
        root=root,
        health_url=health_url,
        health_timeout=health_timeout,
        selftest_timeout=selftest_timeout,
        engine_check=engine_check,
    )
    raise typer.Exit(run_boot(options))
