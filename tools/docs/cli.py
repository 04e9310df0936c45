"""docs/reference/cli.md: every command and option, from the typer application."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from attnkit import errors
from attnkit.cli import main
from attnkit.cli.choices import CHOICES
from attnkit.cli.group import RENAMED
from tools.docs.markdown import cell, page, table

EXIT_CODES = {
    errors.EXIT_OK: "success",
    errors.EXIT_CHECK_FAILED: "a check failed, or the engine failed",
    errors.EXIT_USAGE: "wrong usage or configuration; the message names file, line, field and the allowed values",
    errors.EXIT_NO_BACKEND: "no usable backend; the message lists the reason of every rejection",
    errors.EXIT_INCONCLUSIVE: "inconclusive: nothing was shown to be wrong, and nothing to be right",
}

LISTED_ELSEWHERE = {"node", "workload", "model"}
"""Choices whose lists are in node-types.md."""


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its full name."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield name, command
            return
        for key, child in command.commands.items():
            yield from walk(f"{name} {key}", child)

    return walk("attnkit", typer.main.get_command(main))


def markdown() -> str:
    """The whole page."""
    lines = [
        "Commands, options and exit codes are a stable interface. Options can also be set by the environment variable that is",
        "named with them; the option wins.",
        "",
        "## Exit codes",
        "",
        *table(("code", "meaning"), ((str(code), text) for code, text in EXIT_CODES.items())),
        "",
        "What to do about each of them: [My node failed](../guides/node-failed.md).",
        "",
        "Old option names still work, with a note on stderr: "
        + ", ".join(f"`--{old}` (now `--{new}`)" for old, new in sorted(RENAMED.items()))
        + ".",
    ]
    for name, command in commands():
        lines += ["", f"## {name}", "", " ".join((command.help or "").split()), "", "```", _usage(name, command), "```"]
        rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            lines += ["", *table(("option", "variable", "default", "meaning"), rows)]
    return page("Command line", *lines)


def _usage(name: str, command: Any) -> str:
    parts = [name, "[OPTIONS]"]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            text = str(parameter.metavar or parameter.name).upper() + ("..." if parameter.nargs == -1 else "")
            parts.append(text if parameter.required else f"[{text}]")
    return " ".join(parts)


def _row(parameter: Any) -> tuple[str, ...]:
    meaning = cell(parameter.help or "")
    if parameter.name in CHOICES and parameter.name not in LISTED_ELSEWHERE:
        _, names = CHOICES[parameter.name]
        meaning += f" Allowed: {', '.join(f'`{name}`' for name in names())}."
    if parameter.param_type_name == "argument":
        return f"`{str(parameter.name).upper()}`", "", "", meaning
    options = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return options, ", ".join(f"`{name}`" for name in variables(parameter)), _default(parameter), meaning


def variables(parameter: Any) -> tuple[str, ...]:
    """The environment variables that set an option, the best name first."""
    given = getattr(parameter, "envvar", None) or ()
    return (given,) if isinstance(given, str) else tuple(given)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value is False or value == "" or (not isinstance(value, (str, int, float, bool)) and str(value) != "/"):
        return ""
    return f"`{value}`"
