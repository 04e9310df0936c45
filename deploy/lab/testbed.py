"""What a scenario works with: the machines, the releases in the registry, rollouts, and a fleet that is restored in between."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.demo import fleet
from deploy.demo.fleet import Node
from deploy.lab import controller, machines, probe
from deploy.lab.controller import Moment, Run
from deploy.lab.machines import LAB, LabNode
from deploy.lab.probe import State
from images.builder import container_engine

RELEASES = ("1", "2", "3")
"""What is in the registry for every platform: the old one, the new one and a third change places from scenario to scenario."""
FILLER = "/var/lib/docker/filler"


class Testbed:
    """The lab as a scenario uses it.

    Args:
        nodes: every node of the lab.
        hosts: the same as they run.
        images: image by platform by release, as nodes pull it.
        out: folder for the logs.
        releases: the old one, which the fleet serves when a scenario starts, the new one, and a third.
    """

    def __init__(
        self,
        nodes: Sequence[LabNode],
        hosts: Sequence[Node],
        images: Mapping[str, Mapping[str, str]],
        out: Path,
        releases: Sequence[str] = RELEASES,
    ) -> None:
        self.nodes = list(nodes)
        self.hosts = list(hosts)
        self.images = images
        self.out = out
        self.old, self.new, self.third = releases

    @property
    def names(self) -> list[str]:
        """The names of the nodes."""
        return [node.name for node in self.nodes]

    def part(self, count: int) -> Testbed:
        """The same with its first nodes only."""
        return self.only(*self.names[:count])

    def only(self, *names: str) -> Testbed:
        """The same with these nodes only."""
        nodes = [node for node in self.nodes if node.name in names]
        hosts = [host for host in self.hosts if host.name in names]
        return Testbed(nodes, hosts, self.images, self.out, (self.old, self.new, self.third))

    def play(
        self, playbook: str | Path, release: str, *options: str, hosts: Mapping[str, Mapping[str, Any]] | None = None,
        moments: Sequence[Moment] = (), user: str = "lab", **variables: Any,
    ) -> Run:  # fmt: skip
        """Run a playbook with the inventory of a release.

        Args:
            playbook: its name, or a file.
            release: whose images the inventory names.
            options: of ansible-playbook.
            hosts: variables of single nodes, by name.
            moments: what happens on the way.
            user: the operator.
            variables: of the whole fleet.
        """
        name = playbook.stem if isinstance(playbook, Path) else playbook
        stem = f"{user}-{len(list(self.out.glob('*.log'))):03}-{name}"
        inventory = machines.inventory(self.hosts, self.images[release], file=f"{stem}.json", hosts=hosts or {}, **variables)
        return controller.play(playbook, inventory, self.out / f"{stem}.log", *options, moments=moments, user=user)

    def roll(self, release: str, *options: str, **more: Any) -> Run:
        """A rollout of a release."""
        return self.play("rollout", release, *options, **more)

    def probe(self) -> dict[str, State]:
        """What the nodes serve now."""
        return probe.all_of(self.hosts)

    def on(self, name: str, *command: str, check: bool = True) -> str:
        """Run a command on a node, without SSH."""
        return fleet.docker("exec", LAB.container(name), *command, check=check)

    def outer(self, *command: str, check: bool = True) -> str:
        """Run a command of the outer Docker: what happens to machines."""
        return fleet.docker(*command, check=check)

    def power_off(self, name: str) -> None:
        """The machine loses power."""
        self.outer("kill", LAB.container(name))

    def power_on(self, name: str) -> None:
        """It starts again; returns once its Docker answers."""
        self.outer("start", LAB.container(name))
        LAB.wait_for(self._host(name))

    def freeze(self, name: str) -> None:
        """The machine stops in its tracks: it answers nothing, and nothing on it goes on."""
        self.outer("pause", LAB.container(name))

    def thaw(self, name: str) -> None:
        """It goes on."""
        self.outer("unpause", LAB.container(name))

    def container(self, name: str) -> str:
        """The outer container that is this machine."""
        return LAB.container(name)

    def until_it_works(self, name: str, seconds: float = 120.0) -> dict[str, State]:
        """The fleet's states as soon as this node works, or when the time is over."""
        deadline = time.monotonic() + seconds
        while not probe.one(self._host(name)).works and time.monotonic() < deadline:
            time.sleep(1)
        return self.probe()

    def fill(self, name: str, leave: int) -> None:
        """Fill the disk of the node's Docker until `leave` MB are free."""
        free = int(self.on(name, "df", "--output=avail", "-B1M", "/var/lib/docker").split()[-1])
        self.on(name, "fallocate", "-l", f"{max(1, free - leave)}M", FILLER)

    @contextmanager
    def altered_in_registry(self, release: str, name: str) -> Iterator[None]:
        """The image of this node in the registry's storage has another content under the same digests, meanwhile."""
        platform = json.loads(self.on(name, "cat", "/var/lib/attnkit/release.json"))["release"]["platform"]
        digest = self.images[release][platform].partition("@sha256:")[2]
        blobs = "/var/lib/registry/docker/registry/v2/blobs/sha256"
        manifest = json.loads(self.outer("exec", LAB.registry, "cat", f"{blobs}/{digest[:2]}/{digest}/data"))
        config = manifest["config"]["digest"].removeprefix("sha256:")
        file = f"{blobs}/{config[:2]}/{config}/data"
        # The same length, and still a good configuration: only its digest tells.
        self.outer("exec", LAB.registry, "sed", "-i.kept", "s/STAND-IN/STAND-UP/", file)
        try:
            yield
        finally:
            self.outer("exec", LAB.registry, "mv", f"{file}.kept", file)

    def registry(self, running: bool) -> None:
        """The registry dies, or comes back."""
        self.outer("start" if running else "kill", LAB.registry)

    def _host(self, name: str) -> Node:
        return next(host for host in self.hosts if host.name == name)

    def restore(self) -> None:
        """Undo what a scenario left: machines on, hardware as recorded, and what most nodes serve is the old release now."""
        self.outer("start", LAB.registry, check=False)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._restore_machine, self.nodes))
        states = self.probe()
        served = {release: sum(state.serves(release) for state in states.values()) for release in RELEASES}
        self.old = max(RELEASES, key=lambda release: served[release])
        self.new, self.third = (release for release in RELEASES if release != self.old)
        ill = [name for name, state in states.items() if not state.serves(self.old) or state.raw.get("locked_by")]
        if ill:
            done = self.only(*ill).roll(self.old)
            if done.code != 0:
                raise fleet.DemoError(f"the fleet could not be restored:\n{done.text[-3000:]}")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._forget, self.names))

    def strip(self) -> None:
        """Every node as it was before anything was rolled to it."""
        script = "docker rm -f attnkit-watch attnkit-before attnkit; docker image prune -a -f; rm -rf /var/lib/attnkit"
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda name: self.on(name, "sh", "-c", script), self.names))

    def _restore_machine(self, node: LabNode) -> None:
        container = LAB.container(node.name)
        subprocess.run([container_engine.client(), "unpause", container], capture_output=True, check=False)
        machines.record_tree(node)
        if fleet.docker("inspect", "--format", "{{.State.Running}}", container) != "true":
            self.power_on(node.name)
        self.on(node.name, "rm", "-f", FILLER)

    def _forget(self, name: str) -> None:
        """Images that nothing runs from go, so that the next scenario pulls again."""
        self.on(name, "docker", "image", "prune", "-a", "-f")
