"""What is timed: the list of workloads, each with its inputs, its cost and how early it is run.

Groups are those of the issue of fast kernels: decode, prefill, paged (prefill over cached context), mixed, mla, fp8, tree,
dual_chunk, differential. A rank says how much a workload matters: all of rank 0 run before any of rank 1, so that a run that
is cut short still has one row of everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from attnkit.bench import workloads
from attnkit.bench.workloads import MLA, Shape
from attnkit.spec import Call

ROTATE_BYTES = 200 << 20
"""Inputs rotate over at least this much memory, several times an L2 cache."""

MOST_COPIES = 64


@dataclass(frozen=True)
class Work:
    """One workload.

    Args:
        group, name: see `attnkit.bench.GROUPS`; names are unique.
        flops: useful floating-point operations of one call.
        nbytes: bytes of keys and values that must be read at least once.
        make: (dtype, device) -> one call with random inputs of its own.
        rank: 0 runs first.
        largest_error: relative error (norms) from which a peer counts as wrong and is not timed.
    """

    group: str
    name: str
    flops: float
    nbytes: int
    make: Callable[[torch.dtype, str], Call]
    rank: int = 1
    largest_error: float = 8e-3

    @property
    def copies(self) -> int:
        """How many sets of inputs rotate."""
        return max(1, min(MOST_COPIES, -(-ROTATE_BYTES // max(1, self.nbytes))))


def _decode(batch: int, context: int) -> Work:
    shape = workloads.decode(batch, context)
    rank = {(1, 8192): 0, (16, 8192): 0, (64, 8192): 0, (256, 8192): 1, (256, 32768): 3}.get((batch, context), 2)
    return Work("decode", shape.name, shape.flops, shape.cache_bytes, lambda d, v: workloads.paged_call(shape, d, v), rank)


def _prefill(batch: int, length: int, head_dim: int, rank: int) -> Work:
    shape = workloads.prefill(batch, length, head_dim)
    return Work("prefill", shape.name, shape.flops, shape.cache_bytes, lambda d, v: workloads.varlen_call(shape, d, v), rank)


def _paged(batch: int, new: int, cached: int, rank: int, head_dim: int = 128) -> Work:
    name = f"paged {batch}x{new}@{cached}" + ("" if head_dim == 128 else f" D{head_dim}")
    shape = Shape(name, (new,) * batch, (cached + new,) * batch, head_dim=head_dim)
    return Work("paged", name, shape.flops, shape.cache_bytes, lambda d, v: workloads.paged_call(shape, d, v), rank)


def _mla(batch: int, context: int, rank: int) -> Work:
    flops = 2.0 * batch * 128 * context * (576 + 512)
    name = f"mla B{batch} ctx{context}"
    return Work(
        "mla", name, flops, batch * context * 576 * 2, lambda d, v: workloads.mla_call(batch, context, d, device=v), rank
    )


def _fp8(batch: int, context: int, rank: int) -> Work:
    shape = workloads.decode(batch, context)
    # FA3 rounds the probabilities to e4m3 too: 2 % of error is its precision, not a fault.
    return Work(
        "fp8",
        f"fp8 {shape.name}",
        shape.flops,
        shape.cache_bytes // 2,
        lambda d, v: workloads.fp8_call(shape, d, v),
        rank,
        largest_error=6e-2,
    )


def _tree(batch: int, nodes: int, context: int, rank: int) -> Work:
    """FLOPs count the whole context for every node, and of the tree half, about what a random tree lets be seen."""
    shape = Shape("", (nodes,) * batch, (context + nodes,) * batch)
    flops = 4.0 * shape.num_heads * shape.head_dim * batch * nodes * (context + nodes / 2)
    name = f"tree B{batch} {nodes}@{context}"
    return Work("tree", name, flops, shape.cache_bytes, lambda d, v: workloads.tree_call(batch, nodes, context, d, v), rank)


DUAL_CHUNK = (32768, 1024)
"""Chunk and local size: at 128k four whole chunks lie behind the query."""


def _dual_chunk(batch: int, new: int, length: int, rank: int) -> Work:
    shape = Shape("", (new,) * batch, (length,) * batch, num_heads=28, num_kv_heads=4)
    name = f"dual chunk {batch}x{new} len{length}"
    return Work(
        "dual_chunk",
        name,
        shape.flops,
        shape.cache_bytes,
        lambda d, v: workloads.dual_chunk_call(shape, *DUAL_CHUNK, d, v),
        rank,
    )


def _differential(batch: int, new: int, length: int, rank: int) -> Work:
    shape = Shape("", (new,) * batch, (length,) * batch, num_heads=32, num_kv_heads=16, head_dim=64)
    name = f"differential {batch}x{new} len{length}"
    # Two score products and two value products of twice the width: 3/2 of plain attention.
    return Work(
        "differential",
        name,
        shape.flops * 1.5,
        shape.cache_bytes,
        lambda d, v: workloads.differential_call(shape, d, v),
        rank,
    )


WORKS: tuple[Work, ...] = (
    *(_decode(batch, context) for context in (8192, 1024, 32768) for batch in (1, 16, 64, 256)),
    _prefill(4, 4096, 128, 0),
    _prefill(1, 16384, 128, 0),
    _prefill(16, 1024, 128, 0),
    _prefill(4, 4096, 64, 0),
    _paged(4, 2048, 8192, 0),
    _paged(16, 512, 4096, 2),
    _paged(1, 4096, 32768, 2),
    Work(
        "mixed",
        workloads.MIXED.name,
        workloads.MIXED.flops,
        workloads.MIXED.cache_bytes,
        lambda d, v: workloads.paged_call(workloads.MIXED, d, v),
        0,
    ),
    *(_mla(batch, context, 0 if (batch, context) == (64, 4096) else 1) for batch, context in MLA),
    _fp8(64, 8192, 0),
    _fp8(16, 8192, 1),
    _fp8(1, 8192, 2),
    _fp8(16, 32768, 2),
    _tree(8, 64, 4096, 0),
    _tree(1, 64, 4096, 2),
    _dual_chunk(1, 1, 131072, 0),
    _dual_chunk(1, 2048, 131072, 2),
    _differential(16, 1, 8192, 0),
    _differential(4, 2048, 2048, 2),
)


def chosen(groups: Sequence[str], only: str = "") -> list[Work]:
    """The workloads of `groups` whose name contains `only`, the ones that matter most first; groups in the order given."""
    found = [work for work in WORKS if work.group in groups and only in work.name]
    return sorted(found, key=lambda work: (work.rank, groups.index(work.group)))
