"""The lab's reports: JSON, one a run, with what is needed to run it again."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from deploy.demo import fleet
from deploy.lab.machines import ROOT
from deploy.lab.scenario import Case, Scenario
from images.builder import build

BEGAN = datetime.datetime.now(tz=datetime.timezone.utc)
"""Of this run."""
KEPT = ROOT / "docs" / "reports" / "fleet"


def header(kind: str, command: str, nodes: int) -> dict[str, Any]:
    """Date, command, versions, machine."""
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE)
    revision = build.git("rev-parse", "--short=12", "HEAD")
    changed = build.git("status", "--porcelain", "--", "attnkit", "deploy", "profiles")
    return {
        "kind": "fleet",
        "of": kind,
        "date": BEGAN.date().isoformat(),
        "time": BEGAN.strftime("%H:%M"),
        "command": command,
        "nodes": nodes,
        "revision": revision + ("-dirty" if changed else ""),
        "versions": {
            "attnkit": build.version(),
            "ansible-core": metadata.version("ansible-core"),
            "python": platform.python_version(),
            "engine": fleet.docker("version", "--format", "{{.Server.Version}}"),
            "kernel": platform.release(),
        },
        "machine": {
            "cpu": model[1].strip() if model else platform.machine(),
            "cores": os.cpu_count(),
            "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
            "load_at_the_end": [round(value, 1) for value in os.getloadavg()],
        },
    }


def faults(found: list[tuple[Scenario, Case]], command: str, nodes: int) -> dict[str, Any]:
    """The report of a run of scenarios."""
    return {
        **header("faults", command, nodes),
        "stand_ins": "no kernel ran: every image is a stand-in with a simulated device, every verdict is 'planted'",
        "scenarios": [case.as_json(scenario) for scenario, case in found],
    }


def scale(rows: list[dict[str, Any]], nodes: int) -> dict[str, Any]:
    """The report of what rollouts cost."""
    return {**header("scale", "python -m deploy.lab --scale", nodes), "rows": rows}


def write(path: Path, document: dict[str, Any]) -> Path:
    """Write a report; returns its path."""
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def keep(path: Path) -> Path:
    """Copy a report to where the documentation is made from."""
    KEPT.mkdir(parents=True, exist_ok=True)
    document = json.loads(path.read_text(encoding="utf-8"))
    return Path(shutil.copy2(path, KEPT / f"{document['of']}-{document['date']}-{document['time'].replace(':', '')}.json"))
