"""What `attnkit boot` was asked for, and whether that can be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attnkit.errors import UsageError
from attnkit.isolation import simulated
from attnkit.isolation.injected import WRONG_RANK, parse_fault

MOST_SECONDS = 7 * 86400.0


@dataclass(frozen=True)
class BootOptions:
    """What `attnkit boot` was asked for.

    Args:
        command: the engine's command line; empty: validate and report only.
        report, ready, metrics: the files to write.
        node, workload, backend, model, level, fault, simulated_device: as on the command line; None where not given.
        root: alternative root for /sys and /proc.
        health_url, health_timeout: see `EngineSettings`.
        selftest_timeout: seconds allowed for each candidate's self-test on each device.
        engine_check: validate the engine's own implementation and check its log; False for an engine whose interface is not
            known yet: then attnkit's implementation is validated, and the report says that the engine's is not.
    """

    report: Path
    ready: Path
    metrics: Path
    command: tuple[str, ...] = ()
    node: str | None = None
    workload: str | None = None
    backend: str | None = None
    model: str | None = None
    level: str | None = None
    fault: str | None = None
    simulated_device: str | None = None
    root: Path = Path("/")
    health_url: str | None = None
    health_timeout: float = 600.0
    selftest_timeout: float = 900.0
    engine_check: bool = True


def check_simulated(options: BootOptions) -> None:
    """UsageError where a simulated device is none, or a fault is to go into one."""
    if options.simulated_device is None:
        return
    simulated.parse(options.simulated_device)
    if options.fault is not None and parse_fault(options.fault).name != WRONG_RANK:
        raise UsageError(
            "a fault cannot be injected into a simulated device, which runs no kernel: give --fault or --simulated-device"
        )


def check_times(options: BootOptions) -> None:
    """UsageError where a time is no time."""
    for name, seconds in (("--health-timeout", options.health_timeout), ("--selftest-timeout", options.selftest_timeout)):
        if not 1.0 <= seconds <= MOST_SECONDS:  # NaN is not between them either
            raise UsageError(f"{name} must be 1 to {MOST_SECONDS:.0f} seconds, not {seconds:g}")
