"""`attnkit census`: what vLLM would build for a command."""

from __future__ import annotations

from typing import Annotated

import typer

from attnkit.cli.options import Json, print_json
from attnkit.errors import UsageError


def census(
    command: Annotated[list[str] | None, typer.Argument(help="Command that starts vLLM, after --.", show_default=False)] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds vLLM may take to build the model.")] = 300.0,
    json: Json = False,
) -> None:
    """Show which attention layers vLLM builds for a command."""
    from attnkit.engines.vllm.census import take
    from attnkit.engines.vllm.command import recognise, unseen

    words = tuple(command or ())
    found = recognise(words)
    if found is None:
        raise UsageError(unseen(words) or "no command: give vLLM's after --, as in `attnkit census -- vllm serve MODEL`")
    taken = take(found.engine_options, environment=None, timeout=timeout)
    if json:
        print_json(taken)
    else:
        from attnkit.cli import tables

        tables.show_census(taken)
