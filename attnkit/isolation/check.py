"""`attnkit selftest`: test backends on this machine's devices, each in a process of its own, and report the verdicts."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from attnkit import __version__
from attnkit.backends.base import Accepted, Reason, Rejected, missing
from attnkit.backends.installed import installed_versions
from attnkit.backends.registry import all_backends, canonical, get
from attnkit.engines.vllm.driver import PREFIX
from attnkit.engines.vllm.tower import TOWER
from attnkit.errors import EXIT_CHECK_FAILED, EXIT_INCONCLUSIVE, EXIT_OK, NoBackendError, UsageError
from attnkit.hardware.device import Device
from attnkit.hardware.narrow import narrow
from attnkit.isolation.compare import compare_devices
from attnkit.isolation.injected import Injected, check_devices, parse_fault
from attnkit.isolation.messages import Request
from attnkit.isolation.parent import DeviceTask, beside, inject_isolated, run_on_devices
from attnkit.jsonio import now, to_json, to_plain, write_atomically
from attnkit.select.choose import no_backend_text
from attnkit.select.node import find_node
from attnkit.select.plan import Plan, make_plan
from attnkit.selftest.results import FaultResult, Level, Outcome, Verdict, check_level, roll_up
from attnkit.spec import TOWERS, AttentionSpec

TIMEOUT_SECONDS = 3600.0
_EXITS: dict[Outcome, int] = {"pass": EXIT_OK, "fail": EXIT_CHECK_FAILED, "inconclusive": EXIT_INCONCLUSIVE}


@dataclass(frozen=True)
class CheckOptions:
    """What `attnkit selftest` was asked.

    Args:
        backend: a name, or "all": with a model everything that selection accepts for it, else everything that runs here.
            "vllm:NAME" is vLLM's own implementation, driven through vLLM's interface.
        level: None takes the profile's.
        inject_faults: inject every fault and see which case catches it.
        seed: of the case that is drawn anew, as a verdict has it; None draws one.
        json_file: where to write the report; "-" is stdout; None prints tables.
    """

    backend: str = "all"
    level: str | None = None
    inject_faults: bool = False
    node: str | None = None
    model: str | None = None
    fault: str | None = None
    root: Path = Path("/")
    json_file: Path | None = None
    seed: int | None = None


def run_checks(
    options: CheckOptions,
    show_verdicts: Callable[[tuple[Verdict, ...]], None],
    show_fault_results: Callable[[str, tuple[FaultResult, ...]], None],
    on_case: Callable[[str, int, int], None] | None = None,
) -> int:
    """Run them and return the exit code: 1 where a case failed or a fault went unseen, 4 where something could not be judged.

    Args:
        options: what was asked.
        show_verdicts, show_fault_results: called with a backend's results as they come, where no JSON file was asked for.
        on_case: called after each case with the backend, its position and how many there are.

    Raises:
        UsageError: an unknown backend, level or fault.
        NoBackendError: nothing can run here, or the one asked for cannot.
    """
    engine = options.backend.casefold().startswith(PREFIX)
    explicit = None if engine or options.backend.casefold() == "all" else canonical(options.backend)
    fault = None if options.fault is None else parse_fault(options.fault)
    where = find_node(root=options.root, node=options.node)
    if not where.here:
        raise UsageError(f"--node {options.node}: {where.why}")
    if fault is not None:
        check_devices(fault.devices, where.devices)
    asked = check_level(options.level)
    plan = make_plan(where, model=options.model, explicit=explicit if options.model else None)
    level = asked or plan.settings.level
    specs = plan.requirements.specs if options.model else ()
    if engine:
        name = PREFIX + options.backend[len(PREFIX) :].upper()
        if name.startswith(PREFIX + TOWER) and options.model:
            specs = tuple(dict.fromkeys(kind.spec for kind in plan.requirements.layers if kind.role in TOWERS))
            if not specs:
                raise UsageError(f"--model {options.model}: the model has no tower that {name} could compute")
        candidates: tuple[Accepted, ...] = (Accepted(name, "", "vLLM's own implementation"),)
    else:
        candidates = _candidates(plan, explicit) if options.model else _runnable(where.device, explicit)
    if options.inject_faults:
        return _inject_faults(candidates, plan, specs, level, options, show_fault_results)
    verdicts: list[Verdict] = []
    for position, candidate in enumerate(candidates):
        done = partial(on_case, candidate.backend, position, len(candidates)) if on_case else None
        found = _test(_request(candidate, plan, specs, level, options.seed), plan, fault, done)
        verdicts.extend(found)
        if options.json_file is None:
            show_verdicts(found)
    _write(options.json_file, {**_head("selftest", plan), "verdicts": to_plain(verdicts)})
    return exit_code(verdict.outcome for verdict in verdicts)


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """What `attnkit selftest` ends with: 0, 1 where something failed, 4 where something could not be judged, or nothing was."""
    return _EXITS[roll_up(outcomes)]


def _candidates(plan: Plan, explicit: str | None) -> tuple[Accepted, ...]:
    if not plan.decision.accepted:
        raise NoBackendError(no_backend_text(plan.decision.rejected, plan.node.device.name, explicit, plan.node.device.vendor))
    return plan.decision.accepted


def _runnable(device: Device, explicit: str | None) -> tuple[Accepted, ...]:
    """Without a model: every backend (or the one asked for) with a provider that is installed and claims this device, whatever
    its operation."""
    installed = installed_versions()
    found, against = [], []
    for backend in all_backends() if explicit is None else [get(explicit)]:
        if explicit is None and not backend.automatic:
            continue
        reasons: list[Reason] = []
        for provider in backend.providers:
            here = provider.capability.device_reasons(device) or missing(provider, installed)
            if not here:
                found.append(Accepted(backend.name, provider.name, provider.why))
                break
            reasons.extend(here)
        else:
            against.append(Rejected(backend.name, tuple(dict.fromkeys(reasons))))
    if not found:
        raise NoBackendError(no_backend_text(tuple(against), f"{device.name} ({device.arch})", explicit, device.vendor))
    return tuple(found)


def _request(
    candidate: Accepted, plan: Plan, specs: tuple[AttentionSpec, ...], level: Level, seed: int | None = None
) -> Request:
    return Request(candidate.backend, candidate.provider or None, plan.node.device, specs, level, seed=seed)


def _test(request: Request, plan: Plan, fault: Injected | None, done: Callable[[], None] | None = None) -> tuple[Verdict, ...]:
    """The verdicts of every device that serves, all tested at once; `done` is called after each case."""
    where = plan.node
    everything = where.detection.devices if where.detection else where.devices
    tasks = [
        DeviceTask(
            replace(request, device=device, fault=fault.in_selftest(device) if fault else None),
            TIMEOUT_SECONDS,
            beside(plan.settings.engine_env) | narrow(everything, [device], os.environ),
        )
        for device in where.devices
    ]
    found = compare_devices(where.devices, run_on_devices(tasks, on_case=lambda *_: done() if done else None))
    return tuple(verdict for verdicts in found for verdict in verdicts)


def _inject_faults(
    candidates: tuple[Accepted, ...],
    plan: Plan,
    specs: tuple[AttentionSpec, ...],
    level: Level,
    options: CheckOptions,
    show_fault_results: Callable[[str, tuple[FaultResult, ...]], None],
) -> int:
    by_backend: dict[str, tuple[FaultResult, ...]] = {}
    for candidate in candidates:
        request = _request(candidate, plan, specs, level)
        results = inject_isolated(request, timeout=TIMEOUT_SECONDS, env=plan.settings.engine_env)
        by_backend[candidate.backend] = results
        if options.json_file is None:
            show_fault_results(candidate.backend, results)
    _write(options.json_file, {**_head("prove", plan), "proofs": to_plain(by_backend)})
    caught = all(results and all(result.caught for result in results) for results in by_backend.values())
    return EXIT_OK if caught else EXIT_CHECK_FAILED


def _head(kind: str, plan: Plan) -> dict[str, Any]:
    detection = plan.node.detection
    return {
        "kind": kind,
        "attnkit_version": __version__,
        "created": now(),
        "host": {"hostname": platform.node(), **(detection.host if detection else {})},
        "command": ["attnkit", *sys.argv[1:]],
        "device": to_plain(plan.node.device),
        "versions": {name: found for name, found in installed_versions().items() if found is not None},
        "need": to_plain(plan.requirements),
    }


def _write(file: Path | None, document: dict[str, Any]) -> None:
    if file is None:
        return
    text = to_json(document) + "\n"
    if str(file) == "-":
        print(text, end="")
    else:
        write_atomically(file, text)
