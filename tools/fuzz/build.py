"""The tensors of a `Draw`: laid out as it says, with everything around them watched."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch

from attnkit.selftest.tensors import every_fifth_hidden, relative_bias
from attnkit.spec import (
    Call,
    DifferentialAttention,
    DualChunkAttention,
    MlaDecode,
    PagedAttention,
    Softmax,
    TreeAttention,
    VarlenAttention,
)
from tools.fuzz.draws import JUNK, Draw

PARENTS = (-1, 0, 0, 1, 1, 2, 3, 3)
NOWHERE = 1 << 24
"""A block that no cache has."""
FAR = (1 << 31) + (1 << 20)


@dataclass
class Built:
    """A call, and the memory that it lies in.

    Args:
        rows: of the output that belong to a sequence; the rest is padding, which may hold anything.
        given: storages that must be as they were afterwards; `out` is judged, not compared.
    """

    call: Call
    rows: int
    out: torch.Tensor | None
    given: list[torch.Tensor] = field(default_factory=list)
    around: torch.Tensor | None = None

    def snapshot(self) -> list[torch.Tensor]:
        """Copies of everything that no call may write."""
        return [_bytes(x).clone() for x in self.given] + ([] if self.around is None else [self.outside()])

    def outside(self) -> torch.Tensor:
        """The memory around the output."""
        assert self.around is not None and self.out is not None
        copy = self.around.clone()
        copy.as_strided(self.out.shape, self.out.stride(), self.out.storage_offset()).zero_()
        return _bytes(copy)


def build(draw: Draw, device: str = "cpu") -> Built:
    """The call that a draw means, on `device`."""
    return _Builder(draw, device).build()


class _Builder:
    def __init__(self, draw: Draw, device: str) -> None:
        self.draw, self.device = draw, device
        self.chance = torch.Generator().manual_seed(draw.seed)
        self.dtype: torch.dtype = getattr(torch, draw.dtype)
        self.given: list[torch.Tensor] = []

    def build(self) -> Built:
        draw = self.draw
        new, total = [n for n, _ in draw.seqs], [n for _, n in draw.seqs]
        rows, tokens = sum(new), sum(new) + draw.padding
        query = self.query(tokens)
        differential = draw.op == "differential"
        shape = (tokens, draw.heads // 2, 2 * draw.head_dim_v) if differential else (tokens, draw.heads, draw.head_dim_v)
        out, around = self.output(shape)
        softmax = Softmax(
            draw.head_dim**-0.5,
            draw.causal,
            draw.window,
            draw.softcap,
            self.vector(2.0 ** -(1.0 + 7.0 * torch.rand(draw.heads, generator=self.chance))) if draw.alibi else None,
            self.vector(torch.randn(draw.heads, generator=self.chance)) if draw.sinks else None,
            relative_bias if draw.mods else None,
            every_fifth_hidden if draw.mods else None,
        )
        starts = self.index([0, *accumulate(new)])
        longest, most = max(new), max(total)
        call: Any
        if draw.op == "varlen":
            keys = self.junk(self.normal(sum(total) + draw.padding, draw.kv_heads, draw.head_dim), sum(total))
            values = self.junk(self.normal(sum(total) + draw.padding, draw.kv_heads, draw.head_dim_v), sum(total))
            key, value = (self.rows(x.to(self.dtype), draw.query) for x in (keys, values))
            key_starts = self.index([0, *accumulate(total)])
            call = VarlenAttention(query, key, value, starts, key_starts, longest, most, softmax, draw.lse, out)
        else:
            table, key, value, scale = self.caches(total)
            lens = self.index(total)
            if draw.op == "mla_decode":
                call = MlaDecode(
                    query, key.squeeze(2), table, lens, starts, longest, most, draw.head_dim_v, 192**-0.5, scale, draw.lse, out
                )
            else:
                call = PagedAttention(
                    query, key, value, table, lens, starts, longest, most, softmax, scale, scale, draw.lse, out
                )
        return Built(self.over(call), rows, out, self.given, around)

    def over(self, call: Any) -> Call:
        """The call itself, or what adds something to a paged batch."""
        draw = self.draw
        if draw.op == "tree":
            mask = torch.eye(len(PARENTS), dtype=torch.bool)
            for node, parent in enumerate(PARENTS):
                mask[node] |= mask[parent] if parent >= 0 else False
            return TreeAttention(call, self.keep(mask.T.contiguous()).T if draw.views else self.keep(mask))
        if draw.op == "dual_chunk":
            angle = torch.arange(128)[:, None] * 10000.0 ** (-torch.arange(0, draw.head_dim, 2) / draw.head_dim)
            return DualChunkAttention(call, 64, 16, self.keep(angle.cos()), self.keep(angle.sin()), 100)
        if draw.op == "differential":
            weight = self.vector(1.0 + 0.1 * self.normal(2 * draw.head_dim_v)).to(self.dtype)
            return DifferentialAttention(call, 0.45, 0.36, weight)
        return call  # type: ignore[no-any-return]

    def query(self, tokens: int) -> torch.Tensor:
        made = self.normal(tokens, self.draw.heads, self.draw.head_dim)
        return self.rows(self.junk(made, sum(n for n, _ in self.draw.seqs)).to(self.dtype), self.draw.query)

    def rows(self, x: torch.Tensor, layout: str) -> torch.Tensor:
        """Rows [tokens, heads, width], in a larger tensor or heads outermost."""
        if layout == "turned":
            return self.keep(x.transpose(0, 1).contiguous()).transpose(0, 1)
        if layout == "fused":
            wide = torch.full((x.shape[0], x.shape[1] + 2, x.shape[2]), math.nan, dtype=x.dtype)
            wide[:, 1:-1] = x
            return self.keep(wide)[:, 1:-1]
        return self.keep(x)

    def caches(self, total: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """Block table, key and value cache, and their scale."""
        draw, size = self.draw, self.draw.block_size
        blocks = [-(-n // size) for n in total]
        common = min(total) // size if draw.shared else 0
        count = common + sum(n - common for n in blocks) + 1
        order = (torch.randperm(count - 1, generator=self.chance) + 1).tolist()  # block 0 belongs to nobody
        shared = [order.pop() for _ in range(common)]
        table = torch.full((len(total), max(1, *blocks) + 1), NOWHERE, dtype=torch.int32)
        for row, n in enumerate(blocks):
            table[row, :n] = torch.tensor([*shared, *(order.pop() for _ in range(n - common))], dtype=torch.int32)
        scale = 0.25 if draw.cache else 1.0
        made = []
        for width in (draw.head_dim, draw.head_dim_v):
            data = torch.full((count, size, draw.kv_heads, width), JUNK[draw.junk])
            for row, n in enumerate(total):
                for at in range(blocks[row]):
                    held = min(size, n - at * size)
                    block = int(table[row, at])
                    if at >= common or row == 0:
                        data[block, :held] = self.normal(held, draw.kv_heads, width)
            made.append((data / scale).to(getattr(torch, draw.cache or draw.dtype)))
        key, value = made
        if draw.op == "mla_decode":
            value = key[..., : draw.head_dim_v]
            key = self.keep(key)
        elif draw.caches == "stacked" and draw.head_dim == draw.head_dim_v:
            both = self.keep(torch.stack((key.float(), value.float()), 1).to(key.dtype))
            key, value = both[:, 0], both[:, 1]
        elif draw.caches == "turned":
            key, value = (self.keep(x.transpose(1, 2).contiguous()).transpose(1, 2) for x in (key, value))
        else:
            key, value = self.keep(key), self.keep(value)
        if draw.far:
            table, key, value = self.far(table, key, value)
        if not draw.views:
            return self.keep(table), key, value, scale
        wide = torch.full((table.shape[1], 2 * table.shape[0]), NOWHERE, dtype=torch.int32)
        wide[:, ::2] = table.T
        return self.keep(wide).T[::2], key, value, scale

    def far(self, table: torch.Tensor, *caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same blocks at the end of caches of more than 2^31 elements."""
        found = []
        shift = 0
        for cache in caches:
            shift = max(shift, -(-FAR // cache[0].numel()))
        for cache in caches:
            large = torch.empty(shift + cache.shape[0], *cache.shape[1:], dtype=cache.dtype, device=cache.device)
            large[shift:] = cache
            found.append(large)
        return torch.where(table < NOWHERE, table + shift, table), *found

    def output(self, shape: tuple[int, ...]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        tokens, heads, width = shape
        if not self.draw.out:
            return None, None
        if self.draw.out == "turned":
            around = torch.full((heads + 2, tokens + 1, width), math.nan, dtype=self.dtype, device=self.device)
            return around[1:-1, :-1].transpose(0, 1), around
        around = torch.full((tokens + 2, heads + 1, width + 8), math.nan, dtype=self.dtype, device=self.device)
        return around[1:-1, 1:, :width], around

    def junk(self, x: torch.Tensor, used: int) -> torch.Tensor:
        x[used:] = JUNK[self.draw.junk]
        return x

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.chance)

    def index(self, numbers: list[int]) -> torch.Tensor:
        return self.strided(torch.tensor(numbers, dtype=torch.int32), 1 << 20)

    def vector(self, x: torch.Tensor) -> torch.Tensor:
        return self.strided(x, math.nan)

    def strided(self, x: torch.Tensor, between: float) -> torch.Tensor:
        """A vector, or a column of a matrix that holds it."""
        if not self.draw.views:
            return self.keep(x)
        wide = torch.full((x.shape[0], 3), between, dtype=x.dtype)
        wide[:, 1] = x
        return self.keep(wide)[:, 1]

    def keep(self, x: torch.Tensor) -> torch.Tensor:
        """On the device, and watched."""
        moved = x.to(self.device)
        self.given.append(moved)
        return moved


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)
