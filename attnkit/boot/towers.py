"""The towers of a model (vision, audio): what of them is validated before the engine starts, on the backend that computes them
there, and what cannot be, in words."""

from __future__ import annotations

from dataclasses import dataclass

from attnkit.boot.candidates import Candidate
from attnkit.engines.vllm.command import engine_version
from attnkit.engines.vllm.driver import PREFIX
from attnkit.engines.vllm.tower import DRIVEN, TOWER
from attnkit.select.plan import Requirements
from attnkit.spec import TOWERS, AttentionSpec, LayerKind
from attnkit.wording import heads_text


@dataclass(frozen=True)
class Tower:
    """What is tested of a model's towers: one backend with the kinds of layer that it computes."""

    candidate: Candidate
    specs: tuple[AttentionSpec, ...]


def tower_candidate(backend: str | None, platform: str) -> Candidate | None:
    """What drives the engine's backend `backend` of towers; None where nothing here does."""
    if backend is None or backend not in DRIVEN.get(platform, ()):
        return None
    return Candidate(backend, None, f"{PREFIX}{TOWER}{backend}", backend, f"vllm {engine_version()}")


def towers(need: Requirements, platform: str) -> tuple[list[Tower], list[str]]:
    """What is to be tested, and what cannot be.

    Args:
        need: with the backends that the engine says it takes; without them nothing is known of towers.
        platform: vLLM's word for it.
    """
    found: dict[Candidate, dict[AttentionSpec, None]] = {}
    unknown: list[str] = []
    for kind, backend in zip(need.layers, need.backends, strict=True) if need.backends else ():
        if kind.role not in TOWERS:
            continue
        candidate = tower_candidate(backend, platform)
        if candidate is not None:
            found.setdefault(candidate, {})[kind.spec] = None
        else:
            unknown.append(not_validated(kind, backend))
    return [Tower(candidate, tuple(specs)) for candidate, specs in found.items()], unknown


def not_validated(kind: LayerKind, backend: str | None) -> str:
    """The warning about a tower's layers that nothing here can ask."""
    layers = f"{kind.count} {kind.role} layers ({heads_text(kind.spec)})"
    return f"{layers} are not validated: attnkit cannot drive {backend or 'what computes them'} as the engine's towers do"
