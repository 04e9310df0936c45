"""`attnkit kernels list`, `build` and `verify`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnkit.cli.group import Group
from attnkit.cli.options import Json, print_json
from attnkit.errors import UsageError

if TYPE_CHECKING:
    from attnkit.prebuilt.kernel_set import Outcome

kernels = typer.Typer(
    cls=Group, help="Build, list and verify precompiled (AOT) kernels.", no_args_is_help=True, rich_markup_mode=None
)

Targets = Annotated[
    str | None, typer.Option("--target", help="Comma-separated architectures: sm_75,sm_80,gfx942; or cpu.", show_default=False)
]
Directory = Annotated[
    Path, typer.Option("--dir", envvar="ATTNKIT_KERNELS", help="Directory of precompiled kernels.", show_default=False)
]


def _targets(text: str | None) -> list[str]:
    targets = [target.strip() for target in (text or "").split(",") if target.strip()]
    if not targets:
        raise UsageError("--target is missing: comma-separated architectures, e.g. sm_75,sm_80,gfx942; or cpu")
    return targets


def _print_outcome(outcome: Outcome, json: bool) -> None:
    if json and outcome.data is not None:
        print_json(outcome.data)
        return
    for line in outcome.lines:
        typer.echo(line, err=json)


@kernels.command("list")
def list_kernels(target: Targets = None, json: Json = False) -> None:
    """List the kernels that a target needs."""
    from attnkit import prebuilt
    from attnkit.prebuilt.kernel_set import Outcome, line_of

    variants = prebuilt.for_targets(_targets(target)).list()
    lines = [*(line_of(variant.target, variant.name) for variant in variants), f"{len(variants)} kernels"]
    _print_outcome(Outcome(lines, variants), json)


@kernels.command("build")
def build_kernels(
    directory: Directory,
    target: Targets = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes that compile.")] = 1,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Keeps what was compiled, for the next build.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Compile kernels for targets that need not be present.

    Target cpu: the C++ kernels, with this machine's C++ compiler.
    """
    from attnkit import prebuilt

    wanted = prebuilt.for_targets(_targets(target))
    _print_outcome(wanted.build(directory, jobs=jobs, cache=cache, on_kernel=partial(typer.echo, err=True)), json)


@kernels.command("verify")
def verify_kernels(directory: Directory, target: Targets = None, json: Json = False) -> None:
    """Verify precompiled kernels against their manifest.

    Without --target: for the targets that the directory names.
    """
    from attnkit import prebuilt

    _print_outcome(prebuilt.in_directory(directory, _targets(target) if target else ()).verify(directory), json)
