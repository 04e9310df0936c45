"""A Hugging Face model whose attention runs on attnkit; the tokens are those of transformers' own implementation.

    python examples/transformers_model.py

Needs transformers. The model is a tiny one with random weights; give `from_pretrained` a path of yours instead.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import attnkit.engines.transformers as attnkit_transformers

print("registered:", ", ".join(attnkit_transformers.register()))
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
model = LlamaForCausalLM(config).eval()
prompt = torch.tensor([[1, 5, 9, 2, 7]])

tokens = {}
for implementation in ("eager", "attnkit", "attnkit:TORCH_SDPA"):
    model.set_attn_implementation(implementation)
    tokens[implementation] = model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()
    print(f"{implementation}: {tokens[implementation]}")
assert len(set(map(tuple, tokens.values()))) == 1
