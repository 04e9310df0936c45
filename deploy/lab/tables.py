"""Write the tables of docs/reports/fleet.md from the reports in docs/reports/fleet, or with --check say that they are stale.

Between `<!-- NAME -->` and `<!-- end -->` is what this program writes: the newest result of every scenario, and the newest
measurement. The rest of the page is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from deploy.lab import estimate, suite

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reports" / "fleet.md"
REPORTS = ROOT / "docs" / "reports" / "fleet"
ASSUMED_CPU_SECONDS = 10.0
"""Of the controller for a node, where there is no measurement."""


def newest(kind: str) -> tuple[str, dict[str, Any]]:
    """The newest report of a kind: its path beside the page, and the report."""
    path = sorted(REPORTS.glob(f"{kind}-*.json"))[-1]
    return path.relative_to(PAGE.parent).as_posix(), json.loads(path.read_text(encoding="utf-8"))


def results() -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The newest result of every scenario by its name, and the reports that they are from by their paths."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    reports = {}
    for path in sorted(REPORTS.glob("faults-*.json")):
        name = path.relative_to(PAGE.parent).as_posix()
        reports[name] = json.loads(path.read_text(encoding="utf-8"))
        for row in reports[name]["scenarios"]:
            rows[row["name"]] = (name, row)
    used = {name for name, _ in rows.values()}
    return {name: row for name, (_, row) in rows.items()}, {name: reports[name] for name in sorted(used)}


def source(path: str, report: dict[str, Any]) -> str:
    """The sentence under a table."""
    machine, versions = report["machine"], report["versions"]
    return (
        f"[{Path(path).name}]({path}): {report['date']}, `{report['command']}`, {report['nodes']} nodes, "
        f"revision {report['revision']}, "
        f"ansible-core {versions['ansible-core']}, engine {versions['engine']}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; load at the end {machine['load_at_the_end'][0]}."
    )


def cell(text: str) -> str:
    """Text that breaks no table."""
    return text.replace("|", "\\|").replace("\n", " ")


def faults() -> list[str]:
    """Test results: every scenario and how it ended."""
    rows, reports = results()
    lines = ["| scenario | what happens | expected | measured | checks | s | |", "|---|---|---|---|---|---|---|"]
    for scenario in suite.ALL:
        row = rows.get(scenario.name)
        if row is None:
            lines.append(f"| {scenario.name} | {cell(scenario.title)} | {cell(scenario.expected)} | not run | | | not run |")
            continue
        held = sum(check["held"] for check in row["checks"])
        # Which node got what is a table of its own.
        measured = "; then ".join(row["measured"][-1:] if row["name"] == "unlike" else row["measured"]) or row["error"] or ""
        lines.append(
            f"| {row['name']} | {cell(row['title'])} | {cell(row['expected'])} | {cell(measured)} | "
            f"{held} of {len(row['checks'])} | {row['seconds']:.0f} | {'pass' if row['passed'] else '**FAIL**'} |"
        )
    return [*lines, *(line for path, report in reports.items() for line in ("", source(path, report)))]


def unlike() -> list[str]:
    """What every node type got."""
    row = results()[0].get("unlike")
    if row is None:
        return ["Not run."]
    lines = ["| node | node type | image, architecture and backend that its boot chose |", "|---|---|---|"]
    for text in row["measured"][:-1]:
        node, kind, rest = text.replace(":", "", 1).split(" ", 2)
        lines.append(f"| {node} | {kind} | {cell(rest)} |")
    return lines


def scale() -> list[str]:
    """What a rollout costs."""
    if not list(REPORTS.glob("scale-*.json")):
        return ["Not measured."]
    path, report = newest("scale")
    lines = [
        "| with | run | nodes that work | changed | s | s a node | controller CPU s | CPU s a node | controller peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['who']} | {row['what']} | {row['working']} of {row['nodes']} | {row['changed']} | {row['seconds']:.0f} | "
            f"{row['seconds_a_node']:.1f} | {row['controller_cpu_seconds']:.0f} | {row['cpu_seconds_a_node']:.2f} | "
            f"{row['controller_peak_mb']} |"
        )
    return [*lines, "", source(path, report)]


def simulated() -> list[str]:
    """Rollouts of many nodes, estimated."""
    spent, basis = ASSUMED_CPU_SECONDS, "assumed, as it was not measured"
    if list(REPORTS.glob("scale-*.json")):
        path, report = newest("scale")
        install = next(row for row in report["rows"] if row["who"] == "attnkit.fleet" and row["what"] == "install")
        spent, basis = install["cpu_seconds_a_node"], path
    lines = ["| estimate | nodes | hours | pulls | boots | controller |", "|---|---|---|---|---|---|"]
    for title, nodes, assumed in estimate.PLANS:
        found = estimate.rollout(nodes, assumed, spent)
        shown = " | ".join(f"{found[name]:.1f}" for name in ("hours", "pull", "boot", "controller"))
        lines.append(f"| {title} | {nodes} | {shown} |")
    first = estimate.Assumed()
    return [
        *lines,
        "",
        f"Estimates, not measurements: simulated by `deploy/lab/estimate.py` from {spent:.2f} CPU seconds a node ({basis}) and "
        f"assumptions: {first.image_gb:.0f} GB of an image to pull, {first.node_gbit:.0f} Gbit/s for a node, "
        f"{first.source_gbit:.0f} Gbit/s from a registry or mirror, {first.boot_s:.0f} s (median) from start to completion.",
    ]


TABLES = {"faults": faults, "unlike": unlike, "scale": scale, "simulated": simulated}


def page(text: str) -> str:
    """The page with new tables."""
    for name, make in TABLES.items():
        head, tail = f"<!-- {name} -->\n", "<!-- end -->"
        pattern = re.compile(f"{re.escape(head)}.*?{re.escape(tail)}", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{PAGE.name} has no place for the table {name!r}")
        table = head + "\n".join(make()) + "\n" + tail
        text = pattern.sub(table.replace("\\", r"\\"), text, count=1)
    return text


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is stale")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if new == old:
        return 0
    if check:
        print(f"{PAGE.relative_to(ROOT)} is stale: run python -m deploy.lab.tables")
        return 1
    PAGE.write_text(new, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
