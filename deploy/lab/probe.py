"""What the lab's nodes serve, read from the nodes: what Docker says, what the report says, and an answer over the network."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from deploy.demo import fleet
from deploy.demo.fleet import Node
from deploy.lab.machines import LAB, PORT

ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class State:
    """One node, now.

    Args:
        up: whether the machine runs and answers.
        raw: what node/state.py said.
        answers: whether a completion came back over the network.
    """

    up: bool
    raw: dict[str, Any] = field(default_factory=dict)
    answers: bool = False

    @property
    def container(self) -> dict[str, Any]:
        """The service's container, empty where there is none."""
        return self.raw.get("container") or {}

    @property
    def release(self) -> str | None:
        """The release of the image that runs, by the label in the image."""
        return (self.container.get("labels") or {}).get("attnkit.release")

    @property
    def recorded(self) -> str | None:
        """The image that is recorded as validated."""
        return self.raw.get("recorded")

    @property
    def report(self) -> dict[str, Any]:
        """The boot report of this start of the service, empty where there is none."""
        return self.raw.get("report") or {}

    @property
    def began(self) -> tuple[str | None, str | None]:
        """Tells one start of a service from another."""
        return self.container.get("id"), self.container.get("started")

    @property
    def works(self) -> bool:
        """Whether the service passed its self-test on the simulated device, is ready, and answers."""
        return (
            bool(self.container.get("running")) and bool(self.raw.get("ready")) and self.report.get("verdict") == "planted"
        ) and self.answers

    def serves(self, release: str) -> bool:
        """Whether it works, from the image of this release, by a digest that Docker knows it by, and is recorded so."""
        image = self.container.get("image")
        return self.works and self.release == release and image in self.container["digests"] and self.recorded == image

    def words(self) -> str:
        """In short, for a table."""
        if not self.up:
            return "down"
        if not self.container:
            return "no service"
        word = "works" if self.works else f"does not work ({self.report.get('verdict') or 'no report'})"
        return f"release {self.release} {word}"


def one(node: Node, container: str = "attnkit") -> State:
    """The state of one node. A machine that is frozen or off is down."""
    shown = fleet.docker("inspect", "--format", "{{.State.Running}} {{.State.Paused}}", LAB.container(node.name), check=False)
    if shown != "true false":
        return State(up=False)
    text = fleet.docker(
        "exec", LAB.container(node.name), "python3", "/usr/local/bin/state.py", "--container", container, check=False
    )
    return State(up=True, raw=json.loads(text), answers=ask(node)) if text else State(up=False)


def ask(node: Node) -> bool:
    """Whether the node's service completes a text, asked as a client would."""
    body = json.dumps({"model": "stand-in", "prompt": "one two", "max_tokens": 4}).encode()
    request = urllib.request.Request(f"http://{node.address}:{PORT}/v1/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return bool(json.load(answer)["usage"]["completion_tokens"] == 4)
    except (OSError, ValueError, KeyError):
        return False


def all_of(nodes: Sequence[Node]) -> dict[str, State]:
    """The states by name."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip([node.name for node in nodes], pool.map(one, nodes), strict=True))
