"""A command group whose deliberate errors become a message and an exit code."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from attnkit.errors import EXIT_OK, AttnkitError


class Group(TyperGroup):
    """Turns attnkit's own errors into a message and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the class."""
        try:
            return super().invoke(ctx)
        except AttnkitError as error:
            typer.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our stdout left (`| head`); nothing more can be said there
            ctx.exit(EXIT_OK)
