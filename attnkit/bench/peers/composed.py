"""What people do without a kernel for it: tree, dual chunk and differential attention put together from ordinary calls.

Parts run one after the other and are joined by their log-sum-exps. Two sets of parts: FlashAttention 3 with vLLM's merge
kernel, and our own paged kernels with torch. What can be done once a step (rotated keys, block tables of the chunks) is done
before the timing.

    tree          context by one call without a mask; the nodes among themselves by torch under the tree mask; join
    dual chunk    own chunk (causal), the chunk before, everything earlier: three rotations of the query, three calls; join
    differential  four calls, (first, second score) x (first, second half of the values), then difference, norm and scale
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from attnkit.bench.peers.base import Peer, Run, Unsupported
from attnkit.spec import Call, DifferentialAttention, DualChunkAttention, PagedAttention, TreeAttention

Part: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""query [tokens, heads, head_dim] -> out and log-sum-exp [tokens, heads] float32, over keys fixed when the part was made."""


class _Composed(Peer):
    groups: ClassVar[tuple[str, ...]] = ("tree", "dual_chunk", "differential")

    @abstractmethod
    def part(self, call: PagedAttention) -> Part:
        """Attention over the cache of `call` for a query given later."""

    def join(self, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """One attention out of several over disjoint keys."""
        return join(parts)

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        if isinstance(call, TreeAttention):
            return self._tree(call)
        if isinstance(call, DualChunkAttention):
            return self._dual_chunk(call)
        if isinstance(call, DifferentialAttention):
            return self._differential(call)
        raise Unsupported(f"nothing to compose for {call.op}")

    def _tree(self, call: TreeAttention) -> Run:
        paged, nodes = call.paged, call.paged.max_query_len
        batch = paged.seq_lens.shape[0]
        if paged.query.shape[0] != batch * nodes:
            raise Unsupported("trees of unequal sizes")
        context = replace(
            paged,
            seq_lens=paged.seq_lens - nodes,
            max_seq_len=paged.max_seq_len - nodes,
            softmax=replace(paged.softmax, causal=False),
        )
        over_context = self.part(context)
        heads, kv_heads = paged.query.shape[1], paged.key_cache.shape[2]
        slots = _slots(paged, paged.max_seq_len - nodes, nodes)
        scale, mask = paged.softmax.softmax_scale, call.tree_mask
        flat_keys, flat_values = paged.key_cache.flatten(0, 1), paged.value_cache.flatten(0, 1)

        def run() -> tuple[Tensor, str]:
            out, lse = over_context(paged.query)
            query = paged.query.view(batch, nodes, kv_heads, heads // kv_heads, -1)
            scores = torch.einsum("bnkgd,bmkd->bkgnm", query, flat_keys[slots]) * scale
            scores = scores.float().masked_fill(~mask, float("-inf"))
            p = torch.softmax(scores, dim=-1).to(query.dtype)
            among = torch.einsum("bkgnm,bmkd->bnkgd", p, flat_values[slots]).reshape(out.shape)
            among_lse = torch.logsumexp(scores, dim=-1).permute(0, 3, 1, 2).reshape(lse.shape)
            return self.join([(out, lse), (among, among_lse)]), f"{self.name}: context + nodes + join"

        return run

    def _dual_chunk(self, call: DualChunkAttention) -> Run:
        paged, period = call.paged, call.chunk_size - call.local_size
        size, length, new = paged.key_cache.shape[1], paged.max_seq_len, paged.max_query_len
        chunk = (length - 1) // period
        if paged.seq_lens.shape[0] != 1 or period % size or (length - new) // period != chunk:
            raise Unsupported("composed for one sequence whose new tokens lie in one chunk")
        if call.original_max_position is not None:
            raise Unsupported("composed without the length factor")
        q_pos = torch.arange(length - new, length, device=paged.query.device)
        near = q_pos % period
        rotations = (
            near,
            (near + period).clamp(max=call.chunk_size),
            torch.full_like(near, min(2 * period - 1, call.chunk_size)),
        )
        keys = _rotated_cache(call, period)
        bounds = (chunk * period, max(0, chunk - 1) * period, 0)
        ends = (length, chunk * period, max(0, chunk - 1) * period)
        parts = []
        for begin, end, positions, causal in zip(bounds, ends, rotations, (True, False, False), strict=True):
            if end <= begin:
                continue
            piece = replace(
                paged,
                key_cache=keys,
                block_table=paged.block_table[:, begin // size : -(-end // size)].contiguous(),
                seq_lens=torch.full_like(paged.seq_lens, end - begin),
                max_seq_len=end - begin,
                softmax=replace(paged.softmax, causal=causal),
            )
            cos, sin = call.rope_cos[positions][:, None], call.rope_sin[positions][:, None]
            parts.append((self.part(piece), cos, sin))

        def run() -> tuple[Tensor, str]:
            joined = self.join([part(_rotate(paged.query, cos, sin)) for part, cos, sin in parts])
            return joined, f"{self.name}: {len(parts)} chunks + join"

        return run

    def _differential(self, call: DifferentialAttention) -> Run:
        paged = call.paged
        parts = [
            [
                self.part(
                    replace(
                        paged,
                        query=paged.query[:, score::2],
                        key_cache=paged.key_cache[:, :, score::2],
                        value_cache=paged.value_cache[:, :, half::2],
                        out=None,
                    )
                )
                for half in (0, 1)
            ]
            for score in (0, 1)
        ]
        weight, width = call.norm_weight, 2 * paged.query.shape[2]

        def run() -> tuple[Tensor, str]:
            first, second = (
                torch.cat([part(paged.query[:, score::2])[0] for part in parts[score]], dim=-1) for score in (0, 1)
            )
            difference = first.float() - call.lambda_full * second.float()
            normed = torch.nn.functional.rms_norm(difference, (width,), None if weight is None else weight.float(), call.eps)
            return (normed * (1.0 - call.lambda_init)).to(first.dtype), f"{self.name}: 4 calls + difference"

        return run


class ComposedFa3(_Composed):
    """Parts by vLLM's FlashAttention 3."""

    name: ClassVar[str] = "composed of FA3"
    package: ClassVar[str] = "vllm"
    modules: ClassVar[tuple[str, ...]] = (
        "vllm.vllm_flash_attn",
        "vllm.vllm_flash_attn._vllm_fa3_C",
        "vllm.v1.attention.ops.triton_merge_attn_states",
    )

    def part(self, call: PagedAttention) -> Part:
        """See `_Composed.part`."""
        from vllm.vllm_flash_attn import flash_attn_varlen_func

        from attnkit.bench.peers.vllm_fa3 import paged_arguments

        arguments = paged_arguments(replace(call, out=None))

        def attend(query: Tensor) -> tuple[Tensor, Tensor]:
            out, lse = flash_attn_varlen_func(**{**arguments, "q": query}, return_softmax_lse=True, fa_version=3)
            return out, lse.transpose(0, 1)

        return attend

    def join(self, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """By vLLM's merge kernel, two at a time; it wants log-sum-exps as [heads, tokens]."""
        from vllm.v1.attention.ops.triton_merge_attn_states import merge_attn_states

        out, lse = parts[0][0], parts[0][1].transpose(0, 1).contiguous()
        for more, more_lse in parts[1:]:
            merged, merged_lse = torch.empty_like(out), torch.empty_like(lse)
            merge_attn_states(merged, out, lse, more.contiguous(), more_lse.transpose(0, 1).contiguous(), merged_lse)
            out, lse = merged, merged_lse
        return out


class ComposedOurs(_Composed):
    """Parts by our own paged kernels; a peer of our fused ones all the same."""

    name: ClassVar[str] = "composed of attnkit's paged"
    modules: ClassVar[tuple[str, ...]] = ("attnkit.kernels.triton.paged.plan",)

    def part(self, call: PagedAttention) -> Part:
        """See `_Composed.part`."""
        from attnkit.kernels.triton.paged import plan as paged_plan

        fixed = replace(call, out=None, return_lse=True)

        def attend(query: Tensor) -> tuple[Tensor, Tensor]:
            out, lse, _ = paged_plan.paged(replace(fixed, query=query))
            assert lse is not None
            return out, lse

        return attend


def join(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One attention out of several over disjoint keys: outputs [tokens, heads, d] weighted by their log-sum-exps."""
    lse = torch.stack([part[1] for part in parts])
    weights = torch.softmax(lse, dim=0)
    total = sum(weight[..., None] * out.float() for weight, (out, _) in zip(weights, parts, strict=True))
    assert isinstance(total, Tensor)
    return total.to(parts[0][0].dtype)


def _slots(call: PagedAttention, begin: int, count: int) -> Tensor:
    """[batch, count] slots in the flattened cache of positions begin .. begin + count - 1."""
    size = call.key_cache.shape[1]
    at = torch.arange(begin, begin + count, device=call.block_table.device)
    return call.block_table[:, at // size].long() * size + at % size


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, neox style, in float32; dtype of x."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def _rotated_cache(call: DualChunkAttention, period: int) -> Tensor:
    """The key cache as a server of this scheme would have written it: every key rotated by its position inside its chunk."""
    paged = call.paged
    cache = paged.key_cache.clone()
    slots = _slots(paged, 0, paged.max_seq_len)[0]
    position = torch.arange(paged.max_seq_len, device=slots.device) % period
    flat = cache.view(-1, *cache.shape[2:])
    flat[slots] = _rotate(flat[slots], call.rope_cos[position][:, None], call.rope_sin[position][:, None])
    return cache
