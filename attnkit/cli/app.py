"""The command line: a contract that images, playbooks and scripts rely on.

Every command imports what it needs inside, so that `attnkit detect`, `select` and `resolve` answer without loading torch or
any vendor library. Deliberate errors (`attnkit.errors.AttnkitError`) become one message on stderr and the error's exit code;
wrong usage exits with 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from attnkit import __version__
from attnkit.cli import bench, boot, census, env, inspect, kernels, report, selftest
from attnkit.cli.group import Command, Group, current_name

main = typer.Typer(
    name="attnkit",
    cls=Group,
    help="Select and validate LLM attention backends on heterogeneous accelerators.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": current_name},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attnkit {__version__}")
        raise typer.Exit


@main.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


COMMANDS: tuple[Callable[..., None], ...] = (
    inspect.detect,
    inspect.backends,
    inspect.select,
    inspect.resolve,
    selftest.selftest,
    boot.boot,
    census.census,
    bench.bench,
    report.report,
    env.env,
    report.tiny_model,
)
for _command in COMMANDS:
    main.command(
        _command.__name__.replace("_", "-"),
        cls=Command,
        # what follows the first word of these two that is no option belongs to the engine's command
        context_settings={"allow_interspersed_args": _command not in (boot.boot, census.census)},
    )(_command)
main.add_typer(kernels.kernels, name="kernels")
