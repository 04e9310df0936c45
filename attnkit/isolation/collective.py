"""The collective check: devices that will serve one model together exchange data, and every rank must have the right bits.

A rank on a wrong or a dead link fails later and worse: as wrong tokens, or as an engine that hangs. So before the engine
starts, a process for each device joins a group as the engine's workers will (`attnkit.isolation.collective_rank`): all-gather
and all-reduce, compared with what one device computes alone, then the bandwidth, compared with what the links promise.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnkit.hardware.device import Device
from attnkit.hardware.health import Health
from attnkit.hardware.torch_names import torch_kind
from attnkit.isolation.injected import WRONG_RANK, Injected
from attnkit.isolation.processes import ChildTask, messages
from attnkit.selftest.results import Outcome, roll_up

TIMEOUT_SECONDS = 180.0
FAR_BELOW = 0.25
"""Fraction of the promised bandwidth under which there is a finding; a sound NVLink or PCIe reaches more than half."""

BACKENDS = {"cuda": "nccl", "xpu": "xccl", "cpu": "gloo"}
"""torch.distributed's backend by torch's device type; "nccl" is RCCL on ROCm."""

_MEASURED_BYTES = {"cuda": 256 << 20, "xpu": 256 << 20, "cpu": 1 << 20}
_ELEMENTS = {"cuda": 1 << 20, "xpu": 1 << 20, "cpu": 1 << 16}
_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""Of one PCIe lane in one direction, by generation (PCI-SIG: transfer rate less the encoding)."""


@dataclass(frozen=True)
class RankRequest:
    """What one rank is to do.

    Args:
        rank, world: its number, and how many there are.
        backend: nccl, xccl or gloo.
        store: file through which the ranks find one another.
        torch_device: where its tensors live.
        elements: how many numbers each exchange carries.
        measured_bytes: size of the all-reduce whose bandwidth is measured.
        timeout: seconds that one collective may take.
        wrong: deliver the data of another rank (an injected fault).
    """

    rank: int
    world: int
    backend: str
    store: str
    torch_device: str
    elements: int
    measured_bytes: int
    timeout: float
    wrong: bool = False


@dataclass(frozen=True)
class CollectiveCheck:
    """One exchange, as all ranks saw it.

    Args:
        check: "all-gather-int32", "all-reduce-bfloat16" …
        outcome: pass, or fail where any rank has other bits than one device computes.
        reason: which ranks are wrong, in words.
    """

    check: str
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True)
class CollectiveResult:
    """The collective check of the devices that serve one model together.

    Args:
        outcome: pass, fail, inconclusive, or skipped where it cannot be asked.
        backend: what carried the data: nccl, xccl, gloo.
        ranks: the device of each rank.
        checks: every exchange.
        bus_bytes_per_s: of a large all-reduce: bytes / seconds × 2 (ranks − 1) / ranks, as nccl-tests counts; None where
            not measured.
        promised_bytes_per_s: what each device's links carry in one direction, None where not known.
        findings: what is worth knowing, in sentences.
        reason: why not pass.
        seconds: time of the whole check.
        simulated: True where the ranks ran on the CPU in the place of simulated devices.
        fault: the injected fault, None without.
    """

    outcome: Outcome
    backend: str
    ranks: tuple[str, ...]
    checks: tuple[CollectiveCheck, ...] = ()
    bus_bytes_per_s: float | None = None
    promised_bytes_per_s: float | None = None
    findings: tuple[str, ...] = ()
    reason: str = ""
    seconds: float = 0.0
    simulated: bool = False
    fault: str | None = None


def check_collectives(
    devices: Sequence[Device],
    *,
    environment: Mapping[str, str] | None = None,
    healths: Sequence[Health | None] = (),
    fault: Injected | None = None,
    simulated: bool = False,
    timeout: float = TIMEOUT_SECONDS,
) -> CollectiveResult:
    """Run the check: a process for each device.

    Args:
        devices: one a rank, as the engine numbers them; a CPU may stand there several times.
        environment: variables that make a process see exactly these devices, in this order.
        healths: the state of each device, which says what its links promise; empty where not known.
        fault: WRONG_RANK is injected on its devices (by index; ranks of a CPU by rank); others do nothing here.
        simulated: run the ranks on the CPU in the place of devices that are not here.
        timeout: seconds that it may take.
    """
    kind = "cpu" if simulated else torch_kind(devices[0])
    labels = tuple(f"rank {rank}: {device.label}" for rank, device in enumerate(devices))
    if kind is None:
        return CollectiveResult("skipped", "", labels, reason=f"torch.distributed does not drive {devices[0].vendor}'s devices")
    wrong = fault if fault is not None and fault.name == WRONG_RANK else None
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="attnkit-collective-") as folder:
        # Gloo looks its own host name up, which a container without a network cannot.
        shared = {**({} if "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": "lo"}), **(environment or {})}
        tasks = [
            ChildTask(
                "attnkit.isolation.collective_rank",
                f"the process of {labels[rank]}",
                RankRequest(
                    rank=rank,
                    world=len(devices),
                    backend=BACKENDS[kind],
                    store=str(Path(folder, "store")),
                    torch_device=kind if kind == "cpu" else f"{kind}:{rank}",
                    elements=_ELEMENTS[kind],
                    measured_bytes=_MEASURED_BYTES[kind],
                    timeout=timeout,
                    wrong=wrong is not None and (wrong.on(device) if device.kind != "cpu" else rank in wrong.devices),
                ),
                timeout,
                shared,
            )
            for rank, device in enumerate(devices)
        ]
        result = _judge(tasks, labels, _Group(len(devices)))
    promised = None if kind == "cpu" else promised_bandwidth(healths)
    return replace(
        result,
        backend=BACKENDS[kind],
        promised_bytes_per_s=promised,
        findings=tuple(_slow(result.bus_bytes_per_s, promised)),
        seconds=round(time.monotonic() - started, 3),
        simulated=simulated,
        fault=None if wrong is None else wrong.name,
    )


def promised_bandwidth(healths: Sequence[Health | None]) -> float | None:
    """Bytes a second that the links of the weakest device carry in one direction: NVLink where all have it, else PCIe.

    PCIe counts at the highest generation, to which an idle link comes back under load, and at the width it has now.
    """
    known = [health for health in healths if health is not None]
    if not known or len(known) < len(healths):
        return None
    fabric = [h.links * h.link_mb_per_s * 1e6 if h.links and h.link_mb_per_s else None for h in known]
    if all(fabric):
        return min(rate for rate in fabric if rate is not None)
    lanes = [(_LANE_BYTES_PER_S.get(h.pcie_generation_max or 0), h.pcie_width) for h in known]
    rates = [rate * width for rate, width in lanes if rate and width]
    return min(rates) if len(rates) == len(known) else None


def _slow(measured: float | None, promised: float | None) -> list[str]:
    if measured is None or promised is None or measured >= FAR_BELOW * promised:
        return []
    return [
        f"all-reduce moves {measured / 1e9:.1f} GB/s, {measured / promised:.0%} of the {promised / 1e9:.0f} GB/s of the links"
    ]


class _Group:
    """What the ranks have said."""

    def __init__(self, world: int) -> None:
        self.steps: list[list[str]] = [[] for _ in range(world)]
        self.seen: dict[str, dict[int, dict[str, Any]]] = {}
        self.rates: list[float] = []

    def checks(self, labels: Sequence[str]) -> tuple[CollectiveCheck, ...]:
        return tuple(self._check(name, said, labels) for name, said in self.seen.items())

    def _check(self, name: str, said: dict[int, dict[str, Any]], labels: Sequence[str]) -> CollectiveCheck:
        """Whose data is wrong, where the ranks can tell (all-gather); else who has a wrong result."""
        sources = sorted({source for one in said.values() for source in one["wrong_from"]})
        if sources:
            return CollectiveCheck(name, "fail", f"wrong data from {'; '.join(labels[source] for source in sources)}")
        wrong = [rank for rank, one in sorted(said.items()) if one["reason"]]
        if wrong:
            where = "on every rank" if len(wrong) == len(labels) else f"on {'; '.join(labels[rank] for rank in wrong)}"
            return CollectiveCheck(name, "fail", f"{said[wrong[0]]['reason']} ({where})")
        return CollectiveCheck(name, "pass")


def _judge(tasks: Sequence[ChildTask], labels: tuple[str, ...], group: _Group) -> CollectiveResult:
    problem: tuple[Outcome, str] | None = None
    for rank, message in messages(tasks):
        if "step" in message:
            group.steps[rank].append(message["step"])
        elif "check" in message:
            group.seen.setdefault(message["check"]["name"], {})[rank] = message["check"]
        elif "rate" in message:
            group.rates.append(message["rate"])
        elif "error" in message:
            problem = "inconclusive", f"{labels[rank]}: {message['error']}"
            break  # the others would wait for it until their time is over
        elif "problem" in message:
            problem = _broken(message, group, labels)
            break
    checks = group.checks(labels)
    outcomes: list[Outcome] = [check.outcome for check in checks]
    failed = [check for check in checks if check.outcome == "fail"]
    wrong = f"{failed[0].check}: {failed[0].reason}" if failed else ""
    wrong += f"; {len(failed) - 1} more of {len(checks)} exchanges are wrong" if len(failed) > 1 else ""
    if problem is not None:
        outcomes.append(problem[0])
    return CollectiveResult(
        outcome=roll_up(outcomes),
        backend="",
        ranks=labels,
        checks=checks,
        bus_bytes_per_s=min(group.rates) if len(group.rates) == len(tasks) else None,
        reason="; ".join(filter(None, (wrong, problem[1] if problem else ""))),
    )


def _broken(message: dict[str, Any], group: _Group, labels: Sequence[str]) -> tuple[Outcome, str]:
    """A rank that crashed is named; where time ran out, those that got less far than the others, or else the links."""
    reason = message["reason"]
    if "did not finish" not in reason:
        return message["problem"], reason
    least = min(len(steps) for steps in group.steps)
    behind = [rank for rank, steps in enumerate(group.steps) if len(steps) == least]
    where = group.steps[behind[0]][-1] if least else "start"
    if len(behind) < len(labels):
        return "fail", f"{reason}; behind the others, at {where}: {'; '.join(labels[rank] for rank in behind)}"
    return "fail", f"{reason}; every rank waits at {where}: the link between them does not carry it"
