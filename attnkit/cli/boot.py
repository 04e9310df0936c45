"""`attnkit boot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnkit.cli.options import Explicit, Fault, LevelOption, Model, Node, Root, SimulatedDevice, Workload


def boot(
    command: Annotated[
        list[str] | None, typer.Argument(help="Command that starts the engine, after --.", show_default=False)
    ] = None,
    node: Node = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", envvar="ATTNKIT_REPORT", help="Boot report file; default: /run/attnkit/report.json."),
    ] = None,
    ready: Annotated[
        Path | None,
        typer.Option("--ready", envvar="ATTNKIT_READY", help="Readiness file; default: /run/attnkit/ready.json."),
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option("--metrics", envvar="ATTNKIT_METRICS", help="Prometheus metrics file; default: next to the report."),
    ] = None,
    workload: Workload = None,
    backend: Explicit = None,
    model: Model = None,
    level: LevelOption = None,
    fault: Fault = None,
    simulated_device: SimulatedDevice = None,
    root: Root = Path("/"),
    health_url: Annotated[
        str | None,
        typer.Option("--health-url", envvar="ATTNKIT_HEALTH_URL", help="Engine's health endpoint; default: vllm serve's."),
    ] = None,
    health_timeout: Annotated[
        float,
        typer.Option(
            "--health-timeout", envvar="ATTNKIT_HEALTH_TIMEOUT", help="Seconds to wait for the engine to become healthy."
        ),
    ] = 600.0,
    selftest_timeout: Annotated[
        float,
        typer.Option(
            "--selftest-timeout",
            envvar="ATTNKIT_SELFTEST_TIMEOUT",
            min=1.0,
            help="Seconds allowed for each backend's self-test on each device.",
        ),
    ] = 900.0,
    engine_check: Annotated[
        bool,
        typer.Option(
            "--engine-check/--no-engine-check",
            envvar="ATTNKIT_ENGINE_CHECK",
            help="Validate vLLM's own implementation and check its log; disable only for a vLLM version the validator does not "
            "support.",
        ),
    ] = True,
) -> None:
    """Validate a backend, then start and supervise the engine."""
    from attnkit.boot.options import BootOptions
    from attnkit.boot.outputs import default_directory
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
        simulated_device=simulated_device,
        root=root,
        health_url=health_url,
        health_timeout=health_timeout,
        selftest_timeout=selftest_timeout,
        engine_check=engine_check,
    )
    raise typer.Exit(run_boot(options))
