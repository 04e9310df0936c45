"""`make demo`: from nothing to a fleet of three that serves, each node validated by its own boot report.

python -m deploy.demo               build, start the fleet, roll out, ask every node, show a table; a second run changes nothing
python -m deploy.demo --fault NAME  rehearse a failing node: roll out with that self-test fault injected, and check that the
                                    rollout stopped, the canary was reverted, and the others were not changed
python -m deploy.demo --down        remove all of it
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.demo import fleet
from deploy.demo.fleet import DEMO, DemoError, Machine, Node
from images.builder import build, container_engine, platforms, venv

OUT = fleet.ROOT / "out" / "demo"
DEPLOY = fleet.ROOT / "deploy"
NODES = ("node-1", "node-2", "node-3")
PORT = 8000
MODEL = "tiny"
PROMPT = "The license of this software"
COMMAND = [
    "vllm", "serve", "/models/tiny", "--served-model-name", MODEL, "--host", "0.0.0.0", "--port", str(PORT),
    "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16",
]  # fmt: skip
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""The nodes share the cores of one computer: more threads each would wait for one another by spinning, and a worker in a
process of its own would import everything once more."""

console = Console()


class Progress:
    """Numbered steps with their seconds."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.number = 0

    def step(self, text: str) -> None:
        """Say what comes now."""
        self.number += 1
        console.print(f"[bold cyan]{self.number}.[/] {text} [dim]({time.monotonic() - self.started:.0f} s)[/]", highlight=False)


def inventory(nodes: list[Node], image: str, environment: dict[str, str]) -> Path:
    """The inventory of this fleet, as an operator would write it."""
    hosts = {node.name: {"ansible_host": node.address} for node in nodes}
    document = {
        "attnkit": {
            "hosts": hosts,
            "vars": {
                **DEMO.ssh_variables(),
                "ansible_python_interpreter": "/usr/bin/python3",  # known, so not looked for in every run
                "attnkit_images": {"cpu": image, "ipex": image},
                "attnkit_command": COMMAND,
                "attnkit_env": environment,
                "attnkit_port": PORT,
                "attnkit_init_command": ["tiny-model", "/models/tiny"],
                "attnkit_init_creates": "/var/lib/attnkit/models/tiny/config.json",
                "attnkit_image_bytes": 6_000_000_000,
                "attnkit_plan_dir": str(OUT),
            },
        }
    }
    file = DEMO.state / "inventory.json"
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return file


def play(playbook: str, hosts: Path, log: str, *options: str) -> tuple[int, str]:
    """Run a playbook; what it says is shown as it comes, and kept in out/demo."""
    environment = {
        **os.environ,
        "ANSIBLE_HOME": str(DEMO.state / "ansible"),
        "ANSIBLE_CONFIG": str(DEPLOY / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(hosts), f"playbooks/{playbook}", *options]
    text: list[str] = []
    with (OUT / log).open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            command, cwd=DEPLOY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert child.stdout is not None
        for line in child.stdout:
            file.write(line)
            file.flush()
            text.append(line)
            console.print(f"   {line.rstrip()}", markup=False, highlight=False, soft_wrap=True)
    return child.wait(), "".join(text)


def changed(recap: str) -> dict[str, int]:
    """How many tasks changed something, by node."""
    return {m[1]: int(m[2]) for m in re.finditer(r"^(?!localhost )(\S+)\s*:\s*ok=\d+\s+changed=(\d+)", recap, re.MULTILINE)}


def read_node(node: Node) -> dict[str, Any]:
    """Report, release record and events of a node, fetched from it and kept in out/demo/NODE."""
    folder = OUT / node.name
    folder.mkdir(parents=True, exist_ok=True)
    container = DEMO.container(node.name)
    found: dict[str, Any] = {}
    for name, path in (("report", "run/report.json"), ("release", "release.json"), ("ready", "run/ready.json")):
        text = fleet.docker("exec", container, "cat", f"/var/lib/attnkit/{path}", check=False)
        if text:
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        found[name] = json.loads(text) if text else None
    found["started"] = fleet.docker(
        "exec", container, "docker", "inspect", "--format", "{{.State.StartedAt}}", "attnkit", check=False
    )
    log = subprocess.run(
        [container_engine.client(), "exec", container, "docker", "logs", "attnkit"], capture_output=True, text=True, check=False
    )
    (folder / "events.jsonl").write_text(log.stdout, encoding="utf-8")
    (folder / "engine.log").write_text(log.stderr, encoding="utf-8")
    return found


def ask(node: Node) -> tuple[str, float]:
    """A completion from a node, over the network as a client would; (text, tokens a second)."""
    body = json.dumps({"model": MODEL, "prompt": PROMPT, "max_tokens": 32, "temperature": 0.0, "ignore_eos": True})
    request = urllib.request.Request(
        f"http://{node.address}:{PORT}/v1/completions", body.encode(), {"Content-Type": "application/json"}
    )
    before = time.monotonic()
    with urllib.request.urlopen(request, timeout=60) as answer:
        document = json.load(answer)
    return document["choices"][0]["text"], document["usage"]["completion_tokens"] / (time.monotonic() - before)


def result_table(nodes: list[Node]) -> tuple[Table, bool]:
    """The table at the end, and whether every node passed and answered."""
    table = Table(title="the fleet", title_justify="left")
    for column in ("node", "type", "backend", "verdict", "boot s", "tokens/s", "completion"):
        table.add_column(column, overflow="fold")
    good = True
    for node in nodes:
        report = read_node(node)["report"] or {}
        try:
            text, speed = ask(node)
        except OSError as error:
            text, speed = f"none: {error}", 0.0
        passed = report.get("verdict") == "pass" and speed > 0
        good &= passed
        seconds = (report.get("boot_seconds") or {}).get("total")
        table.add_row(
            node.name,
            report.get("node_type") or "?",
            report.get("backend") or "none",
            report.get("verdict") or "no report",
            "?" if seconds is None else f"{seconds:.1f}",
            f"{speed:.0f}",
            repr(text[:28]),
            style=None if passed else "red",
        )
    return table, good


def prepare(progress: Progress) -> tuple[list[Node], str]:
    """Docker, images, machines, registry: everything that comes before the rollout. (nodes, image by digest)."""
    OUT.mkdir(parents=True, exist_ok=True)
    progress.step("Docker")
    container_engine.ensure()
    progress.step("the image: make image PLATFORM=cpu")
    platform = platforms.find("cpu", platforms.load())
    wheel = build.build_wheel()
    build.build(platform, wheel=wheel, no_cache=False, plain=True)
    venv.ensure(fleet.ROOT / ".venv", DEPLOY / "requirements.txt", [wheel])
    progress.step("the machines: a registry and three nodes, each with its own Docker, reached over SSH")
    DEMO.state.mkdir(parents=True, exist_ok=True)
    fleet.node_image(DEMO.node_image_name, secrets_at=DEMO.state / "secrets")
    nodes = DEMO.up([Machine(name) for name in NODES])
    progress.step("the image into the registry")
    return nodes, DEMO.push(build.tags(platform)[0])


def demo() -> int:
    """The whole chain; 0 if three nodes pass and answer."""
    progress = Progress()
    nodes, image = prepare(progress)
    progress.step("the rollout: detect, preflight, canary, the rest")
    code, text = play("rollout.yml", inventory(nodes, image, ENVIRONMENT), "rollout.log")
    progress.step("a completion from every node")
    table, good = result_table(nodes)
    console.print(table)
    changes = changed(text)
    console.print(
        f"changed tasks: {sum(changes.values())}; {time.monotonic() - progress.started:.0f} s in all", highlight=False
    )
    console.print(f"reports, events and logs: {OUT.relative_to(fleet.ROOT)}/", highlight=False)
    console.print(
        "next: make demo again (nothing changes), make demo-fault (a node that fails), make demo-down", highlight=False
    )
    if code != 0 or not good or len(changes) != len(nodes):
        console.print(
            f"[red]the demo failed[/] (ansible-playbook ended with {code}); see {OUT.relative_to(fleet.ROOT)}/rollout.log"
        )
        return 1
    return 0


def rehearse(fault: str) -> int:
    """A rollout that must fail, and must leave the fleet as it was; 0 if it did both."""
    from attnkit.selftest import FAULTS

    if fault not in FAULTS:
        raise DemoError(f"unknown fault {fault!r}; known: {', '.join(FAULTS)}")
    progress = Progress()
    nodes, image = prepare(progress)
    before = {node.name: read_node(node) for node in nodes}
    if not all(state["release"] for state in before.values()):
        raise DemoError("no release is recorded on the nodes; run make demo first")
    faulty = json.dumps({"attnkit_env": {**ENVIRONMENT, "ATTNKIT_FAULT": fault}})  # the inventory stays the good one
    progress.step(f"a rollout with the fault {fault!r} injected in every node's self-test: it must stop at the canary")
    code, text = play("rollout.yml", inventory(nodes, image, ENVIRONMENT), "fault.log", "-e", faulty)
    progress.step("what the fleet runs now")
    after = {node.name: read_node(node) for node in nodes}
    canary, others = nodes[0].name, [node.name for node in nodes[1:]]
    reason = next((line.strip() for line in text.splitlines() if "was injected on purpose" in line), "")
    table, serving = result_table(nodes)
    console.print(table)
    checks = {
        "the rollout failed": code != 0,
        "the reason is in view": bool(reason),
        f"{canary} is recorded with the release that it ran before": after[canary]["release"] == before[canary]["release"],
        f"{canary}'s report is of the good release, newer than before": (after[canary]["report"] or {}).get("planted_fault")
        is None
        and (after[canary]["report"] or {}).get("created") != (before[canary]["report"] or {}).get("created"),
        f"{', '.join(others)} were not changed": all(after[n]["started"] == before[n]["started"] for n in others),
        "every node serves": serving,
    }
    for what, held in checks.items():
        console.print(f"  {'[green]yes[/]' if held else '[red]NO [/]'} {what}", highlight=False)
    console.print(f"the reason, as the operator saw it: {reason[:600]}", markup=False, highlight=False)
    return 0 if all(checks.values()) else 1


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fault", metavar="NAME", help="rehearse a failing node")
    parser.add_argument("--down", action="store_true", help="remove all of the demo")
    args = parser.parse_args()
    try:
        if args.down:
            DEMO.down(NODES)
            return 0
        return rehearse(args.fault) if args.fault else demo()
    except (DemoError, container_engine.EngineError, platforms.DescriptionError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2


if __name__ == "__main__":
    sys.exit(main())
