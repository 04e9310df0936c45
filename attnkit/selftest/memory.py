"""The memory around an answer: written into the tensor that was given and nowhere else, nothing read that nobody wrote.

Three checks that the numbers of an answer do not make:

    guard zones     the output lies inside a larger buffer, whose rest must be the same bytes afterwards
    inputs          query, caches (other requests' blocks and unused ones too), tables, lengths: the same bytes afterwards
    poison          what torch allocates without a value is NaN while the backend runs, so that a partial result that was never
                    written is not read from memory that happens to hold the right one
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch

from attnkit.spec import AttentionOutput, Call

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

GUARD = 1 << 16
"""Bytes before and behind the output."""
MARK = 0x5A
LARGE = 1 << 30
"""Bytes from which an input is not compared: the cases past 2**31 elements, whose blocks in use are among smaller ones' too."""


@dataclass(frozen=True)
class Watched:
    """A call whose surroundings are watched.

    Args:
        call: with an output of its own, full of NaN, inside `around`.
        around: uint8, the output's bytes with `GUARD` more on either side.
        inputs: every tensor that the call reads, by name, and its bytes as they were.
    """

    call: Call
    around: Tensor
    inputs: dict[str, tuple[Tensor, Tensor]]

    def complaint(self, result: AttentionOutput) -> str:
        """What is wrong about where the answer was written; "" where nothing is."""
        out = self.call.batch.out
        assert out is not None
        same = result.out.data_ptr() == out.data_ptr() and result.out.stride() == out.stride()
        if not same or result.out.shape != out.shape:
            return "the output is not in the tensor that was given for it"
        if not bool((self.around[:GUARD] == MARK).all() & (self.around[-GUARD:] == MARK).all()):
            return "memory beside the output was written"
        changed = [name for name, (tensor, before) in self.inputs.items() if not torch.equal(_bytes(tensor), before)]
        return f"inputs were written: {', '.join(changed)}" if changed else ""


def watched(call: Call) -> Watched:
    """`call` with an output buffer between guard zones, and its inputs as they are now."""
    out = call.batch.out
    assert out is not None
    around = torch.full((GUARD + out.nbytes + GUARD,), MARK, dtype=torch.uint8, device=out.device)
    inner = around[GUARD : GUARD + out.nbytes].view(out.dtype).view(out.shape).fill_(math.nan)
    inputs = {name: (x, _bytes(x).clone()) for name, x in _tensors(call) if x.nbytes < LARGE}
    return Watched(call.with_batch(out=inner), around, inputs)


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a call but its output."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif is_dataclass(value):
        for field in fields(value):
            if field.name != "out":
                yield from _tensors(getattr(value, field.name), field.name)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, what torch allocates without a value holds NaN (of integers: the largest), on every device."""
    settings = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # operations that have no deterministic form say so
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.utils.deterministic.fill_uninitialized_memory = filled
            torch.use_deterministic_algorithms(settings[0], warn_only=settings[1])
