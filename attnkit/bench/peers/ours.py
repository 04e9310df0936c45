"""attnkit's own kernels, through the same functions as its backends, without the checks before a run."""

from __future__ import annotations

from typing import ClassVar

from attnkit.bench import GROUPS
from attnkit.bench.peers.base import Peer, Run, Unsupported
from attnkit.bench.results import OURS
from attnkit.spec import (
    Call,
    DifferentialAttention,
    DualChunkAttention,
    MlaDecode,
    PagedAttention,
    TreeAttention,
    VarlenAttention,
)


class Triton(Peer):
    """Our portable Triton kernels."""

    name: ClassVar[str] = OURS
    modules: ClassVar[tuple[str, ...]] = ("attnkit.kernels.triton.paged.plan",)
    groups: ClassVar[tuple[str, ...]] = GROUPS

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`; our kernels plan nothing on the host."""
        from attnkit.kernels.triton import differential
        from attnkit.kernels.triton.dual_chunk import plan as dual_chunk
        from attnkit.kernels.triton.mla import plan as mla_plan
        from attnkit.kernels.triton.paged import plan as paged_plan

        if isinstance(call, PagedAttention):
            return lambda: paged_plan.paged(call)[::2]
        if isinstance(call, VarlenAttention):
            return lambda: paged_plan.varlen(call)[::2]
        if isinstance(call, MlaDecode):
            return lambda: mla_plan.run(call)[::2]
        if isinstance(call, TreeAttention):
            paged, mask = call.paged, call.tree_mask
            return lambda: paged_plan.paged(paged, tree_mask=mask)[::2]
        if isinstance(call, DualChunkAttention):
            return lambda: dual_chunk.run(call)[::2]
        if isinstance(call, DifferentialAttention):
            return lambda: differential.run(call)
        raise Unsupported(f"no kernel for {call.op}")
