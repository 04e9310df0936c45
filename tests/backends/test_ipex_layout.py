"""What IPEX is handed: its own layout of the blocks in use, and nothing of the rest of the cache."""

from __future__ import annotations

import torch

from attnkit.backends import ipex
from attnkit.spec import PagedAttention, Softmax


def paged(seq_lens: list[int], table: list[list[int]]) -> PagedAttention:
    """A cache of 7 blocks of 16 tokens; decode."""
    starts = torch.arange(len(seq_lens) + 1, dtype=torch.int32)
    return PagedAttention(
        query=torch.randn(len(seq_lens), 8, 32),
        key_cache=torch.randn(7, 16, 2, 32),
        value_cache=torch.randn(7, 16, 2, 32),
        block_table=torch.tensor(table, dtype=torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        query_start_loc=starts,
        max_query_len=1,
        max_seq_len=max(seq_lens),
        softmax=Softmax(0.2),
    )


def test_every_block_in_use_is_found_with_its_heads_outside() -> None:
    call = paged([33, 0, 16], [[5, 1, 3], [0, 0, 0], [6, 2, 4]])
    key, value, table = ipex._heads_outside(call)
    assert key.shape == value.shape == (4, 2, 16, 32)
    assert key.is_contiguous() and value.is_contiguous()
    for row, column in ((0, 0), (0, 1), (0, 2), (2, 0)):
        block = call.block_table[row, column]
        assert torch.equal(key[table[row, column]], call.key_cache[block].transpose(0, 1))
        assert torch.equal(value[table[row, column]], call.value_cache[block].transpose(0, 1))


def test_what_a_table_holds_past_the_end_of_a_sequence_is_never_looked_up() -> None:
    call = paged([16, 17], [[4, -1, 999], [2, 0, -7]])
    key, _, table = ipex._heads_outside(call)
    assert key.shape[0] == 3
    assert table.dtype == torch.int32
    assert set(table.flatten().tolist()) <= {0, 1, 2}


def test_a_batch_of_empty_sequences_needs_no_block() -> None:
    key, value, _ = ipex._heads_outside(paged([0, 0], [[1], [2]]))
    assert key.shape[0] == value.shape[0] == 0
