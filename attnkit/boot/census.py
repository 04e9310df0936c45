"""What is to be validated, asked of the engine itself where it is there: the layers that it builds for this very command."""

from __future__ import annotations

from collections.abc import Mapping

from attnkit.engines.vllm.census import Census, language_specs, take
from attnkit.engines.vllm.command import VllmCommand, engine_version
from attnkit.errors import InconclusiveError
from attnkit.select.plan import Requirements

SECONDS = 180.0
"""What vLLM may take to build a model without weights: about 20 s on two idle cores."""


def ask(command: VllmCommand | None, environment: Mapping[str, str]) -> tuple[Requirements | None, str | None]:
    """The requirements of one rank, counted by vLLM; None where it is not there, or cannot say, and then why.

    Nothing is asked where the model is not on this machine: vLLM would have to download it.
    """
    if command is None or engine_version() is None or command.local_model is None:
        return None, None
    try:
        census = take(command.engine_options, environment=command.environment(environment), timeout=SECONDS)
    except InconclusiveError as error:
        return None, f"{error}; what is validated was read from the model's configuration instead"
    return requirements(census, f"vLLM {engine_version()}"), None


def requirements(census: Census, engine: str) -> Requirements:
    """A census as requirements."""
    ranks = f", one of {census.tensor} tensor-parallel ranks" if census.tensor > 1 else ""
    stages = f", the first of {census.pipeline} pipeline stages" if census.pipeline > 1 else ""
    notes = [
        f"{one.kind.count} {one.kind.role} layers are computed by {one.backend} where nothing else is asked for"
        for one in census.counted
        if one.backend is not None
    ]
    if census.pipeline > 1:
        notes.append("the layers of the other pipeline stages were not counted")
    return Requirements(
        f"{engine}: {census.architecture or census.model}{ranks}{stages}",
        tuple(language_specs(census)),
        tuple(dict.fromkeys(notes)),
        tuple(one.kind for one in census.counted),
        census.other,
        backends=tuple(one.backend for one in census.counted),
    )
