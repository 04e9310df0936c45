"""How many devices serve one model, how many copies of it there are, and the memory they take: what a vLLM command says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnkit.engines.vllm.arguments import option_value
from attnkit.engines.vllm.command import VllmCommand
from attnkit.errors import UsageError

USUAL_MEMORY_SHARE = 0.9
"""vLLM's default of --gpu-memory-utilization; taken for other engines too, which fill the memory likewise."""


@dataclass(frozen=True)
class Parallelism:
    """The devices of one copy of the model.

    Args:
        tensor: ranks that the heads of each layer are split over.
        pipeline: stages that the layers are split over.
        replicas: copies of the model on this machine (data parallel).
    """

    tensor: int = 1
    pipeline: int = 1
    replicas: int = 1

    @property
    def devices(self) -> int:
        """How many devices talk to one another."""
        return self.tensor * self.pipeline


def parallelism(command: VllmCommand | None, profile_args: Sequence[str] = ()) -> Parallelism:
    """What the command says, else the profile's engine arguments; one device where neither does.

    Raises:
        UsageError: a size that is no positive whole number.
    """
    if command is None:
        return Parallelism()
    return Parallelism(
        _size(command, profile_args, "--tensor-parallel-size", "-tp"),
        _size(command, profile_args, "--pipeline-parallel-size", "-pp"),
        _replicas(command, profile_args),
    )


def memory_share(command: VllmCommand | None, profile_args: Sequence[str] = ()) -> float:
    """Fraction of a device's memory that the engine takes."""
    name = "--gpu-memory-utilization"
    text = (command.option(name) if command else None) or option_value(profile_args, name)
    try:
        share = USUAL_MEMORY_SHARE if text is None else float(text)
    except ValueError:
        share = -1.0
    if not 0.0 < share <= 1.0:
        raise UsageError(f"{name} must be a number above 0 and up to 1, not {text!r}")
    return share


def _replicas(command: VllmCommand, profile_args: Sequence[str]) -> int:
    """One where a rank is given (each replica is then a command of its own), else the local share, else all of them."""
    if command.option("--data-parallel-rank", "-dpn"):
        return 1
    if command.option("--data-parallel-size-local", "-dpl") == "0":  # a node with the API server alone
        return 0
    everywhere = _size(command, profile_args, "--data-parallel-size", "-dp")
    return _size(command, profile_args, "--data-parallel-size-local", "-dpl", default=everywhere)


def _size(command: VllmCommand, profile_args: Sequence[str], *names: str, default: int = 1) -> int:
    text = command.option(*names) or option_value(profile_args, *names) or str(default)
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise UsageError(f"{names[0]} must be a positive whole number, not {text!r}")
    return int(text)
