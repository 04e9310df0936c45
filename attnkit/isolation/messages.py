"""What the self-test's parent and child process send each other."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter

from attnkit.hardware.device import Device
from attnkit.selftest.results import CaseResult, FaultResult, Level, Verdict
from attnkit.spec import AttentionSpec


@dataclass(frozen=True)
class Request:
    """One candidate to be tested.

    Args:
        backend, provider: what to run; provider None takes the first that can. "vllm:NAME" is vLLM's own implementation.
        device: what it runs on. The process sees it alone; its index there is not that in the machine.
        specs: the need, one per kind of layer; empty tests the level's own cases only.
        level: quick, standard or extended.
        fault: a fault to inject (of `selftest.FAULTS` or `injected.PROCESS_FAULTS`), or None.
        planted_answer: what the device is made to answer (see `attnkit.isolation.simulated`), or None: it is really asked.
        inject_faults: inject every fault instead, and report which case catches it.
        seed: of the case that is drawn anew; None draws one.
    """

    backend: str
    provider: str | None
    device: Device
    specs: tuple[AttentionSpec, ...]
    level: Level
    fault: str | None = None
    planted_answer: str | None = None
    inject_faults: bool = False
    seed: int | None = None


REQUEST = TypeAdapter(Request)


CASE = TypeAdapter(CaseResult)


VERDICT = TypeAdapter(Verdict)


FAULT_RESULT = TypeAdapter(FaultResult)
