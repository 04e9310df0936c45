"""`attnkit selftest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnkit.cli.options import Fault, LevelOption, Model, Node, Root


def selftest(
    backend: Annotated[str, typer.Option("--backend", help="Backend name, or all; vllm:NAME tests vLLM's own.")] = "all",
    level: LevelOption = None,
    inject_faults: Annotated[
        bool, typer.Option("--inject-faults", help="Inject each known fault and show which case detects it.")
    ] = False,
    node: Node = None,
    model: Model = None,
    fault: Fault = None,
    root: Root = Path("/"),
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, help="Draw the case that is new in each run as in an earlier run.", show_default=False),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write verdicts as JSON to this file; - for stdout.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show passed cases too.")] = False,
) -> None:
    """Validate backends against a float64 reference."""
    from attnkit.cli import tables
    from attnkit.cli.progress import Progress
    from attnkit.cli.report_tables import show_verdicts
    from attnkit.isolation.check import CheckOptions, run_checks
    from attnkit.jsonio import check_writable

    if json is not None and str(json) != "-":
        check_writable(json)  # before the minutes that the tests take

    progress = Progress()
    raise typer.Exit(
        run_checks(
            CheckOptions(
                backend=backend,
                level=level,
                inject_faults=inject_faults,
                node=node,
                model=model,
                fault=fault,
                root=root,
                json_file=json,
                seed=seed,
            ),
            lambda verdicts: progress.around(lambda: show_verdicts(verdicts, everything=everything)),
            lambda name, results: progress.around(lambda: tables.show_fault_results(name, results)),
            progress,
        )
    )
