"""Commands whose help lists the allowed values, whose old option names still work, and whose errors are exit codes."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from attnkit.boot.redact import Redactor
from attnkit.cli.choices import CHOICES
from attnkit.errors import EXIT_OK, AttnkitError
from attnkit.wording import printable

SHORT_LIST = 48
"""Longer lists of choices do not fit next to an option at 80 columns; they get a section of their own."""


QUICK = frozenset({"detect", "backends", "select", "resolve"})
"""Commands that answer at once and start no other process."""


_CliUsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""UsageError of click, or of the copy of it that newer versions of typer bring: an unknown option, a value that is none."""


def _refused(message: str) -> None:
    """A boot whose command line is refused began nothing, and what an earlier one left must not pass for its result."""
    from attnkit.boot.run import refused

    refused(message, sys.argv[1:], os.environ)


class Group(TyperGroup):
    """Turns attnkit's own errors into a message and an exit code, never a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Before a quick command: no search of every installed distribution's metadata for plugins of pydantic."""
        if args and args[0] in QUICK:
            os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the class."""
        try:
            return super().invoke(ctx)
        except _CliUsageError as error:
            if ctx.invoked_subcommand == "boot":
                _refused(str(getattr(error, "message", error)))
            raise
        except AttnkitError as error:
            shown = printable(Redactor(sys.argv, os.environ).text(str(error)))
            typer.echo(f"error: {shown}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our stdout left (`| head`); nothing more can be said there
            ctx.exit(EXIT_OK)


class Command(TyperCommand):
    """Shows in its help what an option may be: `[quick|standard|extended]`, or a section where the list is long."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments and options, then the long lists."""
        sections: dict[str, tuple[str, ...]] = {}
        for parameter in self.params:
            if parameter.name not in CHOICES:
                continue
            what, names = CHOICES[parameter.name]
            known = tuple(names())
            if len("|".join(known)) <= SHORT_LIST:
                parameter.metavar = f"[{'|'.join(known)}]"
            else:
                sections[f"{what.capitalize()}s"] = known
        super().format_options(ctx, formatter)
        for title, known in sections.items():
            with formatter.section(title):
                for line in textwrap.wrap(", ".join(known), formatter.width - 2, break_on_hyphens=False):
                    formatter.write(f"  {line}\n")


RENAMED = {"prove": "inject-faults", "planted-answer": "simulated-device"}
"""Old option names that scripts may use, and the names they have now; the old ones are in no help text."""
_said: set[str] = set()


def current_name(name: str) -> str:
    """The present name of an option, without dashes; an old name is taken, and the new one told once on stderr."""
    new = RENAMED.get(name, name)
    if new != name and name not in _said:
        _said.add(name)
        typer.echo(f"note: --{name} is now --{new}; the old name still works", err=True)
    return new
