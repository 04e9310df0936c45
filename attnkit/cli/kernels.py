"""`attnkit kernels list`, `build` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attnkit.cli.group import Group
from attnkit.cli.options import Json, print_json
from attnkit.errors import UsageError, require_packages

kernels = typer.Typer(
    cls=Group, help="Build, list and verify precompiled (AOT) kernels.", no_args_is_help=True, rich_markup_mode=None
)

Targets = Annotated[
    str | None, typer.Option("--target", help="Architectures, with commas between: sm_75,sm_80,gfx942.", show_default=False)
]
Bake = Annotated[
    Path, typer.Option("--dir", envvar="ATTNKIT_KERNELS", help="The directory of compiled kernels.", show_default=False)
]


def _targets(text: str | None) -> list[str]:
    from attnkit.kernels.cpu.build import TARGET

    if not text:
        raise UsageError("--target is missing: architectures with commas between, e.g. sm_75,sm_80,gfx942; or cpu")
    targets = [target.strip() for target in text.split(",") if target.strip()]
    if TARGET in targets and targets != [TARGET]:
        raise UsageError(f"--target {text}: our C++ kernels have a directory of their own: --target {TARGET} alone")
    return targets


@kernels.command("list")
def list_kernels(target: Targets = None, json: Json = False) -> None:
    """List the kernels that a target needs."""
    from attnkit.kernels.aot.manifest import Variant
    from attnkit.kernels.cpu import build as cpu

    targets = _targets(target)
    if targets == [cpu.TARGET]:
        variants = tuple(Variant(cpu.TARGET, name, "attention") for name in cpu.wanted())
    else:
        require_packages("attnkit kernels list", "torch", "triton")
        from attnkit.prebuilt import triton as prebuilt_triton

        variants = prebuilt_triton.list_kernels(targets)
    if json:
        print_json(variants)
        return
    for variant in variants:
        typer.echo(f"{variant.target:<13} {variant.name}")
    typer.echo(f"{len(variants)} kernels")


@kernels.command("build")
def build_kernels(
    directory: Bake,
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
    from attnkit.kernels.cpu import build as cpu

    targets = _targets(target)
    if targets == [cpu.TARGET]:
        built = cpu.build(directory)
        typer.echo(f"CPU kernels in {built}: {cpu.describe(built)}", err=json)
        return
    from attnkit.prebuilt import pallas as prebuilt_pallas

    if prebuilt_pallas.covers(targets):
        require_packages("attnkit kernels build", "torch", "jax")
        lowered = prebuilt_pallas.build(targets, directory, on_module=lambda module: typer.echo(module.name, err=True))
        if json:
            print_json(lowered)
        else:
            typer.echo(f"{len(lowered.kernels)} modules for {', '.join(lowered.targets)} in {directory}, JAX {lowered.jax}")
        return
    require_packages("attnkit kernels build", "torch", "triton")
    from attnkit.prebuilt import triton as prebuilt_triton

    def say(baked: Any) -> None:
        typer.echo(f"{baked.target:<13} {baked.name}", err=True)

    manifest = prebuilt_triton.build(targets, directory, jobs=jobs, cache=cache, on_kernel=say)
    if json:
        print_json(manifest)
    else:
        typer.echo(
            f"{len(manifest.kernels)} kernels for {', '.join(manifest.targets)} in {directory}, Triton {manifest.triton}"
        )


@kernels.command("verify")
def verify_kernels(directory: Bake, target: Targets = None, json: Json = False) -> None:
    """Verify precompiled kernels against their manifest.

    Without --target: for the targets that the directory names.
    """
    from attnkit.kernels.cpu import build as cpu
    from attnkit.kernels.pallas import ahead

    targets = _targets(target) if target else None
    if targets == [cpu.TARGET] or (targets is None and cpu.is_here(directory)):
        counts = cpu.verify(directory)
        if json:
            print_json({"kernels": counts})
        else:
            typer.echo(f"{counts[cpu.TARGET]} kernels for {cpu.TARGET} are whole")
        return
    manifest: Any
    if ahead.is_here(directory):
        require_packages("attnkit kernels verify", "torch", "jax")
        from attnkit.prebuilt import pallas as prebuilt_pallas

        manifest = prebuilt_pallas.verify(directory, targets)
        compiler = {"jax": manifest.jax}
    else:
        require_packages("attnkit kernels verify", "torch", "triton")
        from attnkit.prebuilt import triton as prebuilt_triton

        manifest = prebuilt_triton.verify(directory, targets)
        compiler = {"triton": manifest.triton}
    if json:
        print_json({**compiler, "level": manifest.level, "kernels": manifest.counts()})
    else:
        for name, count in manifest.counts().items():
            typer.echo(f"{name:<13} {count}")
        typer.echo(f"{len(manifest.kernels)} kernels for {', '.join(manifest.targets)} are whole")
