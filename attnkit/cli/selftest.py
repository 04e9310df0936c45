"""`attnkit selftest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnkit.cli.options import Fault, LevelOption, Model, Node, Root


def selftest(
    backend: Annotated[str, typer.Option("--backend", help="A name, or all; vllm:NAME is vLLM's own.")] = "all",
    level: LevelOption = None,
    prove: Annotated[bool, typer.Option("--prove", help="Plant every fault and show which case catches it.")] = False,
    node: Node = None,
    model: Model = None,
    fault: Fault = None,
    root: Root = Path("/"),
    json: Annotated[Path | None, typer.Option("--json", help="Write the verdicts to this file; - for stdout.")] = None,
) -> None:
    """Check backends on this very card against the float64 reference."""
    from attnkit.cli import tables
    from attnkit.isolation.check import CheckOptions, run_checks

    raise typer.Exit(
        run_checks(
            CheckOptions(
                backend=backend, level=level, prove=prove, node=node, model=model, fault=fault, root=root, json_file=json
            ),
            tables.show_verdicts,
            tables.show_proofs,
        )
    )
