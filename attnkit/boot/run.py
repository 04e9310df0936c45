"""The images' entrypoint: detect → select → self-test → fall back → report → engine.

Fallback happens along the order of the profile only, never for an explicit choice, and each step is in the report. The engine
is never started on a backend that did not pass.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from attnkit import __version__
from attnkit.boot.candidates import Candidate, candidates
from attnkit.boot.devices import Tested, bad_devices, device_reports, most_kernels, record, rolled_up, run_candidate
from attnkit.boot.event_lines import event_text
from attnkit.boot.events import Events
from attnkit.boot.image_guard import require_device
from attnkit.boot.outputs import Outputs
from attnkit.boot.report import BootReport, BootVerdict, DecisionReport, Fallback, KernelCounts, NeedReport, SpecReport
from attnkit.boot.serving import EngineSettings, Serving
from attnkit.engines.vllm import command as vllm_command
from attnkit.engines.vllm.parallel import Parallelism, memory_share, parallelism
from attnkit.errors import (
    EXIT_CHECK_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_NO_BACKEND,
    EXIT_OK,
    AttnkitError,
    NoBackendError,
    UsageError,
)
from attnkit.hardware.device import Device
from attnkit.hardware.narrow import narrow
from attnkit.isolation import simulated
from attnkit.isolation.collective import check_collectives
from attnkit.isolation.injected import WRONG_RANK, Injected, check_devices, parse_fault
from attnkit.isolation.parent import Kernels
from attnkit.jsonio import now, to_plain
from attnkit.select.choose import no_backend_text
from attnkit.select.node import Node, find_node, inspect_machine
from attnkit.select.plan import Plan, make_plan
from attnkit.selftest.results import OUTCOMES, CaseResult, Level, Verdict, check_level

_EXIT_BY_VERDICT: dict[BootVerdict, int] = {
    "pass": EXIT_OK,
    "fail": EXIT_CHECK_FAILED,
    "inconclusive": EXIT_INCONCLUSIVE,
    "skipped": EXIT_NO_BACKEND,
    "planted": EXIT_INCONCLUSIVE,
}
_SERVES: tuple[BootVerdict, ...] = ("pass", "planted")


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


class _Stopped(BaseException):
    """A signal asked for the end before the engine was started. Not an Exception, so that no handler on the way keeps it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def boot(options: BootOptions, events: Events | None = None) -> int:
    """Run the whole boot; returns the exit code once the engine has ended.

    Raises:
        AttnkitError: wrong usage (exit code 2), or no usable backend (3). Report and readiness file say the same.
    """
    if events is None:
        events = Events(render=event_text if sys.stdout.isatty() else None)
    return _Boot(options, events).run()


class _Boot:
    def __init__(self, options: BootOptions, events: Events) -> None:
        self.options = options
        self.events = events
        self.outputs = Outputs(options.report, options.ready, options.metrics)
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}
        self._begun: dict[str, float] = {}
        self.report: BootReport | None = None
        self.vllm = vllm_command.recognise(options.command)
        self.fault: Injected | None = None
        self.parallelism = Parallelism()
        self.serving_devices: tuple[Device, ...] = ()

    def run(self) -> int:
        with _signals_stop():
            try:
                validated, plan = self._until_validated()
                if validated is None:
                    return _EXIT_BY_VERDICT[self._report.verdict]
                if self.options.command:
                    return self._serve(plan, validated)
                self.outputs.remove_ready_file()
                return _EXIT_BY_VERDICT[self._report.verdict]
            except AttnkitError as error:
                self._failed(str(error), error.exit_code)
                raise
            except _Stopped as stop:
                self._failed(f"ended by {signal.Signals(stop.number).name} while no engine ran", 128 + stop.number)
                return 128 + stop.number

    @property
    def _report(self) -> BootReport:
        if self.report is None:
            raise RuntimeError("no report before detection")
        return self.report

    def _until_validated(self) -> tuple[Candidate | None, Plan]:
        options = self.options
        if options.fault is not None:
            self.events.bind(planted_fault=options.fault)
        if options.simulated_device is not None:
            self.events.bind(planted_answer=options.simulated_device)
        try:
            self.outputs.begin()
        except UsageError as error:
            self.events.emit("error", message=str(error))
            raise
        level = check_level(options.level)
        self.fault = None if options.fault is None else parse_fault(options.fault)
        _check_simulated(options)
        self.events.emit("boot", attnkit_version=__version__, host=platform.node(), command=options.command)
        explicit = options.backend
        if self.vllm is not None:
            explicit = vllm_command.explicit_backend(options.backend, self.vllm, os.environ)
        where = self._detect()
        plan = self._select(where, explicit)
        validated = self._validate(plan, level or plan.settings.level, explicit)
        if validated is not None and not self._collectives_work(plan):
            validated = None
        self._conclude()
        return validated, plan

    def _detect(self) -> Node:
        with self._timed("detect"):
            machine = inspect_machine(self.options.root)
        # What was found is on record before anything about it is refused.
        self.report = BootReport(
            attnkit_version=__version__,
            created=now(),
            host={"hostname": platform.node(), **machine.detection.host},
            node_type=machine.match.node,
            node_type_source="detected",
            node_type_why=machine.match.why,
            detection=machine.detection,
            planted_fault=self.options.fault,
            planted_answer=self.options.simulated_device,
        )
        where = find_node(root=self.options.root, node=self.options.node, machine=machine)
        detection = machine.detection
        if not where.here:
            raise UsageError(f"--node {self.options.node}: {where.why}; `attnkit detect` shows the devices of this machine")
        self.report.node_type = where.profile.name if where.profile else None
        self.report.node_type_source = "given" if where.source == "given" else "detected"
        self.report.node_type_why = where.why
        self.report.boot_seconds.detect = self.seconds["detect"]
        self.outputs.save_partial(self.report)
        self.events.emit(
            "detect",
            node_type=self.report.node_type,
            node_type_source=self.report.node_type_source,
            why=where.why,
            device=where.device,
            devices=detection.devices,
            probe_errors={p.probe: p.error for p in detection.probes if p.error},
            seconds=self.seconds["detect"],
        )
        engine_args = where.profile.engine.args if where.profile else ()
        self.parallelism = parallelism(self.vllm, engine_args)
        self._check_injected(where)
        self.report.devices = device_reports(where.devices, self.options.root, memory_share(self.vllm, engine_args))
        self.outputs.save_partial(self.report)
        self.events.emit("devices", devices=[row.model_dump() for row in self.report.devices])
        if self.options.simulated_device is None:
            require_device(detection, os.environ)
        return where

    def _check_injected(self, where: Node) -> None:
        """A fault that has nowhere to go would look like a pass."""
        if self.options.simulated_device is not None:
            check_devices(simulated.parse(self.options.simulated_device).devices, where.devices)
        if self.fault is None:
            return
        if self.fault.name == WRONG_RANK and self.parallelism.devices == 1:
            raise UsageError(f"--fault {WRONG_RANK} is for devices that serve one model together (--tensor-parallel-size)")
        if self.fault.name != WRONG_RANK or where.device.kind != "cpu":  # the ranks of a CPU are no devices
            check_devices(self.fault.devices, where.devices)

    def _select(self, where: Node, explicit: str | None) -> Plan:
        report, options = self._report, self.options
        with self._timed("select"):
            model = options.model
            overrides: dict[str, Any] = {}
            if self.vllm is not None:
                overrides = self.vllm.overrides() | {"tensor_parallel": self.parallelism.tensor}
                if model is None and self.vllm.local_model is not None:
                    model = str(self.vllm.local_model)
            plan = make_plan(
                where,
                model=model,
                workload=options.workload,
                explicit=explicit,
                assume_installed=options.simulated_device is not None,
                overrides=overrides,
            )
        need = plan.requirements
        report.need = NeedReport(
            source=need.source, specs=[SpecReport.from_spec(spec) for spec in need.specs], notes=list(need.notes)
        )
        report.decision = DecisionReport.from_decision(plan.decision, plan.installed_source)
        report.boot_seconds.select = self.seconds["select"]
        self.outputs.save_partial(report)
        self.events.emit(
            "select",
            chosen=plan.decision.chosen.backend if plan.decision.chosen else None,
            provider=plan.decision.chosen.provider if plan.decision.chosen else None,
            explicit=explicit,
            order=plan.decision.order,
            order_source=plan.decision.order_source,
            need=report.need.model_dump(),
            accepted=plan.decision.accepted,
            rejected=plan.decision.rejected,
            installed=plan.installed_source,
            warnings=plan.decision.warnings,
            seconds=self.seconds["select"],
        )
        if plan.decision.chosen is None:
            raise NoBackendError(no_backend_text(plan.decision.rejected, where.device.name, explicit))
        return plan

    def _validate(self, plan: Plan, level: Level, explicit: str | None) -> Candidate | None:
        """Test candidates in order, on all devices at once, until one passes.

        A backend that passes on no device is the backend's failure, and the next one is tried. One that passes on some shows
        that the others are bad: they are left out, or fail the node, as the profile says.
        """
        report = self._report
        candidates = self._candidates(plan, explicit)
        self.outputs.write_ready_file("selftest")
        with self._timed("selftest"):
            for position, candidate in enumerate(candidates):
                tested = self._test(candidate, plan, level)
                good = [one for one in tested if one.serves]
                report.verdict = rolled_up([v for one in tested for v in one.verdicts], self.options.simulated_device)
                if len(good) == len(tested) or (good and self._leave_out(tested, plan)):
                    report.verdict = good[0].outcome
                    report.backend, report.provider = candidate.serves, candidate.by
                    report.boot_seconds.selftest = self._since("selftest")
                    self.serving_devices = tuple(one.device for one in good)
                    return candidate
                if good:
                    stays = f"{self.parallelism.devices} devices serve the model together, and {len(good)} are left"
                    policy = "the profile's on_bad_device is 'fail'" if plan.settings.on_bad_device == "fail" else stays
                    self._fall_back(candidate.backend, None, f"{bad_devices(tested)}; the others passed, and {policy}")
                    report.boot_seconds.selftest = self._since("selftest")
                    return None
                following = candidates[position + 1] if position + 1 < len(candidates) and explicit is None else None
                why = tested[0].why if len(tested) == 1 else f"on every device; {bad_devices(tested)}"
                self._fall_back(candidate.backend, following.backend if following else None, why)
                self.outputs.save_partial(report)
                if following is None:
                    break
        report.verdict = rolled_up(report.selftest, self.options.simulated_device)
        report.boot_seconds.selftest = self.seconds["selftest"]
        return None

    def _leave_out(self, tested: tuple[Tested, ...], plan: Plan) -> bool:
        """Leave the bad devices out where the profile says so; whether it does."""
        good = sum(one.serves for one in tested)
        if plan.settings.on_bad_device != "leave_out" or good < self.parallelism.devices <= len(tested):
            return False
        for row, one in zip(self._report.devices, tested, strict=True):
            if not one.serves:
                row.left_out = True
                self.events.emit("device.left_out", **_identity(one.device), reason=one.why)
        return True

    def _collectives_work(self, plan: Plan) -> bool:
        """Check the devices that serve one model together, before the engine starts; True where there are none."""
        report, count = self._report, self.parallelism.devices
        if count == 1:
            return True
        devices = self.serving_devices[:count]
        if plan.node.device.kind == "cpu":
            devices = (plan.node.device,) * count
        if len(devices) < count:
            text = f"{count} devices serve the model together and {len(devices)} are here: their collectives were not checked"
            plan_warnings = report.decision.warnings if report.decision else []
            plan_warnings.append(text)
            return True
        healths = [next(row.health for row in report.devices if row.index == device.index) for device in devices]
        everything = plan.node.detection.devices if plan.node.detection else devices
        found = check_collectives(
            devices,
            environment=narrow(everything, self.serving_devices, os.environ),
            healths=healths,
            fault=self.fault,
            simulated=self.options.simulated_device is not None,
        )
        report.collective = found
        self.events.emit("collective", **to_plain(found))
        if found.outcome in ("fail", "inconclusive"):
            report.verdict, report.backend, report.provider = found.outcome, None, None
            report.error = f"the devices do not work together ({found.backend}): {found.reason}"
            return False
        return True

    def _candidates(self, plan: Plan, explicit: str | None) -> tuple[Candidate, ...]:
        """What is tested; a backend that the engine cannot be told to use is a fallback step in the report."""
        environment = {**plan.settings.engine_env, **os.environ}
        asked = self.options.engine_check and self.options.simulated_device is None  # what is simulated is a backend of ours
        found = candidates(plan, self.vllm, environment, engine_check=asked)
        names = [accepted.backend for accepted in plan.decision.accepted]
        for backend, reason in found.refused:
            if explicit is None and names.index(backend) < names.index(found.kept[0].backend):
                self._fall_back(backend, found.kept[0].backend, reason)
        return found.kept

    def _test(self, candidate: Candidate, plan: Plan, level: Level) -> tuple[Tested, ...]:
        several = len(plan.node.devices) > 1
        kernels: list[Kernels] = []

        def on_case(device: Device, case: CaseResult) -> None:
            which = {"device_index": device.index} if several else {}
            self.events.emit("selftest.case", backend=candidate.test, provider=candidate.by, **which, **_fields(case))

        tested = run_candidate(
            candidate,
            plan,
            level,
            fault=self.fault,
            simulated=self.options.simulated_device,
            environment=os.environ,
            timeout=self.options.selftest_timeout,
            on_case=on_case,
            on_kernels=kernels.append,
        )
        if kernels:
            most = most_kernels(kernels)
            self._report.kernels = KernelCounts(baked=most.baked, jit_compiles=most.jit_compiles)
            if most.unused and self._report.decision is not None:
                self._report.decision.warnings.append(most.unused)
        record(self._report.devices, tested)
        for one in tested:
            self._report.selftest.extend(one.verdicts)
            for verdict in one.verdicts:
                self._say_verdict(verdict)
        return tested

    def _say_verdict(self, verdict: Verdict) -> None:
        counts = {outcome: sum(c.outcome == outcome for c in verdict.cases) for outcome in OUTCOMES}
        self.events.emit(
            "selftest.verdict",
            backend=verdict.backend,
            provider=verdict.provider,
            device=verdict.device,
            level=verdict.level,
            verdict=verdict.outcome,
            cases=counts,
            failed=[f"{c.case}: {c.reason}" for c in verdict.cases if c.outcome == "fail"],
            unseen=verdict.unseen,
            seconds=round(verdict.seconds, 3),
        )

    def _fall_back(self, from_backend: str, to_backend: str | None, reason: str) -> None:
        self._report.fallbacks.append(Fallback.model_validate({"from": from_backend, "to": to_backend, "reason": reason}))
        self.events.emit("fallback", **{"from": from_backend, "to": to_backend, "reason": reason})

    def _conclude(self) -> None:
        """The verdict is known: write the report, say so."""
        report = self._report
        serves = report.verdict in _SERVES
        report.exit_code = EXIT_OK if serves and self.options.command else _EXIT_BY_VERDICT[report.verdict]
        report.boot_seconds.total = self._since_start()
        if not serves:
            last = report.fallbacks[-1]
            everywhere = " on every device" if len(report.devices) > 1 else ""
            report.error = f"no backend passed its self-test{everywhere}; the last one, {last.from_backend}: {last.reason}"
        self.outputs.save(report)
        self.events.emit(
            "report",
            path=self.options.report,
            verdict=report.verdict,
            backend=report.backend,
            exit_code=report.exit_code,
            warnings=report.decision.warnings if report.decision else [],
        )
        if not serves:
            self.outputs.write_ready_file("failed", report.verdict, None)
            self.events.emit("error", message=report.error)

    def _serve(self, plan: Plan, validated: Candidate) -> int:
        settings = EngineSettings(self.options.command, self.options.health_url, self.options.health_timeout)
        serving = Serving(settings, self._report, self.outputs, self.events, self.started)
        everything = plan.node.detection.devices if plan.node.detection else ()
        visible = narrow(everything, self.serving_devices, os.environ)
        return serving.run(plan.node.device, plan.settings, validated, visible)

    def _failed(self, message: str, code: int) -> None:
        """Report an end that is no verdict; an output that cannot be written is not tried again."""
        if not self.outputs.begun:
            return
        self.events.emit("error", message=message)
        if self.report is not None:
            self.report.error, self.report.exit_code = message, code
            self.report.boot_seconds.total = self._since_start()
            self.outputs.save(self.report)
        self.outputs.write_ready_file(
            "failed", self.report.verdict if self.report else None, self.report.backend if self.report else None
        )

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        self._begun[step] = time.monotonic()
        try:
            yield
        finally:
            self.seconds[step] = self._since(step)

    def _since(self, step: str) -> float:
        return round(time.monotonic() - self._begun[step], 3)

    def _since_start(self) -> float:
        return round(time.monotonic() - self.started, 3)


def _identity(device: Device) -> dict[str, Any]:
    return {"device_index": device.index, "uuid": device.uuid, "pci_address": device.pci_address, "device": device.label}


def _check_simulated(options: BootOptions) -> None:
    if options.simulated_device is None:
        return
    simulated.parse(options.simulated_device)
    if options.fault is not None and parse_fault(options.fault).name != WRONG_RANK:
        raise UsageError(
            "a fault cannot be injected into a simulated device, which runs no kernel: give --fault or --simulated-device"
        )


def _fields(case: CaseResult) -> dict[str, Any]:
    fields: dict[str, Any] = to_plain(case)
    return fields


@contextmanager
def _signals_stop() -> Iterator[None]:
    """SIGTERM and SIGINT end the boot. PID 1 ignores signals that it has no handler for."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        raise _Stopped(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
