"""Is a timed answer right? The self-test's rule (selftest/tolerance.py) on sampled rows of the very inputs that are timed.

A benchmark's batch is too large for the float64 reference. One row of it is not: a new token with the keys it sees is a decode
of one sequence. `Judge` cuts some such rows out of the call, at most four key heads of each, and holds the same rows of an
implementation's output against the reference, with the baseline's error as the measure. Oracle and baseline are computed once a
workload: by the reference itself on the CPU, or, for plain attention on a GPU, by the same formulas there, because a minute of
float64 a workload is more than a borrowed GPU has (tests/bench holds the two together).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnkit.selftest.baseline import baselines
from attnkit.selftest.reference import reference
from attnkit.selftest.tolerance import judge
from attnkit.spec import (
    AttentionOutput,
    Call,
    DifferentialAttention,
    DualChunkAttention,
    MlaDecode,
    PagedAttention,
    Softmax,
    TreeAttention,
    VarlenAttention,
)

MOST_KV_HEADS = 4
MOST_MLA_HEADS = 16
MOST_KEYS = 1 << 18
"""Keys of all heads together that the CPU is asked to look at; fewer heads of long sequences are looked at."""


@dataclass(frozen=True)
class Judgement:
    """`error`: ||out - exact|| / ||exact|| over the sampled rows. `reason`: why it is outside the self-test's bounds, or ""."""

    error: float
    reason: str


class Judge:
    """Holds outputs of one call against the reference."""

    def __init__(self, call: Call) -> None:
        self._spec = call.spec()
        self._rows = sampled_rows(call)
        if is_plain(call) and call.batch.query.is_cuda:
            self._heads, self._exact, eager = on_device(call, self._rows)
            self._baselines: tuple[AttentionOutput, ...] = (AttentionOutput(eager, None, "eager"),)
        else:
            self._heads, small = cut(call, self._rows)
            self._exact = reference(small).out
            self._baselines = baselines(small)

    def __call__(self, out: Tensor) -> Judgement:
        """Judge `out`, the whole output of the call, which was filled with NaN before; every element must have been written."""
        missing = int((~torch.isfinite(out)).sum())
        if missing:
            return Judgement(math.nan, f"output is not finite (or was not written) in {missing} elements")
        tokens = torch.tensor([token for _, token, _ in self._rows], device=out.device)
        got = out[tokens][:, self._heads.to(out.device)].cpu()
        error = float((got.double() - self._exact).norm() / self._exact.norm())
        spec = replace(self._spec, features=self._spec.features - {"lse"})
        found = judge(AttentionOutput(got, None, ""), AttentionOutput(self._exact, None, ""), self._baselines, spec)
        return Judgement(error, found.reason)


def is_plain(call: Call) -> bool:
    """Softmax of scaled products over the visible keys, and nothing else."""
    if isinstance(call, DualChunkAttention | DifferentialAttention):
        return False
    softmax = call.batch.softmax
    return replace(softmax, causal=True) == Softmax(softmax.softmax_scale)


def on_device(call: Call, rows: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Output heads compared, exact rows in float64, baseline rows in the call's dtype: computed where the call lies.

    The formulas are those of `attnkit.selftest.reference.reference` and `attnkit.selftest.baseline.baseline`.
    """
    batch = call.batch
    begins = batch.query_start_loc.tolist()
    kv_heads, heads, out_heads = _heads(call, MOST_KV_HEADS)
    dtype = batch.query.dtype
    scale = batch.softmax.softmax_scale
    scales = (batch.k_scale, batch.v_scale) if isinstance(batch, PagedAttention) else (1.0, 1.0)
    if isinstance(batch, MlaDecode):
        scales = (batch.kv_scale, batch.kv_scale)
    exact, eager = [], []
    for seq, token, node in rows:
        key, value = _visible(call, seq, node, begins[seq + 1] - begins[seq], kv_heads)
        key, value = key.float().double() * scales[0], value.float().double() * scales[1]
        if isinstance(batch, MlaDecode):
            value = value[..., : batch.kv_lora_rank]
        query = batch.query[token, heads.to(batch.query.device)].double().view(key.shape[1], -1, key.shape[2])
        exact.append(_product("hgl,lhd->hgd", torch.softmax(_product("hgd,lhd->hgl", query, key) * scale, -1), value))
        scores = _product("hgd,lhd->hgl", query.to(dtype), key.to(dtype) * scale)
        eager.append(_product("hgl,lhd->hgd", torch.softmax(scores.float(), -1).to(dtype), value.to(dtype)))
    return out_heads, torch.stack(exact).flatten(1, 2).cpu(), torch.stack(eager).flatten(1, 2).cpu()


def _product(equation: str, left: Tensor, right: Tensor) -> Tensor:
    """A product in float64, rounded once to the dtype of `left`."""
    return torch.einsum(equation, left.double(), right.double()).to(left.dtype)


def sampled_rows(call: Call) -> list[tuple[int, int, int]]:
    """(sequence, row of the output, node within the sequence): ends and a third of the first, middle and last sequence."""
    batch = call.batch
    begins = batch.query_start_loc.tolist()
    count = len(begins) - 1
    rows = []
    for seq in sorted({0, count // 2, count - 1}):
        length = begins[seq + 1] - begins[seq]
        rows += [(seq, begins[seq] + node, node) for node in sorted({0, length // 3, length - 1})]
    return rows


def cut(call: Call, rows: list[tuple[int, int, int]]) -> tuple[Tensor, Call]:
    """The output heads that are compared, and a small call on the CPU whose sequences are `rows`."""
    batch = call.batch
    begins = batch.query_start_loc.tolist()
    keys_a_head = len(rows) * batch.max_seq_len
    kv_heads, heads, out_heads = _heads(call, max(2, min(MOST_KV_HEADS, MOST_KEYS // keys_a_head)))
    tokens = torch.tensor([token for _, token, _ in rows], device=batch.query.device)
    query = batch.query[tokens][:, heads.to(batch.query.device)].cpu()
    keys, values = [], []
    for seq, _, node in rows:
        key, value = _visible(call, seq, node, begins[seq + 1] - begins[seq], kv_heads)
        keys.append(key.cpu())
        values.append(value.cpu())
    lengths = torch.tensor([key.shape[0] for key in keys], dtype=torch.int32)
    fields = {
        "block_table": torch.arange(len(rows), dtype=torch.int32)[:, None],
        "seq_lens": lengths,
        "query_start_loc": torch.arange(len(rows) + 1, dtype=torch.int32),
        "max_query_len": 1,
        "max_seq_len": int(lengths.max()),
        "return_lse": False,
        "out": None,
    }
    key_cache = torch.nn.utils.rnn.pad_sequence(keys, batch_first=True)
    if isinstance(batch, MlaDecode):
        return out_heads, replace(batch, query=query, kv_cache=key_cache.squeeze(2), **fields)
    value_cache = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
    scales = (batch.k_scale, batch.v_scale) if isinstance(batch, PagedAttention) else (1.0, 1.0)
    paged = PagedAttention(
        query=query,
        key_cache=key_cache,
        value_cache=value_cache,
        softmax=replace(batch.softmax, causal=True),
        k_scale=scales[0],
        v_scale=scales[1],
        **fields,
    )
    if isinstance(call, DualChunkAttention):
        return out_heads, replace(
            call, paged=paged, rope_cos=call.rope_cos.cpu(), rope_sin=call.rope_sin.cpu(), original_max_position=None
        )
    if isinstance(call, DifferentialAttention):
        weight = None if call.norm_weight is None else call.norm_weight.cpu()
        return out_heads, replace(call, paged=paged, norm_weight=weight)
    return out_heads, paged


def _heads(call: Call, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Key heads, query heads and output heads that are looked at: the first and last key heads, at most `most`, and theirs."""
    spec = call.spec()
    if isinstance(call, MlaDecode):
        half = min(MOST_MLA_HEADS, spec.num_heads) // 2
        heads = torch.tensor([*range(half), *range(spec.num_heads - half, spec.num_heads)])
        return torch.tensor([0]), heads, heads
    count, group = spec.num_kv_heads, spec.num_heads // spec.num_kv_heads
    most = 2 * (most // 2)  # even at both ends: differential attention has heads in pairs
    kv = [*range(count)]
    if count > most:
        half = most // 2 if not isinstance(call, DifferentialAttention) else 2 * max(1, most // 4)
        kv = [*kv[:half], *kv[count - half :]]
    heads = torch.tensor([head * group + i for head in kv for i in range(group)])
    if isinstance(call, DifferentialAttention):
        pairs = torch.tensor(sorted({int(head) // 2 for head in heads}))
        return torch.tensor(kv), heads, pairs
    return torch.tensor(kv), heads, heads


def _visible(call: Call, seq: int, node: int, query_len: int, kv_heads: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values [length, heads, width] that the new token `node` of `seq` sees, in the dtype of the cache."""
    batch = call.batch
    if isinstance(batch, VarlenAttention):
        begin, end = batch.key_start_loc[seq : seq + 2].tolist()
        heads = kv_heads.to(batch.key.device)
        seen = slice(begin, end - query_len + node + 1)
        return batch.key[seen][:, heads], batch.value[seen][:, heads]
    length = int(batch.seq_lens[seq])
    context = length - query_len
    if isinstance(call, TreeAttention):
        nodes = call.tree_mask[node].nonzero().flatten().cpu() + context
        at = torch.cat((torch.arange(context), nodes))
    else:
        at = torch.arange(context + node + 1)
    if isinstance(batch, MlaDecode):
        key = _rows(batch.kv_cache.unsqueeze(2), batch.block_table[seq], at, kv_heads)
        return key, key
    return (
        _rows(batch.key_cache, batch.block_table[seq], at, kv_heads),
        _rows(batch.value_cache, batch.block_table[seq], at, kv_heads),
    )


def _rows(cache: Tensor, table: Tensor, at: Tensor, heads: Tensor) -> Tensor:
    """Tokens `at` of a sequence out of the paged cache, some heads of them, in the cache's dtype."""
    at, heads = at.to(cache.device), heads.to(cache.device)
    size = cache.shape[1]
    bits = cache.view(torch.uint8) if cache.element_size() == 1 else cache  # float8 cannot be indexed everywhere
    found = bits[table[at // size].long(), at % size][:, heads]
    return found.view(cache.dtype)
