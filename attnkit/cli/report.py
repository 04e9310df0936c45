"""`attnkit report` and `attnkit tiny-model`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnkit.errors import UsageError


def report(
    file: Annotated[Path, typer.Argument(help="A boot report.")],
    html: Annotated[Path | None, typer.Option("--html", help="Write one self-contained page here.")] = None,
) -> None:
    """Show a boot report, or make a page of it."""
    from attnkit.boot.report import load_report

    loaded = load_report(file)
    if html is None:
        from attnkit.cli import tables

        tables.show_report(loaded)
        return
    from attnkit.cli.report_page import render_html

    try:
        html.write_text(render_html(loaded), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {html}: {error.strerror}") from None
    typer.echo(f"wrote {html}")


def tiny_model(
    directory: Annotated[Path, typer.Argument(help="Where to put it.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random weights.")] = 0,
) -> None:
    """Make a tiny Llama: random weights and a real tokenizer, trained on the spot."""
    from attnkit.engines.tiny_model import make_tiny_model

    made = make_tiny_model(directory, seed=seed)
    typer.echo(f"{'made' if made else 'complete already:'} {directory}")
