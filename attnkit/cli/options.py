"""Options that several commands take, and how they print JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Root = Annotated[Path, typer.Option("--root", envvar="ATTNKIT_ROOT", help="Alternative root for /sys and /proc.")]
Node = Annotated[str | None, typer.Option("--node", envvar="ATTNKIT_NODE", help="Node type; default: detected.")]
Workload = Annotated[str | None, typer.Option("--workload", envvar="ATTNKIT_WORKLOAD", help="Workload profile.")]
Model = Annotated[
    str | None, typer.Option("--model", envvar="ATTNKIT_MODEL", help="A model's config.json or directory, or a preset.")
]
Explicit = Annotated[
    str | None,
    typer.Option("--backend", envvar="ATTNKIT_BACKEND", help="Use exactly this backend; fail instead of falling back."),
]
LevelOption = Annotated[
    str | None, typer.Option("--level", envvar="ATTNKIT_LEVEL", help="Self-test level; default: the profile's.")
]
Fault = Annotated[
    str | None,
    typer.Option(
        "--fault", envvar="ATTNKIT_FAULT", help="Debugging: inject this fault into the self-test (NAME@1: on device 1 only)."
    ),
]
SimulatedDevice = Annotated[
    str | None,
    typer.Option(
        "--simulated-device",
        envvar=["ATTNKIT_SIMULATED_DEVICE", "ATTNKIT_PLANTED_ANSWER"],
        help="Debugging: run no kernel, simulate a device that is right, wrong, crash or hang (wrong:BACKEND: for that backend "
        "only, wrong@1: on device 1 only). The verdict is then 'planted', never 'pass'.",
    ),
]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    from attnkit.jsonio import to_json

    typer.echo(to_json(value))
