"""The devices of a boot: each tested in a process of its own, what became of each, and which of them the engine gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attnkit.boot.candidates import Candidate
from attnkit.boot.report import BootVerdict, DeviceReport
from attnkit.hardware.device import Device
from attnkit.hardware.findings import findings
from attnkit.hardware.health_probe import read_all
from attnkit.hardware.narrow import narrow
from attnkit.isolation.compare import compare_devices
from attnkit.isolation.injected import Injected
from attnkit.isolation.messages import Request
from attnkit.isolation.parent import DeviceTask, Kernels, beside, run_on_devices
from attnkit.select.plan import Plan
from attnkit.selftest.results import CaseResult, Level, Verdict, roll_up


@dataclass(frozen=True)
class Tested:
    """One device with one candidate.

    Args:
        verdicts: one per spec.
        outcome: what they come to; "planted" for a simulated device that was right.
    """

    device: Device
    verdicts: tuple[Verdict, ...]
    outcome: BootVerdict

    @property
    def serves(self) -> bool:
        """Whether the engine may use it."""
        return self.outcome in ("pass", "planted")

    @property
    def why(self) -> str:
        """The first case that did not pass, in words."""
        for outcome in ("fail", "inconclusive"):
            for verdict in self.verdicts:
                for case in verdict.cases:
                    if case.outcome == outcome:
                        return f"{outcome}: {case.case}: {case.reason}"
        return "no case of the self-test ran"


def run_candidate(
    candidate: Candidate,
    plan: Plan,
    level: Level,
    *,
    fault: Injected | None,
    simulated: str | None,
    environment: Mapping[str, str],
    timeout: float,
    on_case: Callable[[Device, CaseResult], None],
    on_kernels: Callable[[Kernels], None],
) -> tuple[Tested, ...]:
    """Test a candidate on every device that serves, all at once.

    Args:
        fault, simulated: as given on the command line.
        environment: this process's, whose visible-device variables are narrowed to one device for each child.
        timeout: seconds that each device may take.
        on_case: called with the device after each case.
        on_kernels: called as each device is done.

    Raises:
        UsageError: a device cannot be chosen by the variables of its vendor.
    """
    devices = plan.node.devices or (plan.node.device,)
    everything = plan.node.detection.devices if plan.node.detection else devices
    engines = beside(plan.settings.engine_env, environment)
    tasks = [
        DeviceTask(
            Request(
                backend=candidate.test,
                provider=candidate.provider,
                device=device,
                specs=plan.requirements.specs,
                level=level,
                fault=fault.in_selftest(device) if fault else None,
                planted_answer=simulated,
            ),
            timeout,
            engines | ({} if simulated is not None else narrow(everything, [device], environment)),
        )
        for device in devices
    ]
    found = run_on_devices(tasks, on_case=lambda position, case: on_case(devices[position], case), on_kernels=on_kernels)
    return tuple(
        Tested(device, verdicts, rolled_up(verdicts, simulated))
        for device, verdicts in zip(devices, compare_devices(devices, found), strict=True)
    )


def rolled_up(verdicts: Sequence[Verdict], simulated: str | None) -> BootVerdict:
    """What several verdicts come to; a simulated device that is right is never a pass."""
    if simulated is not None and all(verdict.outcome == "skipped" for verdict in verdicts):
        return "planted"
    return roll_up(verdict.outcome for verdict in verdicts)


def most_kernels(counts: Sequence[Kernels]) -> Kernels:
    """The counts of equal devices as one: those of the device with the most, as each has the same kernels."""
    most = Kernels(max(count.baked for count in counts), max(count.jit_compiles for count in counts))
    return replace(most, unused=next((count.unused for count in counts if count.unused), ""))


def bad_devices(tested: Sequence[Tested]) -> str:
    """Which devices failed where others passed, each by index, UUID and PCI address, with its reason."""
    return "; ".join(f"{one.device.label}: {one.why}" for one in tested if not one.serves)


def device_reports(devices: Sequence[Device], root: Path, memory_share: float) -> list[DeviceReport]:
    """The report's row of each device before it was tested, with its state.

    Args:
        root: where its state is read ("/" for this machine).
        memory_share: fraction of a GPU's memory that serving takes.
    """
    return [
        DeviceReport(
            index=d.index,
            name=d.name,
            arch=d.arch,
            uuid=d.uuid,
            pci_address=d.pci_address,
            part=d.part,
            health=health,
            findings=findings(d, health, memory_share=memory_share),
        )
        for d, health in zip(devices, read_all(devices, root), strict=True)
    ]


def record(rows: Sequence[DeviceReport], tested: Sequence[Tested]) -> None:
    """Write what became of the devices into their rows."""
    for row, one in zip(rows, tested, strict=True):
        row.verdict, row.reason = one.outcome, "" if one.serves else one.why
        row.seconds = round(max((verdict.seconds for verdict in one.verdicts), default=0.0), 3)
