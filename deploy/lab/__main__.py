"""Fault injection on a heterogeneous fleet on this machine: scenarios whose end state is read from the nodes themselves.

python -m deploy.lab                  bring the fleet up, run every scenario, write a report
python -m deploy.lab --only NAME,…    these scenarios alone (--list names them)
python -m deploy.lab --scale          measure a rollout of 20 nodes, compared with plain Ansible doing the same steps
python -m deploy.lab --record         keep the report in docs/reports/fleet; docs/reports/fleet.md is made from it
python -m deploy.lab --down           remove all of it
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from deploy.demo import fleet
from deploy.lab import faults, machines, reports, scale, stand_ins, testbed
from deploy.lab.machines import LAB, ROOT
from deploy.lab.scenario import Case, Scenario
from deploy.lab.suite import ALL
from images.builder import build, container_engine, platforms, venv

OUT = ROOT / "out" / LAB.prefix.removeprefix("attnkit-")
SCALE_NODES = 20

console = Console()


def say(text: str) -> None:
    """One line of progress, with the time."""
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}", highlight=False)


def prepare(count: int, wheel: Path | None) -> testbed.Testbed:
    """Engine, images, machines, registry: everything before a rollout; with this wheel of attnkit, or one of the tree."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    container_engine.ensure()
    wheel = wheel or build.build_wheel()
    venv.ensure(ROOT / ".venv", ROOT / "deploy" / "requirements.txt", [wheel])
    say("stand-in images")
    tags = stand_ins.build_all(wheel, testbed.RELEASES, {faults.HEAVY: faults.HEAVY_PLATFORM})
    say(f"{count} machines and a registry")
    nodes = machines.lab_nodes(count, small_disk=faults.SMALL_DISK)
    hosts = machines.up(nodes)
    say("the images into the registry")
    names = {release: {platform: LAB.push(tag) for platform, tag in of_release.items()} for release, of_release in tags.items()}
    return testbed.Testbed(nodes, hosts, names, OUT)


def run_all(chosen: tuple[Scenario, ...], lab: testbed.Testbed) -> Iterator[tuple[Scenario, Case]]:
    """Every scenario, each from a repaired fleet."""
    for scenario in chosen:
        part = lab.part(scenario.nodes)
        part.restore()
        say(f"[bold]{scenario.name}[/]: {scenario.title}")
        case = scenario.run(part)
        for check in case.checks:
            say(f"  {'[green]yes[/]' if check.held else '[red]NO [/]'} {check.what}")
            if not check.held:
                console.print(f"      {check.found}", markup=False, highlight=False)
        if case.error:
            console.print(f"      {case.error}", markup=False, style="red")
        say(f"  {'[green]pass[/]' if case.passed else '[red]FAIL[/]'} {case.seconds:.0f} s: {' | '.join(case.measured)}")
        yield scenario, case


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="NAME,…", help="these scenarios")
    parser.add_argument("--nodes", type=int, default=0, help="nodes to start; default: as many as the scenarios need")
    parser.add_argument("--wheel", type=Path, help="this wheel of attnkit in place of one built from the working tree")
    parser.add_argument("--list", action="store_true", help="name the scenarios")
    parser.add_argument("--scale", action="store_true", help="measure a rollout of 20 nodes")
    parser.add_argument("--record", action="store_true", help="keep the report in docs/reports/fleet")
    parser.add_argument("--down", action="store_true", help="remove all of the lab")
    args = parser.parse_args()
    wanted = [name for name in args.only.split(",") if name]
    if unknown := set(wanted) - {scenario.name for scenario in ALL}:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; known: {', '.join(s.name for s in ALL)}")
    by_name = {scenario.name: scenario for scenario in ALL}
    chosen = tuple(by_name[name] for name in wanted) if wanted else ALL
    try:
        if args.down:
            machines.down()
            return 0
        if args.list:
            for scenario in ALL:
                print(f"{scenario.name:16} {scenario.nodes:2} nodes  {scenario.title}")
            return 0
        if args.scale:
            lab = prepare(args.nodes or SCALE_NODES, args.wheel)
            rows = []
            for row in scale.measure(lab):
                rows.append(row)
                say(", ".join(f"{name} {value}" for name, value in row.items()))
                file = reports.write(OUT / "scale.json", reports.scale(rows, len(lab.names)))
            say(f"report: {(reports.keep(file) if args.record else file).relative_to(ROOT)}")
            return 0 if all(row["code"] == 0 and row["working"] == row["nodes"] for row in rows) else 1
        count = args.nodes or max(scenario.nodes for scenario in chosen)
        chosen = tuple(scenario for scenario in chosen if scenario.nodes <= count)
        lab = prepare(count, args.wheel)
        command = " ".join(["python -m deploy.lab", *(["--only", args.only] if args.only else [])])
        found = []
        for result in run_all(chosen, lab):
            found.append(result)
            file = reports.write(OUT / "faults.json", reports.faults(found, command, count))
        say(f"{sum(case.passed for _, case in found)} of {len(found)} pass; report: {file.relative_to(ROOT)}, logs beside it")
        if args.record:
            say(f"kept as {reports.keep(file).relative_to(ROOT)}")
        return 0 if all(case.passed for _, case in found) else 1
    except (fleet.DemoError, container_engine.EngineError, platforms.DescriptionError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2


if __name__ == "__main__":
    sys.exit(main())
