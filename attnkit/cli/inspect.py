"""`attnkit detect`, `backends`, `select` and `resolve`: they answer without loading torch or a vendor library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnkit.cli.options import Explicit, Json, Model, Node, Root, Workload, print_json
from attnkit.errors import EXIT_CHECK_FAILED, EXIT_INCONCLUSIVE, EXIT_NO_BACKEND


def detect(root: Root = Path("/"), json: Json = False) -> None:
    """Show detected devices and the matching node type."""
    from attnkit.select.node import inspect_machine

    machine = inspect_machine(root)
    files = _profile_files(machine.match.node)
    if json:
        print_json(machine.as_dict() | {"profile_files": files})
    else:
        from attnkit.cli import tables

        tables.show_machine(machine, files)


def _profile_files(node: str | None, workload: str | None = None) -> list[Path]:
    """Where the profiles were read from: built-in ones can be replaced."""
    from attnkit.profiles import node_file, workload_file

    return [*([node_file(node)] if node else []), *([workload_file(workload)] if workload else [])]


def backends(root: Root = Path("/"), json: Json = False) -> None:
    """List backends, their providers and levels of evidence."""
    from attnkit.select.catalog import catalog

    rows = catalog(root)
    if json:
        print_json(rows)
    else:
        from attnkit.cli import tables

        tables.show_catalog(rows)


def select(
    node: Node = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Select for this architecture instead: sm_75, gfx942 …")
    ] = None,
    model: Model = None,
    workload: Workload = None,
    backend: Explicit = None,
    root: Root = Path("/"),
    assume_installed: Annotated[
        bool, typer.Option("--assume-installed", help="Treat every library in the platform's image as installed.")
    ] = False,
    json: Json = False,
) -> None:
    """Show which backend is selected, and why the others are not."""
    from attnkit.select.node import find_node
    from attnkit.select.plan import make_plan

    found = find_node(root=root, node=node, arch=device)
    plan = make_plan(found, model=model, workload=workload, explicit=backend, assume_installed=assume_installed)
    files = _profile_files(found.profile.name if found.profile else None, workload)
    if json:
        print_json(plan.as_dict() | {"profile_files": files})
    else:
        from attnkit.cli import tables

        tables.show_plan(plan, files)
    if plan.requirements.not_understood:
        raise typer.Exit(EXIT_INCONCLUSIVE)
    if plan.decision.chosen is None and not plan.attention_free:
        raise typer.Exit(EXIT_NO_BACKEND)


def resolve(
    name: Annotated[str, typer.Argument(help="Backend name, in any spelling.")],
    vllm: Annotated[str, typer.Option("--vllm", help="vLLM version, e.g. 0.33.0.")],
    platform: Annotated[str, typer.Option("--platform", help="vLLM platform.")] = "cuda",
    json: Json = False,
) -> None:
    """Show the vLLM flag or variable that selects a backend."""
    from attnkit.engines.vllm.names import resolve as resolve_name

    found = resolve_name(name, vllm, platform)
    if json:
        print_json(found)
    else:
        from attnkit.cli import tables

        tables.show_resolution(found, platform)
    if not found.ok:
        raise typer.Exit(EXIT_CHECK_FAILED)
