"""`attnkit report` and `attnkit tiny-model`."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnkit.errors import UsageError
from attnkit.jsonio import MAX_BYTES, parse_json, write_atomically

if TYPE_CHECKING:
    from attnkit.boot.report import BootReport


MAX_SECONDS = 30.0


def report(
    file: Annotated[str, typer.Argument(help="Boot report (JSON): a file, - for stdin, or an http(s) URL.")],
    other: Annotated[str | None, typer.Argument(help="A later report: show what changed.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a self-contained HTML page to this file.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML to this file, for CI systems.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show passed cases too.")] = False,
) -> None:
    """Show a boot report, compare two, or convert one."""
    loaded = _read(file)
    if other is not None:
        from attnkit.cli.report_compare import show_comparison

        if html is not None or junit is not None:
            raise UsageError("--html and --junit take one report, not two")
        show_comparison(loaded, _read(other))
        return
    if html is not None:
        from attnkit.cli.report_page import render_html

        write_atomically(html, render_html(loaded))
        typer.echo(f"wrote {html}")
    if junit is not None:
        from attnkit.cli.report_junit import junit_text

        write_atomically(junit, junit_text(loaded))
        typer.echo(f"wrote {junit}")
    if html is None and junit is None:
        from attnkit.cli.report_tables import show_report

        show_report(loaded, everything=everything)
        from attnkit.boot.report import from_the_future

        if from_the_future(loaded.created, datetime.now(timezone.utc)):
            typer.echo(f"note: the report says it was made at {loaded.created}, which is not past: check the clocks", err=True)


def _read(where: str) -> BootReport:
    """A report from a file, stdin or the web.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    from attnkit.boot.report import load_report, parse_report
    from attnkit.engines import web

    if where == "-":
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UsageError(f"stdin: more than {MAX_BYTES} bytes, the most that is read")
        return parse_report(parse_json(data, "stdin"), "stdin")
    if not where.startswith(("http://", "https://")):
        return load_report(Path(where))
    try:
        answer = web.request(where, seconds=MAX_SECONDS, limit=MAX_BYTES)
    except web.WebError as error:
        raise UsageError(f"cannot read report {where}: {error}") from None
    if answer.status != 200:
        raise UsageError(f"cannot read report {where}: HTTP {answer.status}")
    return parse_report(parse_json(answer.body, where), where)


def tiny_model(
    directory: Annotated[Path, typer.Argument(help="Directory to create it in.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed for the random weights.")] = 0,
) -> None:
    """Create a tiny Llama model with random weights, for tests."""
    from attnkit.engines.tiny_model import make_tiny_model

    made = make_tiny_model(directory, seed=seed)
    typer.echo(f"{'created' if made else 'already complete:'} {directory}")
