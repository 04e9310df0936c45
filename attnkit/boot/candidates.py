"""What boot tests, in order: for every accepted backend, the implementation that will compute in the engine.

An engine has its own implementations. Validating attnkit's TORCH_SDPA says nothing about the CPU_ATTN that vLLM runs for it, so
where the engine is known the self-test drives the engine's own class, through the engine's own paged cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnkit.backends.base import Accepted
from attnkit.backends.registry import canonical, get
from attnkit.engines.vllm import command as vllm_command
from attnkit.engines.vllm import encoder
from attnkit.engines.vllm.driver import PREFIX
from attnkit.engines.vllm.expected import Expected, expected
from attnkit.engines.vllm.names import resolve
from attnkit.engines.vllm.plugin import SLOTS, VARIABLE, lacking
from attnkit.errors import NoBackendError
from attnkit.select.plan import Plan


@dataclass(frozen=True)
class Candidate:
    """One accepted backend, and what computes when the engine is told to use it.

    Args:
        backend: canonical name, as selection chose it.
        provider: what the self-test runs it with.
        test: what the self-test runs: the backend itself, or the engine's implementation ("vllm:CPU_ATTN").
        serves: name of what computes while serving ("CPU_ATTN").
        by: whose implementation that is, for the report ("vllm 0.32.0", or the provider).
        expected: what the engine's log must say; None where the engine is not known.
    """

    backend: str
    provider: str | None
    test: str
    serves: str
    by: str
    expected: Expected | None = None


@dataclass(frozen=True)
class Candidates:
    """What is tested, in order, and what the engine cannot be told to use.

    Args:
        kept: to be tested.
        refused: backend and why, in the order of selection; only what comes before the first one kept is a fallback.
    """

    kept: tuple[Candidate, ...]
    refused: tuple[tuple[str, str], ...] = ()


def candidates(
    plan: Plan, command: vllm_command.VllmCommand | None, environment: Mapping[str, str], *, engine_check: bool = True
) -> Candidates:
    """Turn accepted backends into what is to be tested.

    Args:
        plan: place and decision.
        command: the engine's command where it is vLLM's, else None.
        environment: what the engine will see; attnkit's plugin is switched on through it.
        engine_check: False tests attnkit's own implementation whatever the engine runs (for an engine whose interface moved).

    Raises:
        NoBackendError: no accepted backend can be selected in the engine; the message has a reason for each.
    """
    accepted = plan.decision.accepted
    version = vllm_command.engine_version() if command is not None else None
    platform = vllm_command.platform_of(plan.node.device)
    if version is None or platform == "tpu":  # vLLM has one backend on a TPU, and attnkit has no driver for it
        return Candidates(tuple(_attnkits_own(candidate) for candidate in accepted))
    plugin = environment.get(VARIABLE, "").strip() if platform in SLOTS else ""
    kept: list[Candidate] = []
    refused: list[tuple[str, str]] = []
    for candidate in accepted:
        found = resolve(candidate.backend, version, platform)
        through_plugin = bool(plugin) and canonical(plugin) == candidate.backend
        if not found.ok and not through_plugin:
            refused.append((candidate.backend, _refusal(candidate.backend, version, platform, found.note)))
            continue
        runs = expected(found.now, platform, environment if through_plugin else {}, mla=_is_mla(plan), amx=_has_amx(plan))
        if runs is not None and _is_encoder(plan) and runs.log in encoder.DRIVEN.get(platform, ()):
            runs = Expected(f"{PREFIX}{encoder.ENCODER}{runs.log}", runs.log)
        if runs is None or not engine_check:
            kept.append(_attnkits_own(candidate))
        elif any(earlier.test == runs.test and earlier.serves == runs.log for earlier in kept):
            refused.append((candidate.backend, f"vLLM {version} on {platform} runs {runs.log} for it too"))
        else:
            by = f"attnkit in vllm {version}" if through_plugin else f"vllm {version}"
            kept.append(Candidate(candidate.backend, None, runs.test, runs.log, by, runs))
    if not kept:
        lines = [f"  {backend}: {reason}" for backend, reason in refused]
        raise NoBackendError("\n".join(["no backend that is usable here can be selected in the engine:", *lines]))
    return Candidates(tuple(kept), tuple(refused))


def _attnkits_own(candidate: Accepted) -> Candidate:
    name = candidate.backend
    return Candidate(name, candidate.provider, test=name, serves=name, by=candidate.provider)


def _refusal(backend: str, version: str, platform: str, note: str) -> str:
    text = f"vLLM {version} on {platform} cannot be told to use it: {note}"
    if platform not in SLOTS:
        return text
    if needs := lacking(get(backend)):
        return f"{text} (attnkit's plugin cannot either: vLLM's attention layers do not pass {needs})"
    return f"{text} (attnkit's plugin can compute it there: {VARIABLE}={backend})"


def _is_encoder(plan: Plan) -> bool:
    """A model without a decoder, whose layers have no cache."""
    return {spec.op for spec in plan.requirements.specs} == {"varlen"}


def _is_mla(plan: Plan) -> bool:
    return any(spec.op == "mla_decode" for spec in plan.requirements.specs)


def _has_amx(plan: Plan) -> bool:
    return "amx_tile" in plan.node.device.features
