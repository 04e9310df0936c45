"""A batch of vLLM's as attnkit's calls want it: its metadata, decodes and the rest apart, no block that no window reaches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from vllm.v1.attention.backend import AttentionCGSupport, AttentionMetadataBuilder, CommonAttentionMetadata

from attnkit.engines.vllm.requirements import capability
from attnkit.errors import UnsupportedError


@dataclass
class AttnkitMetadata:
    """One batch, as vLLM describes it. Names and shapes as in `PagedAttention`.

    The first `num_decodes` sequences have one new token each.
    """

    num_actual_tokens: int
    num_decodes: int
    max_query_len: int
    max_seq_len: int
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    slot_mapping: torch.Tensor
    causal: bool

    def whole(self) -> Part:
        """The batch as it is."""
        tokens = slice(0, self.num_actual_tokens)
        return Part(
            tokens, self.query_start_loc, self.seq_lens, self.block_table, self.max_query_len, self.max_seq_len, self.causal
        )

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Decodes and the rest apart: one kernel is made for the one, another for the other. Worked out by the first layer."""
        return _parts(self)


@dataclass(frozen=True)
class Part:
    """The decodes of a batch, or the rest, or all of it. `tokens`: its rows; the other names as in `PagedAttention`."""

    tokens: slice
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    max_query_len: int
    max_seq_len: int
    causal: bool


def _parts(batch: AttnkitMetadata) -> tuple[Part, ...]:
    sequences, n = batch.seq_lens.shape[0], batch.num_decodes
    found = []
    for first, last, tokens, longest in (
        (0, n, slice(0, n), 1),
        (n, sequences, slice(n, batch.num_actual_tokens), batch.max_query_len),
    ):
        if first < last:
            starts = batch.query_start_loc[first : last + 1]
            found.append(
                Part(
                    tokens,
                    starts - tokens.start if first else starts,
                    batch.seq_lens[first:last],
                    batch.block_table[first:last],
                    longest,
                    batch.max_seq_len,
                    batch.causal,
                )
            )
    return tuple(found)


def behind_window(part: Part, left: int, block_size: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Leave out the blocks that no query's window reaches: only distances matter, so the sequences may begin later.

    Args:
        left: tokens visible before a query's own.

    Returns:
        block_table [n, reached blocks], seq_lens [n] and max_seq_len without them.
    """
    reach = left + part.max_query_len
    blocks = min(part.block_table.shape[1], -(-reach // block_size) + 1)
    first_key = (part.seq_lens - part.query_start_loc.diff() - left).clamp(min=0)
    skipped = first_key // block_size
    columns = skipped[:, None].long() + torch.arange(blocks, device=skipped.device)
    table = part.block_table.gather(1, columns.clamp(max=part.block_table.shape[1] - 1))
    lens = (part.seq_lens - skipped * block_size).to(part.seq_lens.dtype)
    return table, lens, min(part.max_seq_len, blocks * block_size)


class AttnkitBuilder(AttentionMetadataBuilder[AttnkitMetadata]):  # type: ignore[misc]
    """Counts the decodes, which vLLM is asked to put first; nothing else is planned ahead: the call carries all."""

    reorder_batch_threshold: int | None = 1

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """Batches of decodes may be captured whole where the backend may be; vLLM captures with the longest context there is,
        so that nothing of a launch depends on the lengths of one step."""
        return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE if capability("paged").graphs else AttentionCGSupport.NEVER

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> AttnkitMetadata:
        """The batch's fields that a call needs."""
        common = common_attn_metadata
        if not isinstance(common.causal, bool):
            raise UnsupportedError("attnkit's backends take one causal flag for a batch, not one a sequence")
        longer = torch.nonzero(common.query_start_loc_cpu.diff() > 1)
        return AttnkitMetadata(
            num_actual_tokens=common.num_actual_tokens,
            num_decodes=int(longer[0]) if len(longer) else common.num_reqs,
            max_query_len=common.max_query_len,
            max_seq_len=common.max_seq_len,
            query_start_loc=common.query_start_loc,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            causal=common.causal,
        )
