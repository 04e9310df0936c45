"""Fault injection: a self-test that cannot fail is worthless.

Each is a wrapper around the real backend. Where the call itself can be made wrong (a scale, a block-table entry, a dropped
feature) the backend really computes the wrong call. Where the fault sits inside a kernel (a lost rescale, a skipped tile) the
backend computes the right call and the difference that the fault makes, worked out in float64, is added to its result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

from attnkit.backends.base import Backend
from attnkit.errors import unknown_name
from attnkit.spec import (
    NO_WINDOW,
    AttentionOutput,
    Call,
    DifferentialAttention,
    DualChunkAttention,
    MlaDecode,
    PagedAttention,
    TreeAttention,
    VarlenAttention,
)

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

Run: TypeAlias = Callable[[Call], AttentionOutput]
NOISE = "bits-vary"
TILE = 16
"""Keys a tile in the faults that mimic a kernel's loop."""


@dataclass(frozen=True)
class Fault:
    """One way to be wrong.

    Args:
        summary: one line for people.
        applies: whether this call can be wrong in this way at all.
        run: (the real backend's run, the right call) -> the wrong result.
    """

    summary: str
    applies: Callable[[Call], bool]
    run: Callable[[Run, Call], AttentionOutput]


def with_fault(backend: Backend, fault: str) -> Backend:
    """`backend` with a fault in every provider: the wrong answer where the fault applies to a call, the right one elsewhere."""
    wrong = find_fault(fault)

    def faulty(right: Run) -> Run:
        return lambda call: wrong.run(right, call) if wrong.applies(call) else right(call)

    return replace(backend, providers=tuple(replace(p, run=faulty(p.run)) for p in backend.providers))


def find_fault(name: str) -> Fault:
    """The fault of that name; UsageError with the nearest names otherwise."""
    try:
        return FAULTS[name]
    except KeyError:
        raise unknown_name("fault", name, FAULTS) from None


def _softmax_field(name: str) -> Callable[[Call], bool]:
    def claimed(call: Call) -> bool:
        value = None if isinstance(call, TreeAttention) else getattr(call.batch.softmax, name)
        if isinstance(value, float | int | tuple):
            return value not in (0.0, NO_WINDOW)
        return value is not None

    return claimed


def _blocks(call: Call) -> Tensor | None:
    batch = call.batch
    return None if isinstance(batch, VarlenAttention) else batch.block_table


def _block_size(call: Call) -> int:
    batch = call.batch
    if isinstance(batch, MlaDecode):
        return int(batch.kv_cache.shape[1])
    assert isinstance(batch, PagedAttention)
    return int(batch.key_cache.shape[1])


def _long_row(call: Call) -> int | None:
    """A sequence with new tokens that spans two blocks or more, one whose rows are all visible to its last query."""
    batch = call.batch
    if isinstance(batch, VarlenAttention):
        return None
    new = batch.query_start_loc.diff().tolist()
    lens = batch.seq_lens.tolist()
    size = _block_size(call)
    rows = [i for i, n in enumerate(lens) if n > size and new[i]]
    return max(rows, key=lambda i: lens[i]) if rows else None


def _edit_table(edit: Callable[[Tensor, int, int], None]) -> Callable[[Run, Call], AttentionOutput]:
    """The backend on a block table with one entry wrong; `edit` gets the row and its number of full blocks."""

    def run(real: Run, call: Call) -> AttentionOutput:
        batch, row, table = call.batch, _long_row(call), _blocks(call)
        assert row is not None and table is not None and not isinstance(batch, VarlenAttention)
        table = table.clone()
        edit(table[row], int(batch.seq_lens[row]), _block_size(call))
        return real(call.with_batch(block_table=table))

    return run


def _swap(row: Tensor, length: int, size: int) -> None:
    # The last full block against the first: in a causal decode only the order of positions changes, which nothing sees,
    # so the exchange is with the partial last block where there is one, and NaN or wrong keys come in.
    last = -(-length // size) - 1
    row[0], row[last] = row[last].clone(), row[0].clone()


def _stale(row: Tensor, length: int, size: int) -> None:
    last = -(-length // size) - 1
    row[last] = row[last - 1]


def _shift_heads(real: Run, call: Call) -> AttentionOutput:
    batch = call.batch
    if isinstance(batch, VarlenAttention):
        return real(call.with_batch(key=batch.key.roll(1, 1), value=batch.value.roll(1, 1)))
    assert isinstance(batch, PagedAttention)
    keys, values = (_roll_heads(cache) for cache in (batch.key_cache, batch.value_cache))
    return real(call.with_batch(key_cache=keys, value_cache=values))


def _roll_heads(cache: Tensor) -> Tensor:
    import torch

    return cache.view(torch.uint8).roll(1, 2).view(cache.dtype) if cache.element_size() == 1 else cache.roll(1, 2)


def _several_kv_heads(call: Call) -> bool:
    return call.spec().num_kv_heads > 1


def _inside(softmax: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]) -> Callable[[Run, Call], AttentionOutput]:
    """Add to the real result what `softmax`, put in the place of the right one, changes."""

    def run(real: Run, call: Call) -> AttentionOutput:
        from attnkit.selftest.reference import reference

        result, right, wrong = real(call), reference(call), reference(call, softmax)
        out = result.out.detach().cpu().double() + (wrong.out - right.out)
        lse = result.lse
        if lse is not None and right.lse is not None and wrong.lse is not None:
            change = (wrong.lse - right.lse).nan_to_num(0.0, 0.0, 0.0)
            lse = (lse.detach().cpu().double() + change).to(lse)
        return _answer(result, out.to(result.out), lse)

    return run


def _answer(result: AttentionOutput, out: Tensor, lse: Tensor | None = None) -> AttentionOutput:
    result.out.copy_(out)
    return AttentionOutput(result.out, result.lse if lse is None else lse, result.kernel)


def _right_softmax(s: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    from attnkit.selftest.reference import probabilities

    return probabilities(s, sinks)


def _strict_mask(s: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """The last visible key of each row is hidden: < where it should be <=."""
    import torch

    position = torch.arange(s.shape[-1])
    last = torch.where(torch.isneginf(s), -1, position).amax(-1, keepdim=True) if s.shape[-1] else s[..., :0]
    return _right_softmax(s.masked_fill(position == last, -math.inf), sinks)


def _skip_last_tile(s: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    whole = s.shape[-1] // TILE * TILE
    s = s.clone()
    s[..., whole:] = -math.inf
    return _right_softmax(s, sinks)


def _no_rescale(s: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each tile keeps the running maximum it had: earlier tiles are never scaled down."""
    import torch

    if not s.shape[-1]:
        return _right_softmax(s, sinks)
    p, lse = _right_softmax(s, sinks)
    tiles = -(-s.shape[-1] // TILE)
    running = torch.cummax(
        torch.stack([s[..., t * TILE : (t + 1) * TILE].amax(-1) for t in range(tiles)], dim=-1), dim=-1
    ).values
    running = running.repeat_interleave(TILE, dim=-1)[..., : s.shape[-1]]
    weight = torch.exp(s - running.nan_to_num(neginf=0.0))
    total = weight.sum(-1, keepdim=True)
    return torch.where(total > 0, weight / total.clamp(min=1e-300), p), lse


def _narrow_accumulator(real: Run, call: Call) -> AttentionOutput:
    """The sum over keys kept in float16, as unnormalised partial sums: rounds, and overflows at 65504."""
    import torch

    from attnkit.selftest.reference import logits, paired, reference, sequences, value_head

    result, right = real(call), reference(call)
    wrong = right.out.clone()
    if isinstance(call, DifferentialAttention):
        return result
    for seq in sequences(call):
        if not seq.q.shape[0] or not seq.k.shape[0]:
            continue
        s = logits(call, seq)
        top = s.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
        weight = torch.exp(s - top)
        total = weight.sum(-1)
        if (sinks := call.batch.softmax.sinks) is not None:
            total = total + torch.exp(sinks.double().cpu()[:, None] - top.squeeze(-1))
        v = paired(seq.v) if isinstance(call, DifferentialAttention) else seq.v
        for head in range(s.shape[0]):
            acc = torch.zeros(seq.q.shape[0], v.shape[2], dtype=torch.float16)
            for start in range(0, s.shape[-1], TILE):
                part = weight[head, :, start : start + TILE] @ v[start : start + TILE, value_head(call, head)]
                acc = (acc.double() + part).to(torch.float16)
            wrong[seq.rows, head] = acc.double() / total[head].clamp(min=1e-300)[:, None]
    assert call.batch.query.shape[0] == wrong.shape[0]
    out = result.out.detach().cpu().double() + (wrong - right.out)
    return _answer(result, out.to(result.out))


def _nan_leak(real: Run, call: Call) -> AttentionOutput:
    """0 * NaN: a probability of zero times what an unused slot of the last block holds."""
    batch, result = call.batch, real(call)
    assert not isinstance(batch, VarlenAttention)
    starts, size = batch.query_start_loc.tolist(), _block_size(call)
    for row, length in enumerate(batch.seq_lens.tolist()):
        if length % size:
            result.out[starts[row] : starts[row + 1]] = math.nan
    return result


def _partial_block(call: Call) -> bool:
    batch = call.batch
    if isinstance(batch, VarlenAttention):
        return False
    new = batch.query_start_loc.diff().tolist()
    return any(n and length % _block_size(call) for n, length in zip(new, batch.seq_lens.tolist(), strict=True))


def _unwritten_row(real: Run, call: Call) -> AttentionOutput:
    result = real(call)
    result.out[-1, -1] = math.nan  # what the buffer held before
    return result


def _zero(real: Run, call: Call) -> AttentionOutput:
    result = real(call)
    result.out.zero_()
    return result


def _lse_in_log2(real: Run, call: Call) -> AttentionOutput:
    result = real(call)
    assert result.lse is not None
    return AttentionOutput(result.out, result.lse / math.log(2.0), result.kernel)


def _wider_window(real: Run, call: Call) -> AttentionOutput:
    left, right = call.batch.softmax.window
    return real(call.with_softmax(window=(left + 1 if left >= 0 else left, right)))


def _tree_as_chain(real: Run, call: Call) -> AttentionOutput:
    import torch

    assert isinstance(call, TreeAttention)
    return real(replace(call, tree_mask=torch.ones_like(call.tree_mask).tril()))


def _wrong_chunk(real: Run, call: Call) -> AttentionOutput:
    assert isinstance(call, DualChunkAttention)
    return real(replace(call, local_size=call.local_size + 1))


def _wrong_lambda(real: Run, call: Call) -> AttentionOutput:
    assert isinstance(call, DifferentialAttention)
    return real(replace(call, lambda_full=call.lambda_full + 0.1))


def _always(call: Call) -> bool:
    return True


def _not_differential(call: Call) -> bool:
    return not isinstance(call, DifferentialAttention)


def _scaled(real: Run, call: Call) -> AttentionOutput:
    return real(call.with_softmax(softmax_scale=call.batch.softmax.softmax_scale * 1.02))


def _dropped(field: str, value: Any) -> Callable[[Run, Call], AttentionOutput]:
    def run(real: Run, call: Call) -> AttentionOutput:
        return real(call.with_softmax(**{field: value}))

    return run


def _ragged_tail(call: Call) -> bool:
    batch = call.batch
    totals = batch.key_start_loc.diff() if isinstance(batch, VarlenAttention) else batch.seq_lens
    new = batch.query_start_loc.diff().tolist()
    return any(n and t % TILE for n, t in zip(new, totals.tolist(), strict=True))


def _full_rows(call: Call) -> list[int]:
    """Sequences with new tokens whose first block is full."""
    batch = call.batch
    if isinstance(batch, VarlenAttention):
        return []
    new = batch.query_start_loc.diff().tolist()
    return [i for i, n in enumerate(batch.seq_lens.tolist()) if new[i] and n >= _block_size(call)]


def _foreign_block(real: Run, call: Call) -> AttentionOutput:
    table, (one, other, *_) = _blocks(call), _full_rows(call)
    assert table is not None
    table = table.clone()
    table[one, 0], table[other, 0] = table[other, 0].clone(), table[one, 0].clone()
    return real(call.with_batch(block_table=table))


def _has_cache_scale(call: Call) -> bool:
    batch = call.batch
    return isinstance(batch, PagedAttention) and batch.k_scale != 1.0


def _no_cache_scale(real: Run, call: Call) -> AttentionOutput:
    return real(call.with_batch(k_scale=1.0))


_calls = count()


def _noise(real: Run, call: Call) -> AttentionOutput:
    """Every second run moves the largest element by a unit or two in the last place."""
    import torch

    result = real(call)
    if next(_calls) % 2:
        flat = result.out.view(-1)
        at = flat.abs().argmax()
        flat[at] = flat[at] * (1.0 - torch.finfo(flat.dtype).eps)
    return result


def _lse_without_sinks(real: Run, call: Call) -> AttentionOutput:
    result, bare = real(call), real(call.with_batch(out=None).with_softmax(sinks=None))
    return AttentionOutput(result.out, bare.lse, result.kernel)


FAULTS: Mapping[str, Fault] = {
    "scale": Fault("the softmax scale is 2 % too large", _always, _scaled),
    "mask-off-by-one": Fault("the mask hides the last visible key of every row", _always, _inside(_strict_mask)),
    "block-swapped": Fault(
        "the first and last block-table entries of one sequence are exchanged",
        lambda c: _long_row(c) is not None,
        _edit_table(_swap),
    ),
    "block-stale": Fault(
        "the last block-table entry of one sequence is that of the block before",
        lambda c: _long_row(c) is not None,
        _edit_table(_stale),
    ),
    "heads-shifted": Fault("query heads look at the key head next to theirs", _several_kv_heads, _shift_heads),
    "no-rescale": Fault("the online softmax forgets to rescale earlier tiles", _always, _inside(_no_rescale)),
    "last-tile-skipped": Fault("the last, partial tile of keys is skipped", _ragged_tail, _inside(_skip_last_tile)),
    "window-off-by-one": Fault("the sliding window is one key too wide", _softmax_field("window"), _wider_window),
    "nan-leak": Fault("NaN leaks in from unused slots of a cache block", _partial_block, _nan_leak),
    "row-not-written": Fault("one output row is not written", _always, _unwritten_row),
    "all-zero": Fault("the output is all zero", _always, _zero),
    "fp16-accumulator": Fault("the sum over keys is kept in float16", _not_differential, _narrow_accumulator),
    "softcap-ignored": Fault("softcap is not applied", _softmax_field("softcap"), _dropped("softcap", 0.0)),
    "alibi-ignored": Fault("ALiBi slopes are not applied", _softmax_field("alibi_slopes"), _dropped("alibi_slopes", None)),
    "sinks-ignored": Fault("sinks are left out of the denominator", _softmax_field("sinks"), _dropped("sinks", None)),
    "score-mod-ignored": Fault("score_mod is not called", _softmax_field("score_mod"), _dropped("score_mod", None)),
    "mask-mod-ignored": Fault("mask_mod is not called", _softmax_field("mask_mod"), _dropped("mask_mod", None)),
    "window-ignored": Fault("the sliding window is not applied", _softmax_field("window"), _dropped("window", NO_WINDOW)),
    "block-foreign": Fault(
        "one block-table entry of one sequence is exchanged with another's", lambda c: len(_full_rows(c)) > 1, _foreign_block
    ),
    "cache-scale-ignored": Fault("the scale of a float8 cache is not applied to the keys", _has_cache_scale, _no_cache_scale),
    NOISE: Fault("the same input gives other bits each time", _always, _noise),
    "lse-without-sinks": Fault(
        "the log-sum-exp leaves the sinks out",
        lambda c: bool(c.batch.return_lse) and _softmax_field("sinks")(c),
        _lse_without_sinks,
    ),
    "lse-log2": Fault("the log-sum-exp is in base 2", lambda c: bool(c.batch.return_lse), _lse_in_log2),
    "tree-as-chain": Fault(
        "the tree is taken for a chain: siblings are visible", lambda c: isinstance(c, TreeAttention), _tree_as_chain
    ),
    "chunk-off-by-one": Fault("the chunk period is one off", lambda c: isinstance(c, DualChunkAttention), _wrong_chunk),
    "lambda-off": Fault(
        "lambda of differential attention is off by 0.1", lambda c: isinstance(c, DifferentialAttention), _wrong_lambda
    ),
}
"""Every fault by name. `attnkit selftest --inject-faults` injects them all; ATTNKIT_FAULT injects one in a boot."""
