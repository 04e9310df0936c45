"""The images' entrypoint: detect → select → self-test → fall back → report → engine.

Fallback happens along the order of the profile only, never for an explicit choice, and each step is in the report. The engine
is never started on a backend that did not pass.
"""

from __future__ import annotations

import io
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from attnkit import __version__
from attnkit.boot import census, preflight
from attnkit.boot.candidates import Candidate, candidates
from attnkit.boot.devices import Tested, bad_devices, device_reports, most_kernels, record, rolled_up, run_candidate
from attnkit.boot.ending import failed_end, good_end, self_test_text
from attnkit.boot.event_lines import event_text
from attnkit.boot.events import Events
from attnkit.boot.image_guard import require_device
from attnkit.boot.options import BootOptions, check_simulated, check_times
from attnkit.boot.outputs import Outputs, default_directory
from attnkit.boot.process_end import Stopped, explain, let_stdout_end, signals_stop
from attnkit.boot.proof_key import proof_key
from attnkit.boot.redact import Redactor
from attnkit.boot.report import (
    BootReport,
    BootVerdict,
    DecisionReport,
    Fallback,
    KernelCounts,
    Levels,
    NeedReport,
    SpecReport,
)
from attnkit.boot.served import ServedCheck
from attnkit.boot.serving import EngineSettings, Serving
from attnkit.boot.towers import towers
from attnkit.boot.versions import versions
from attnkit.engines.vllm import command as vllm_command
from attnkit.engines.vllm.arguments import option_value
from attnkit.engines.vllm.parallel import Parallelism, memory_share, parallelism
from attnkit.engines.web import check_url
from attnkit.errors import (
    EXIT_CHECK_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_NO_BACKEND,
    EXIT_OK,
    AttnkitError,
    NoBackendError,
    NotUnderstoodError,
    UsageError,
)
from attnkit.hardware.device import Detection, Device
from attnkit.hardware.narrow import narrow
from attnkit.isolation import simulated
from attnkit.isolation.collective import check_collectives
from attnkit.isolation.injected import WRONG_RANK, Injected, check_devices, parse_fault
from attnkit.isolation.parent import Kernels
from attnkit.jsonio import now, to_plain
from attnkit.select.choose import no_backend_text
from attnkit.select.node import Node, find_node, inspect_machine
from attnkit.select.plan import Plan, Requirements, make_plan
from attnkit.selftest.results import LEVELS, OUTCOMES, CaseResult, Level, Verdict, check_level
from attnkit.spec import AttentionSpec

_EXIT_BY_VERDICT: dict[BootVerdict, int] = {
    "pass": EXIT_OK,
    "fail": EXIT_CHECK_FAILED,
    "inconclusive": EXIT_INCONCLUSIVE,
    "skipped": EXIT_NO_BACKEND,
    "planted": EXIT_INCONCLUSIVE,
}
_SERVES: tuple[BootVerdict, ...] = ("pass", "planted")


def boot(options: BootOptions, events: Events | None = None) -> int:
    """Run the whole boot; returns the exit code once the engine has ended.

    Raises:
        AttnkitError: wrong usage (exit code 2), no usable backend (3), or something that nobody foresaw (6). Report and
            readiness file say the same.
    """
    redactor = Redactor([*sys.argv, *options.command], os.environ)
    if events is None:
        events = Events(render=event_text if sys.stdout.isatty() else None, redactor=redactor)
    return _Boot(options, events, redactor).run()


def refused(message: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Say in the files that a command line was refused: those that it or the environment names, else the usual ones."""

    def named(option: str) -> str | None:
        return option_value(argv, f"--{option}") or environment.get(f"ATTNKIT_{option.upper()}")

    report = Path(named("report") or default_directory() / "report.json")
    ready = Path(named("ready") or default_directory() / "ready.json")
    options = BootOptions(report, ready, Path(named("metrics") or report.with_suffix(".prom")))
    with suppress(AttnkitError):
        _Boot(options, Events(io.StringIO()), Redactor(argv, environment)).refuse(message)


class _Boot:
    def __init__(self, options: BootOptions, events: Events, redactor: Redactor) -> None:
        self.options = options
        self.events = events
        self.redactor = redactor
        self.outputs = Outputs(options.report, options.ready, options.metrics, redactor)
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}
        self._begun: dict[str, float] = {}
        self.report = BootReport(
            attnkit_version=__version__,
            created=now(),
            host={"hostname": platform.node()},
            node_type=None,
            node_type_source="detected" if options.node is None else "given",
            detection=Detection((), ()),
            planted_fault=options.fault,
            planted_answer=options.simulated_device,
        )
        self.vllm = vllm_command.recognise(options.command)
        self.fault: Injected | None = None
        self.parallelism = Parallelism()
        self.serving_devices: tuple[Device, ...] = ()
        self.level: Level = LEVELS[0]

    def run(self) -> int:
        """The one place that ends a boot, whatever happened: failed, with an exit code, a report, and no engine left."""
        with signals_stop() as signals:
            try:
                code = self._run()
            except AttnkitError as error:
                signals.over = True
                self._failed(error)
                raise
            except Stopped as stop:
                code = 128 + stop.number
                self._failed(AttnkitError(f"ended by {signal.Signals(stop.number).name} while no engine ran"), code)
            except Exception as error:
                signals.over = True
                foreseen = explain(error)
                self._failed(foreseen)
                raise foreseen from error
            finally:
                signals.over = True
                self.outputs.release()
                let_stdout_end()
            return code

    def refuse(self, message: str) -> None:
        """End before anything began."""
        try:
            self.outputs.begin()
            self._failed(UsageError(message))
        finally:
            self.outputs.release()

    def _run(self) -> int:
        validated, plan = self._until_validated()
        if validated is not None and self.options.command:
            return self._serve(plan, validated)
        if validated is not None:
            self.outputs.remove_ready_file()
        return _EXIT_BY_VERDICT[self.report.verdict]

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
        check_simulated(options)
        check_times(options)
        if options.health_url is not None:
            check_url(options.health_url, "--health-url")
        elif self.vllm is not None:
            check_url(self.vllm.health_url, "the engine's --host and --port")
        self.events.emit("boot", attnkit_version=__version__, host=platform.node(), command=options.command)
        explicit = options.backend
        if self.vllm is not None:
            explicit = vllm_command.explicit_backend(options.backend, self.vllm, os.environ)
        where = self._detect()
        plan = self._select(where, explicit)
        self.level = level or plan.settings.level
        self._note_level(self.level, plan.settings.level)
        preflight.check(options.command, self.vllm, options.health_url)
        validated = self._validate(plan, self.level, explicit)
        if validated is not None and not (self._towers_pass(plan) and self._collectives_work(plan)):
            validated = None
        self._conclude()
        return validated, plan

    def _detect(self) -> Node:
        with self._timed("detect"):
            machine = inspect_machine(self.options.root)
        # What was found is on record before anything about it is refused.
        detection = machine.detection
        self.report.host |= detection.host
        self.report.node_type, self.report.node_type_why = machine.match.node, machine.match.why
        self.report.detection = detection
        where = find_node(root=self.options.root, node=self.options.node, machine=machine)
        if not where.here:
            raise UsageError(f"--node {self.options.node}: {where.why}; `attnkit detect` shows the devices of this machine")
        self.report.node_type = where.profile.name if where.profile else None
        self.report.node_type_source = "given" if where.source == "given" else "detected"
        self.report.node_type_why = where.why
        self.report.versions = versions(where.device)
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
        if self.options.simulated_device is None:
            require_device(detection, os.environ)
        engine_args = where.profile.engine.args if where.profile else ()
        self.parallelism = parallelism(self.vllm, engine_args)
        self._check_injected(where)
        self.report.devices = device_reports(where.devices, self.options.root, memory_share(self.vllm, engine_args))
        self.outputs.save_partial(self.report)
        self.events.emit("devices", devices=[row.model_dump() for row in self.report.devices])
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

    def _census(self) -> tuple[Requirements | None, str | None]:
        """What the engine says that it builds; nothing is asked where attnkit's own implementation is what is tested."""
        options = self.options
        if options.model is not None or options.simulated_device is not None or not options.engine_check:
            return None, None
        return census.ask(self.vllm, os.environ)

    def _select(self, where: Node, explicit: str | None) -> Plan:
        report, options = self.report, self.options
        with self._timed("select"):
            model = options.model
            overrides: dict[str, Any] = {}
            if self.vllm is not None:
                overrides = self.vllm.overrides() | {"tensor_parallel": self.parallelism.tensor}
                if model is None and self.vllm.local_model is not None:
                    model = str(self.vllm.local_model)
            counted, unasked = self._census()
            plan = make_plan(
                where,
                model=model,
                workload=options.workload,
                explicit=explicit,
                assume_installed=options.simulated_device is not None,
                overrides=overrides,
                requirements=counted,
            )
        need = plan.requirements
        report.need = NeedReport(
            source=need.source, specs=[SpecReport.from_spec(spec) for spec in need.specs], notes=list(need.notes)
        )
        report.decision = DecisionReport.from_decision(plan.decision, plan.installed_source)
        concerns = preflight.warnings(options.command, self.vllm, model or plan.settings.model)
        concerns += [f"not understood, so not tested: {text}" for text in need.not_understood]
        concerns += [unasked] if unasked else []
        report.decision.warnings += concerns
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
            warnings=report.decision.warnings,
            seconds=self.seconds["select"],
        )
        if plan.attention_free:
            raise NotUnderstoodError(
                f"{need.source}: the model holds no softmax attention, so there is nothing that attnkit can validate: "
                "start the engine without it"
            )
        if plan.decision.chosen is None:
            raise NoBackendError(no_backend_text(plan.decision.rejected, where.device.name, explicit, where.device.vendor))
        return plan

    def _validate(self, plan: Plan, level: Level, explicit: str | None) -> Candidate | None:
        """Test candidates in order, on all devices at once, until one passes.

        A backend that passes on no device is the backend's failure, and the next one is tried. One that passes on some shows
        that the others are bad: they are left out, or fail the node, as the profile says.
        """
        report = self.report
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
        for row, one in zip(self.report.devices, tested, strict=True):
            if not one.serves:
                row.left_out = True
                self.events.emit("device.left_out", **_identity(one.device), reason=one.why)
        return True

    def _towers_pass(self, plan: Plan) -> bool:
        """Test what the engine says that it computes the model's towers with; what cannot be asked is a warning."""
        report = self.report
        found, unknown = towers(plan.requirements, vllm_command.platform_of(plan.node.device))
        if report.decision is not None:
            report.decision.warnings += unknown
        for tower in found:
            tested = self._ask(plan, tower.candidate, tower.specs)
            bad = [one for one in tested if not one.serves]
            if bad:
                report.verdict = "fail" if any(one.outcome == "fail" for one in bad) else "inconclusive"
                report.error = f"the model's tower ({tower.candidate.serves}) did not pass its self-test: {bad[0].why}"
                report.backend = report.provider = None
                return False
        return True

    def _collectives_work(self, plan: Plan) -> bool:
        """Check the devices that serve one model together, before the engine starts; True where there are none."""
        report, count = self.report, self.parallelism.devices
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
            self.report.kernels = KernelCounts(baked=most.baked, jit_compiles=most.jit_compiles)
            if most.unused and self.report.decision is not None:
                self.report.decision.warnings.append(most.unused)
        record([row for row in self.report.devices if not row.left_out], tested)
        for one in tested:
            self.report.selftest.extend(one.verdicts)
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
        self.report.fallbacks.append(Fallback.model_validate({"from": from_backend, "to": to_backend, "reason": reason}))
        self.events.emit("fallback", **{"from": from_backend, "to": to_backend, "reason": reason})

    def _conclude(self) -> None:
        """The verdict is known: write the report, say so."""
        report = self.report
        serves = report.verdict in _SERVES
        report.summarise()
        report.proof_key = proof_key(report)
        report.boot_seconds.total = self._since_start()
        if not serves:
            what, step = self_test_text(report), ""
            report.exit_code = _EXIT_BY_VERDICT[report.verdict]
            if report.error is not None:
                what = "devices do not work together" if report.collective is not None else "the model's tower is not right"
            else:
                last = report.fallbacks[-1]
                everywhere = " on every device" if len(report.devices) > 1 else ""
                report.error = f"no backend passed its self-test{everywhere}; the last one, {last.from_backend}: {last.reason}"
            if any("--selftest-timeout" in case.reason for verdict in report.selftest for case in verdict.cases):
                step = f"if this machine is that slow, set ATTNKIT_SELFTEST_TIMEOUT above {self.options.selftest_timeout:.0f}"
            report.end = failed_end(report, what, report.error, step, report.exit_code)
        elif not self.options.command:
            report.exit_code = _EXIT_BY_VERDICT[report.verdict]
            report.end = good_end(report, "validated")
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
            assert report.end is not None
            self.outputs.write_ready_file("failed", report.verdict, None, report.end.headline)
            self.events.emit("error", message=report.error, next_step=report.end.next_step)

    def _note_level(self, level: Level, wanted: Level) -> None:
        """A less thorough self-test than the profile's is allowed, and said."""
        enough = LEVELS.index(level) >= LEVELS.index(wanted)
        self.report.levels = Levels(ran=level, profile=wanted, enough=enough)
        if not enough and self.report.decision is not None:
            self.report.decision.warnings.append(f"the self-test is {level}, the node's profile says {wanted}")

    def _serve(self, plan: Plan, validated: Candidate) -> int:
        settings = EngineSettings(self.options.command, self.options.health_url, self.options.health_timeout)
        serving = Serving(settings, self.report, self.outputs, self.events, self.started, self.redactor)
        everything = plan.node.detection.devices if plan.node.detection else ()
        visible = narrow(everything, self.serving_devices, os.environ)
        return serving.run(plan.node.device, plan.settings, validated, self._served_check(plan, validated), visible)

    def _served_check(self, plan: Plan, validated: Candidate) -> ServedCheck:
        """Compares what serves with what was validated; the engine's own implementation is asked where that can be."""
        platform = vllm_command.platform_of(plan.node.device)
        known = vllm_command.engine_version() is not None and platform != "tpu"
        can_ask = known and self.options.engine_check and self.options.simulated_device is None
        ask = partial(self._ask, plan) if can_ask else None
        return ServedCheck(validated, plan.requirements.specs, self.report, ask, platform)

    def _ask(self, plan: Plan, candidate: Candidate, specs: tuple[AttentionSpec, ...]) -> tuple[Tested, ...]:
        """The self-test of a candidate for `specs`, on the devices that serve."""
        node = replace(plan.node, devices=self.serving_devices)
        return self._test(candidate, replace(plan, node=node, requirements=replace(plan.requirements, specs=specs)), self.level)

    def _failed(self, error: AttnkitError, code: int | None = None) -> None:
        """Report an end that is no verdict. Each step on its own: what cannot be written now may leave room for the next."""
        if not self.outputs.begun:
            return
        report, message = self.report, str(error)
        code = error.exit_code if code is None else code
        self.outputs.finish()
        self.outputs.withdraw()
        report.error, report.exit_code = message, code
        report.boot_seconds.total = self._since_start()
        with suppress(Exception):
            report.summarise()
        report.end = failed_end(report, "boot failed", message, error.next_step, code)
        with suppress(Exception):
            self.outputs.write_ready_file("failed", report.verdict, report.backend, report.end.headline)
        with suppress(Exception):
            self.outputs.save(report)
        with suppress(Exception):
            self.events.emit("error", message=message, next_step=report.end.next_step)

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


def _fields(case: CaseResult) -> dict[str, Any]:
    fields: dict[str, Any] = to_plain(case)
    return fields
