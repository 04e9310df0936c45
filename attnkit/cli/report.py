"""`attnkit report` and `attnkit tiny-model`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnkit.jsonio import write_atomically


def report(
    file: Annotated[Path, typer.Argument(help="Boot report (JSON).")],
    html: Annotated[Path | None, typer.Option("--html", help="Write a self-contained HTML page to this file.")] = None,
) -> None:
    """Show a boot report, or convert it to HTML."""
    from attnkit.boot.report import load_report

    loaded = load_report(file)
    if html is None:
        from attnkit.cli import tables

        tables.show_report(loaded)
        return
    from attnkit.cli.report_page import render_html

    write_atomically(html, render_html(loaded))
    typer.echo(f"wrote {html}")


def tiny_model(
    directory: Annotated[Path, typer.Argument(help="Directory to create it in.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed for the random weights.")] = 0,
) -> None:
    """Create a tiny Llama model with random weights, for tests."""
    from attnkit.engines.tiny_model import make_tiny_model

    made = make_tiny_model(directory, seed=seed)
    typer.echo(f"{'created' if made else 'already complete:'} {directory}")
