"""The command line: a contract that images, playbooks and scripts rely on.

Every command imports what it needs inside, so that `attnkit detect`, `select` and `resolve` answer without loading torch or
any vendor library. Deliberate errors (`attnkit.errors.AttnkitError`) become one message on stderr and the error's exit code;
wrong usage exits with 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from attnkit import __version__
from attnkit.errors import EXIT_CHECK_FAILED, EXIT_NO_BACKEND, EXIT_OK, AttnkitError, UsageError, require_packages, unknown_name


class _Group(TyperGroup):
    """Turns attnkit's own errors into a message and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AttnkitError as error:
            typer.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our stdout left (`| head`); nothing more can be said there
            ctx.exit(EXIT_OK)


main = typer.Typer(
    name="attnkit",
    cls=_Group,
    help="The right attention backend on every accelerator, proven at boot on the very card.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
kernels = typer.Typer(cls=_Group, help="Kernels compiled ahead of time.", no_args_is_help=True, rich_markup_mode=None)
main.add_typer(kernels, name="kernels")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Root = Annotated[Path, typer.Option("--root", envvar="ATTNKIT_ROOT", help="Another / to read sys and proc from.")]
Node = Annotated[str | None, typer.Option("--node", envvar="ATTNKIT_NODE", help="Node type; default: detected.")]
Workload = Annotated[str | None, typer.Option("--workload", envvar="ATTNKIT_WORKLOAD", help="Name of a workload profile.")]
Model = Annotated[
    str | None, typer.Option("--model", envvar="ATTNKIT_MODEL", help="A model's config.json or directory, or a preset.")
]
Explicit = Annotated[
    str | None, typer.Option("--backend", envvar="ATTNKIT_BACKEND", help="This backend or none; it never falls back.")
]
LevelOption = Annotated[
    str | None, typer.Option("--level", envvar="ATTNKIT_LEVEL", help="quick, standard or extended; default: the profile's.")
]
Fault = Annotated[
    str | None,
    typer.Option(
        "--fault", envvar="ATTNKIT_FAULT", help="Debug switch: plant this fault in the self-test, to rehearse a failing node."
    ),
]

Planted = Annotated[
    str | None,
    typer.Option(
        "--planted-answer",
        envvar="ATTNKIT_PLANTED_ANSWER",
        help="Debug switch: run no kernel, take this for the device's answer (right, wrong, crash, hang; or wrong:BACKEND). "
        "The verdict is then 'planted', never 'pass'.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attnkit {__version__}")
        raise typer.Exit


@main.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    pass


def _print_json(value: Any) -> None:
    from attnkit.plain import to_json

    typer.echo(to_json(value))


@main.command()
def detect(root: Root = Path("/"), json: Json = False) -> None:
    """Devices in this box, and the node type they make it."""
    from attnkit.plan import inspect_box

    box = inspect_box(root)
    if json:
        _print_json(box.as_dict())
    else:
        from attnkit import terminal

        terminal.show_box(box)


@main.command()
def backends(root: Root = Path("/"), json: Json = False) -> None:
    """Every backend: aliases, providers with versions, usable here or why not, evidence."""
    from attnkit.catalog import catalog

    rows = catalog(root)
    if json:
        _print_json(rows)
    else:
        from attnkit import terminal

        terminal.show_catalog(rows)


@main.command()
def select(
    node: Node = None,
    device: Annotated[str | None, typer.Option("--device", help="Another architecture: sm_75, gfx942, xe-hpg …")] = None,
    model: Model = None,
    workload: Workload = None,
    backend: Explicit = None,
    root: Root = Path("/"),
    assume_installed: Annotated[
        bool, typer.Option("--assume-installed", help="Treat every library that the platform's image bakes as installed.")
    ] = False,
    json: Json = False,
) -> None:
    """Which backend, in which order, and every reason against the others."""
    from attnkit.plan import make_plan, place

    where = place(root=root, node=node, arch=device)
    plan = make_plan(where, model=model, workload=workload, explicit=backend, assume_installed=assume_installed)
    if json:
        _print_json(plan.as_dict())
    else:
        from attnkit import terminal

        terminal.show_plan(plan)
    if plan.decision.chosen is None:
        raise typer.Exit(EXIT_NO_BACKEND)


@main.command()
def resolve(
    name: Annotated[str, typer.Argument(help="A backend's name, in any spelling.")],
    vllm: Annotated[str, typer.Option("--vllm", help="The vLLM version, e.g. 0.33.0.")],
    platform: Annotated[str, typer.Option("--platform", help="cuda, rocm, xpu, tpu or cpu.")] = "cuda",
    json: Json = False,
) -> None:
    """The flag or variable that this vLLM version wants, or why it has none and what replaced it."""
    from attnkit.engines.vllm_names import resolve as resolve_name

    found = resolve_name(name, vllm, platform)
    if json:
        _print_json(found)
    else:
        from attnkit import terminal

        terminal.show_resolution(found, platform)
    if not found.ok:
        raise typer.Exit(EXIT_CHECK_FAILED)


@main.command()
def selftest(
    backend: Annotated[str, typer.Option("--backend", help="A name, or all; vllm:NAME is vLLM's own.")] = "all",
    level: LevelOption = None,
    prove: Annotated[bool, typer.Option("--prove", help="Plant every fault and show which case catches it.")] = False,
    node: Node = None,
    model: Model = None,
    fault: Fault = None,
    root: Root = Path("/"),
    json: Annotated[Path | None, typer.Option("--json", help="Write the verdicts to this file; - for stdout.")] = None,
) -> None:
    """Check backends on this very card against the float64 reference."""
    from attnkit.check import CheckOptions, run_checks

    raise typer.Exit(
        run_checks(
            CheckOptions(
                backend=backend, level=level, prove=prove, node=node, model=model, fault=fault, root=root, json_file=json
            )
        )
    )


@main.command(context_settings={"allow_interspersed_args": False})
def boot(
    command: Annotated[list[str] | None, typer.Argument(help="The engine's command, after --.", show_default=False)] = None,
    node: Node = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", envvar="ATTNKIT_REPORT", help="The boot report; default: /run/attnkit/report.json."),
    ] = None,
    ready: Annotated[
        Path | None,
        typer.Option("--ready", envvar="ATTNKIT_READY", help="The readiness file; default: /run/attnkit/ready.json."),
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option("--metrics", envvar="ATTNKIT_METRICS", help="Prometheus text; default: beside the report.")
    ] = None,
    workload: Workload = None,
    backend: Explicit = None,
    model: Model = None,
    level: LevelOption = None,
    fault: Fault = None,
    planted_answer: Planted = None,
    root: Root = Path("/"),
    health_url: Annotated[
        str | None,
        typer.Option("--health-url", envvar="ATTNKIT_HEALTH_URL", help="The engine's health endpoint; known for vllm serve."),
    ] = None,
    health_timeout: Annotated[
        float, typer.Option("--health-timeout", envvar="ATTNKIT_HEALTH_TIMEOUT", help="Seconds the engine may take.")
    ] = 600.0,
    selftest_timeout: Annotated[
        float,
        typer.Option(
            "--selftest-timeout", envvar="ATTNKIT_SELFTEST_TIMEOUT", min=1.0, help="Seconds one candidate's self-test may take."
        ),
    ] = 900.0,
    engine_check: Annotated[
        bool,
        typer.Option(
            "--engine-check/--no-engine-check",
            envvar="ATTNKIT_ENGINE_CHECK",
            help="Prove vLLM's own implementation and hold its log against it; off only for a vLLM too new to be driven.",
        ),
    ] = True,
) -> None:
    """Detect, select, prove, report, then start and watch the engine: the images' entrypoint."""
    from attnkit.boot import BootOptions
    from attnkit.boot import boot as run_boot
    from attnkit.outputs import default_directory

    report = report or default_directory() / "report.json"
    options = BootOptions(
        command=tuple(command or ()),
        node=node,
        report=report,
        ready=ready or default_directory() / "ready.json",
        metrics=metrics or report.with_suffix(".prom"),
        workload=workload,
        backend=backend,
        model=model,
        level=level,
        fault=fault,
        planted_answer=planted_answer,
        root=root,
        health_url=health_url,
        health_timeout=health_timeout,
        selftest_timeout=selftest_timeout,
        engine_check=engine_check,
    )
    raise typer.Exit(run_boot(options))


@main.command()
def bench(
    group: Annotated[
        list[str] | None,
        typer.Argument(help="decode, prefill, paged, mixed, mla, fp8, tree, dual_chunk, differential, all (default); or cpu."),
    ] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Beside ours, every peer that is installed.")] = False,
    out: Annotated[Path, typer.Option("--out", help="Directory for peers.json and roofline.png, or cpu.json.")] = Path(),
    only: Annotated[str, typer.Option("--only", help="Only workloads with this in their name.")] = "",
    implementation: Annotated[
        list[str] | None, typer.Option("--implementation", help="Only implementations with this in their name; repeatable.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="No implementation with this in its name; repeatable.")
    ] = None,
    limit_seconds: Annotated[
        float | None, typer.Option("--limit-seconds", help="Begin no new workload after this many seconds.", min=1)
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Only workloads up to this rank (0: one of everything).", min=0)
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="bfloat16 or float16.")] = "bfloat16",
    submit: Annotated[
        Path | None, typer.Option("--submit", help="Everything worth sending back, as one file; four minutes on a Turing card.")
    ] = None,
) -> None:
    """Our kernels on this GPU, with --peers beside every other implementation that is installed: the card's ceilings first,
    then each workload, every answer checked before it is timed. `cpu`: our C++ kernels beside vLLM's CPU_ATTN.
    """
    if group == ["cpu"]:
        require_packages("attnkit bench cpu", "torch", "vllm")
        from attnkit.bench import cpu

        cpu.main(out)
        return
    require_packages("attnkit bench", "torch", "triton")
    if submit is not None:
        from attnkit.bench.submission import write

        write(submit)
        return
    from attnkit.bench import run as benchmark
    from attnkit.bench.work import GROUPS

    groups = [name for name in group or ["all"] if name != "all"]
    for name in groups:
        if name not in GROUPS:
            raise unknown_name("benchmark", name, (*GROUPS, "all", "cpu"))
    if dtype not in ("bfloat16", "float16"):
        raise unknown_name("dtype", dtype, ("bfloat16", "float16"))
    benchmark.require_gpu()
    benchmark.main(
        benchmark.Options(
            out=out,
            groups=groups or GROUPS,
            peers=peers,
            only=only,
            implementations=implementation or (),
            without=without or (),
            limit_seconds=limit_seconds,
            ranks=rank,
            dtype=dtype,
            command=" ".join(["attnkit", *("DIR" if word == str(out) else word for word in sys.argv[1:])]),
        )
    )


@main.command()
def report(
    file: Annotated[Path, typer.Argument(help="A boot report.")],
    html: Annotated[Path | None, typer.Option("--html", help="Write one self-contained page here.")] = None,
) -> None:
    """Show a boot report, or make a page of it."""
    from attnkit.report import load_report

    loaded = load_report(file)
    if html is None:
        from attnkit import terminal

        terminal.show_report(loaded)
        return
    from attnkit.page import render_html

    try:
        html.write_text(render_html(loaded), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {html}: {error.strerror}") from None
    typer.echo(f"wrote {html}")


@main.command("tiny-model")
def tiny_model(
    directory: Annotated[Path, typer.Argument(help="Where to put it.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed of the random weights.")] = 0,
) -> None:
    """Make a tiny Llama: random weights and a real tokenizer, trained on the spot."""
    from attnkit.engines.tiny_model import make_tiny_model

    made = make_tiny_model(directory, seed=seed)
    typer.echo(f"{'made' if made else 'complete already:'} {directory}")


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
    """The kernels that a target needs."""
    from attnkit.kernels.aot import Variant
    from attnkit.kernels.cpu import build as cpu

    targets = _targets(target)
    if targets == [cpu.TARGET]:
        variants = tuple(Variant(cpu.TARGET, name, "attention") for name in cpu.wanted())
    else:
        require_packages("attnkit kernels list", "torch", "triton")
        from attnkit import bake

        variants = bake.list_kernels(targets)
    if json:
        _print_json(variants)
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
    """Compile kernels for targets that need not be here; `cpu`: our C++ kernels, with the C++ compiler found here."""
    from attnkit.kernels.cpu import build as cpu

    targets = _targets(target)
    if targets == [cpu.TARGET]:
        built = cpu.build(directory)
        typer.echo(f"CPU kernels in {built}: {cpu.describe(built)}", err=json)
        return
    from attnkit import bake_pallas

    if bake_pallas.covers(targets):
        require_packages("attnkit kernels build", "torch", "jax")
        lowered = bake_pallas.build(targets, directory, on_module=lambda module: typer.echo(module.name, err=True))
        if json:
            _print_json(lowered)
        else:
            typer.echo(f"{len(lowered.kernels)} modules for {', '.join(lowered.targets)} in {directory}, JAX {lowered.jax}")
        return
    require_packages("attnkit kernels build", "torch", "triton")
    from attnkit import bake

    def say(baked: Any) -> None:
        typer.echo(f"{baked.target:<13} {baked.name}", err=True)

    manifest = bake.build(targets, directory, jobs=jobs, cache=cache, on_kernel=say)
    if json:
        _print_json(manifest)
    else:
        typer.echo(
            f"{len(manifest.kernels)} kernels for {', '.join(manifest.targets)} in {directory}, Triton {manifest.triton}"
        )


@kernels.command("verify")
def verify_kernels(directory: Bake, target: Targets = None, json: Json = False) -> None:
    """Check that compiled kernels are whole and cover their targets; without --target, those that the directory names."""
    from attnkit.kernels.cpu import build as cpu
    from attnkit.kernels.pallas import ahead

    targets = _targets(target) if target else None
    if targets == [cpu.TARGET] or (targets is None and cpu.is_here(directory)):
        counts = cpu.verify(directory)
        if json:
            _print_json({"kernels": counts})
        else:
            typer.echo(f"{counts[cpu.TARGET]} kernels for {cpu.TARGET} are whole")
        return
    manifest: Any
    if ahead.is_here(directory):
        require_packages("attnkit kernels verify", "torch", "jax")
        from attnkit import bake_pallas

        manifest = bake_pallas.verify(directory, targets)
        compiler = {"jax": manifest.jax}
    else:
        require_packages("attnkit kernels verify", "torch", "triton")
        from attnkit import bake

        manifest = bake.verify(directory, targets)
        compiler = {"triton": manifest.triton}
    if json:
        _print_json({**compiler, "level": manifest.level, "kernels": manifest.counts()})
    else:
        for name, count in manifest.counts().items():
            typer.echo(f"{name:<13} {count}")
        typer.echo(f"{len(manifest.kernels)} kernels for {', '.join(manifest.targets)} are whole")


if __name__ == "__main__":
    main()
