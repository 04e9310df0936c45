"""Options that several commands take, and how they print JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Root = Annotated[Path, typer.Option("--root", envvar="ATTNKIT_ROOT", help="Another / to read sys and proc from.")]
Node = Annotated[str | None, typer.Option("--node", envvar="ATTNKIT_NODE", help="Node type; default: detected.")]
Workload = Annotated[str | None, typer.Option("--workload", envvar="ATTNKIT_WORKLOAD", help="Name of a workload profile.")]
Model = Annotated[
    str | None, typer.Option("--model", envvar="ATTNKIT_MODEL", help="A model's config.json or directory, or a preset.")
]
Explicit = Annotated[
    str | None, typer.Option("--backend", envvar="ATTNKIT_BACKEND", help="This backend or none; it never falls back.")
]
LevelOption = Annotated[
    str | None, typer.Option("--level", envvar="ATTNKIT_LEVEL", help="quick, standard or extended; default: the profile's.")
]
Fault = Annotated[
    str | None,
    typer.Option(
        "--fault", envvar="ATTNKIT_FAULT", help="Debug switch: plant this fault in the self-test, to rehearse a failing node."
    ),
]
Planted = Annotated[
    str | None,
    typer.Option(
        "--planted-answer",
        envvar="ATTNKIT_PLANTED_ANSWER",
        help="Debug switch: run no kernel, take this for the device's answer (right, wrong, crash, hang; or wrong:BACKEND). "
        "The verdict is then 'planted', never 'pass'.",
    ),
]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    from attnkit.jsonio import to_json

    typer.echo(to_json(value))
