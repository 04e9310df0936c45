"""The lab's machines: nodes of different hardware, each with its own Docker and a recorded tree of sys, proc and dev."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo import fleet
from deploy.demo.fleet import Fleet, Machine, Node

ROOT = fleet.ROOT
TREES = ROOT / "tests" / "data" / "trees"
PREFIX = os.environ.get("ATTNKIT_LAB", "attnkit-lab")
"""The name of the lab: another one is another fleet, beside the first, on this machine."""
LAB = Fleet(prefix=PREFIX, state=ROOT / ".cache" / PREFIX, host_port=int(os.environ.get("ATTNKIT_LAB_PORT", "5001")))
BASE_IMAGE = f"{LAB.prefix}-machine"
KINDS = ("rtx-2080-ti", "a100", "h100", "mi300x", "intel-arc", "intel-xeon", "tpu-v5e")
"""The node types of the lab, as their trees are named; a fleet larger than this goes round."""
PORT = 8000
CONFIRM_SECONDS = 60
"""After which a node decides by itself; a stand-in boots in a few seconds."""
SMALL_DISK_BYTES = 400_000_000
ENVIRONMENT = {
    "ATTNKIT_ROOT": "/recorded",
    "ATTNKIT_PLANTED_ANSWER": "right",
    "ATTNKIT_LEVEL": "quick",
    "ATTNKIT_HEALTH_URL": f"http://127.0.0.1:{PORT}/health",
}


@dataclass(frozen=True)
class LabNode:
    """A node of the lab.

    Args:
        name: in the inventory.
        kind: its node type.
        small_disk: whether its Docker keeps images on a small file system in memory (for a disk that fills up).
    """

    name: str
    kind: str
    small_disk: bool = False

    @property
    def tree(self) -> Path:
        """Its recorded hardware; a copy, so that a scenario may change it."""
        return LAB.state / "trees" / self.name

    def machine(self) -> Machine:
        """How it is started."""
        options = ["--mount", f"type=bind,source={self.tree},target=/recorded,readonly"]
        if self.small_disk:
            options += ["--mount", f"type=tmpfs,destination=/var/lib/docker,tmpfs-size={SMALL_DISK_BYTES},tmpfs-mode=0710"]
        return Machine(self.name, tuple(options), storage=not self.small_disk)


def lab_nodes(count: int, small_disk: str = "") -> list[LabNode]:
    """`count` nodes named node-01, node-02 …, their kinds in turn."""
    names = [f"node-{number:02}" for number in range(1, count + 1)]
    return [LabNode(name, KINDS[i % len(KINDS)], small_disk=name == small_disk) for i, name in enumerate(names)]


def record_tree(node: LabNode, *, driver: str | None = None) -> None:
    """Put the node's tree in place, anew; `driver` replaces the version of its NVIDIA driver."""
    node.tree.mkdir(parents=True, exist_ok=True)
    source = TREES / node.kind
    for path in sorted(source.rglob("*")):
        target = node.tree / path.relative_to(source)
        if path.is_dir():
            target.mkdir(exist_ok=True)
            continue
        text = path.read_bytes()
        if driver is not None and path.relative_to(source) == Path("proc/driver/nvidia/version"):
            text = text.replace(b"580.95.05", driver.encode())
        if not target.is_file() or target.read_bytes() != text:
            target.write_bytes(text)  # in place: the node has the folder mounted


def up(nodes: Sequence[LabNode]) -> list[Node]:
    """Start what is not running yet."""
    LAB.state.mkdir(parents=True, exist_ok=True)
    fleet.node_image(BASE_IMAGE, secrets_at=LAB.state / "secrets")
    fleet.node_image(LAB.node_image_name, Path(__file__).resolve().parent / "node", BASE_IMAGE)
    for node in nodes:
        record_tree(node)
    return LAB.up([node.machine() for node in nodes])


def down() -> None:
    """Remove every machine of the lab, whatever its number."""
    listed = fleet.docker("ps", "-a", "--format", "{{.Names}}", "--filter", f"name=^{LAB.prefix}-node-")
    LAB.down([name.removeprefix(f"{LAB.prefix}-") for name in listed.split()])
    shutil.rmtree(LAB.state, ignore_errors=True)


def inventory(
    nodes: Sequence[Node], images: Mapping[str, str], *, file: str, hosts: Mapping[str, Mapping[str, Any]], **more: Any
) -> Path:
    """The inventory of the lab: one command for every node type, its platform's image by digest, recorded hardware.

    Args:
        nodes: the running nodes.
        images: image by platform.
        file: name of the file.
        hosts: variables of single nodes, by name.
        more: variables of the whole fleet, over those here.
    """
    document = {
        "attnkit": {
            "hosts": {node.name: {"ansible_host": node.address, **hosts.get(node.name, {})} for node in nodes},
            "vars": {
                **LAB.ssh_variables(),
                "attnkit_images": dict(images),
                "attnkit_root": "/recorded",
                "attnkit_volumes": ["/recorded:/recorded:ro"],
                "attnkit_accept_planted": True,
                "attnkit_commands": {name: ["stand-in-engine", name, "--port", str(PORT)] for name in images},
                "attnkit_env": ENVIRONMENT,
                "attnkit_port": PORT,
                "attnkit_gate_timeout": 180,
                "attnkit_confirm_timeout": CONFIRM_SECONDS,
                "attnkit_image_bytes": 150_000_000,
                "attnkit_page": "",
                "attnkit_plan_dir": "",
                **more,
            },
        }
    }
    path = LAB.state / "inventories" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path
