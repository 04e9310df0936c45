"""A tiny Llama, generated: random weights, a real tokenizer, nothing downloaded.

It shows that an engine loads, schedules, attends and answers; what it answers is noise. The tokenizer is a byte-level BPE
trained on the help texts that ship with Python, so that it works offline and is the same on every machine with the same Python.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnkit.errors import UsageError

VOCABULARY = 2048
HIDDEN = 256
LAYERS = 4
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 64
INTERMEDIATE = 512
CONTEXT = 2048
BOS, EOS = "<s>", "</s>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
)
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def make_tiny_model(directory: Path, *, seed: int = 0) -> bool:
    """Write the model into `directory` as Hugging Face files; a complete one is left alone.

    Args:
        directory: made where it is missing.
        seed: seed of the weights; the same seed gives the same bytes.

    Returns:
        True where it was made, False where it was complete already.

    Raises:
        UsageError: a needed library is missing, or the directory cannot be written.
    """
    if all((directory / name).is_file() for name in FILES):
        return False
    try:
        import numpy as np
        from safetensors.numpy import save_file
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError(f"tiny-model needs numpy, safetensors and tokenizers: {error.name} is not installed") from None

    tokenizer: Any = _train(Tokenizer)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(directory / "tokenizer.json"))
        _write_json(directory / "tokenizer_config.json", _tokenizer_config())
        _write_json(directory / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "max_new_tokens": 64})
        weights = {name: _weight(np, name, shape, seed + i) for i, (name, shape) in enumerate(weight_shapes().items())}
        save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
        (directory / "model.safetensors").chmod(0o644)  # the library makes it private; another user may serve it
        _write_json(directory / "config.json", config())  # last: an interrupted run is not taken for a complete one
    except OSError as error:
        raise UsageError(f"cannot write the model to {directory}: {error.strerror or error}") from None
    return True


def config() -> dict[str, Any]:
    """The model's config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Shape by name of every tensor; linear weights are [out, in]."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (HIDDEN,),
            prefix + "self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            prefix + "post_attention_layernorm.weight": (HIDDEN,),
            prefix + "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            prefix + "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            prefix + "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        }
    shapes["model.norm.weight"] = (HIDDEN,)
    return shapes


def _weight(np: Any, name: str, shape: tuple[int, ...], seed: int) -> Any:
    if "norm" in name:
        return np.ones(shape, dtype=np.float32)
    return np.random.default_rng(seed).normal(0.0, 0.02, shape).astype(np.float32)


def _train(tokenizer_class: Any) -> Any:
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizer_class(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def _text() -> Iterator[str]:
    """The texts behind `help()`, one paragraph at a time."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield from topics[name].split("\n\n")


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
