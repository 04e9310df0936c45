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
    errors.EXIT_ENGINE: "boot: the engine ended by itself; its own code is the report's `engine.exit_code`",
    errors.EXIT_INTERNAL: "boot: attnkit itself broke, or the machine refused it descriptors, processes or memory",
}


LISTED = {
    "node": "[List](node-types.md).",
    "workload": "[List](node-types.md#workloads).",
    "fault": "[List](self-test.md#faults).",
    "model": "[Presets](#model-presets).",
}
"""Where long lists of allowed values are."""


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its full name."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield name, command
            return
        for key, child in command.commands.items():
            yield from walk(f"{name} {key}", child)

    return walk("attnkit", typer.main.get_command(main))


def variables(parameter: Any) -> tuple[str, ...]:
    """The environment variables that set a parameter, the present name first; one empty name where there is none."""
    found = getattr(parameter, "envvar", None) or ""
    return (found,) if isinstance(found, str) else tuple(found)


def markdown() -> str:
    """The whole page."""
    lines = [
        "Commands, options and exit codes are a stable interface. Options can also be set by the environment variable",
        "that is",
        "named with them; the option wins.",
        "",
        "## Exit codes",
        "",
        *table(("code", "meaning"), ((str(code), text) for code, text in EXIT_CODES.items())),
        "",
        "What to do about each of them: [My node failed](../guides/node-failed.md).",
    ]
    for name, command in commands():
        lines += ["", f"## {name}", "", " ".join((command.help or "").split()), "", "```", _usage(name, command), "```"]
        shown = (p for p in command.params if p.name != "help" and not getattr(p, "hidden", False))
        rows = [_row(parameter) for parameter in shown]
        if rows:
            lines += ["", *table(("option", "variable", "default", "meaning"), rows)]
    lines += ["", "## Model presets", "", ", ".join(f"`{name}`" for name in CHOICES["model"][1]())]
    lines += ["", "## Older option names", "", "They still work, and say so once on stderr.", ""]
    lines += table(("older name", "present name"), ((f"`--{old}`", f"`--{new}`") for old, new in RENAMED.items()))
    return page("Command line", *lines)


def _usage(name: str, command: Any) -> str:
    parts = [name, "[OPTIONS]"]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            text = str(parameter.metavar or parameter.name).upper() + ("..." if parameter.nargs == -1 else "")
            parts.append(text if parameter.required else f"[{text}]")
    return " ".join(parts)


def _row(parameter: Any) -> tuple[str, ...]:
    if parameter.param_type_name == "argument":
        return f"`{str(parameter.name).upper()}`", "", "", cell(parameter.help or "")
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    variable = ", ".join(f"`{found}`" for found in variables(parameter) if found)
    return names, variable, _default(parameter), cell(f"{parameter.help or ''}{_allowed(parameter.name)}")


def _allowed(name: str) -> str:
    """The values that an option may have: a short list, or a link to the page that has the long one."""
    if name in LISTED:
        return f" {LISTED[name]}"
    known = tuple(CHOICES[name][1]()) if name in CHOICES else ()
    return f" Allowed: {', '.join(f'`{value}`' for value in known)}." if known else ""


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value is False or value == "" or (not isinstance(value, (str, int, float, bool)) and str(value) != "/"):
        return ""
    return f"`{value}`"
