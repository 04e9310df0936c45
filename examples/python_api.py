"""Attention over a paged cache: two sequences, one of them mid-prompt, one decoding a token.

    python examples/python_api.py

Tensors are those of attnkit.spec.PagedAttention; move them to "cuda" and the same call selects a GPU backend.
"""

import torch

from attnkit import api

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 8, 2, 64, 16
SCALE = HEAD_DIM**-0.5

torch.manual_seed(0)
new_tokens, seq_lens = [5, 1], [21, 40]
key, value = torch.randn(2, sum(seq_lens), NUM_KV_HEADS, HEAD_DIM)
query = torch.randn(sum(new_tokens), NUM_HEADS, HEAD_DIM)

# The cache: 8 blocks of 16 tokens. Sequence 0 has blocks 3 and 0, sequence 1 has blocks 6, 1 and 4.
key_cache, value_cache = torch.zeros(2, 8, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM)
block_table = torch.tensor([[3, 0, 0], [6, 1, 4]], dtype=torch.int32)
slots = torch.tensor(
    [
        int(block_table[seq, pos // BLOCK_SIZE]) * BLOCK_SIZE + pos % BLOCK_SIZE
        for seq, n in enumerate(seq_lens)
        for pos in range(n)
    ]
)
api.write_kv_cache(key, value, key_cache, value_cache, slots)

lens = torch.tensor(seq_lens, dtype=torch.int32)
starts = torch.tensor([0, *new_tokens], dtype=torch.int32).cumsum(0, dtype=torch.int32)
selected = api.paged_attention(query, key_cache, value_cache, block_table, lens, starts, softmax_scale=SCALE)
print(f"selected automatically: {selected.kernel}, out {list(selected.out.shape)}")

named = api.paged_attention(query, key_cache, value_cache, block_table, lens, starts, softmax_scale=SCALE, backend="TORCH_SDPA")
print(f"by name: {named.kernel}")
torch.testing.assert_close(named.out, selected.out)

# The token that sequence 1 decodes, written out: its query heads see all 40 keys.
keys, values = (tensor[seq_lens[0] :].repeat_interleave(NUM_HEADS // NUM_KV_HEADS, dim=1) for tensor in (key, value))
weights = torch.einsum("hd,khd->hk", query[-1], keys).mul(SCALE).softmax(dim=-1)
torch.testing.assert_close(selected.out[-1], torch.einsum("hk,khd->hd", weights, values))
print("both agree with plain torch")
