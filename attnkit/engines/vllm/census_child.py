"""The census inside a process of its own: `python -m attnkit.engines.vllm.census_child OPTION…` prints one line of JSON.

vLLM's own parser and configuration read the options; its own model class is built on the meta device, without weights and
without device memory; every attention layer that registers is written down. With several ranks a stand-in process group of the
real world size takes the place of the real one: nothing is sent.

The interface is vLLM's internal one; what has moved ends the process with the reason.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any

MARK = "attnkit-census "


def main(options: list[str]) -> None:
    """Build and print."""
    print(MARK + json.dumps(build(options)), flush=True)


def build(options: list[str]) -> dict[str, Any]:
    """What vLLM makes of the options; again in one process only without further ranks."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    _inspect_here()
    _ones_for_meta()
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    given, _ = parser.parse_known_args(options)
    args = EngineArgs.from_cli_args(given)
    args.load_format, args.skip_tokenizer_init, args.disable_log_stats = "dummy", True, True
    ranks = args.tensor_parallel_size * args.pipeline_parallel_size
    tensor = args.tensor_parallel_size
    if ranks > 1:
        args.distributed_executor_backend = "external_launcher" if args.distributed_executor_backend is None else "mp"
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    config = args.create_engine_config()
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model

    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            stand_in_group(ranks, tensor, args.pipeline_parallel_size)
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(config.model_config.dtype)
        try:
            with torch.device("meta"):
                model = initialize_model(vllm_config=config)
        finally:
            torch.set_default_dtype(dtype)
    return {
        "model": config.model_config.model,
        "architecture": config.model_config.architectures[0] if config.model_config.architectures else None,
        "ranks": {"tensor": tensor, "pipeline": args.pipeline_parallel_size},
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "block_size": config.cache_config.block_size,
        "layers": layers(config, model),
    }


def _inspect_here() -> None:
    """Look at model classes in this process: vLLM starts another for each, so that its own stays without CUDA."""
    from vllm.model_executor.models import registry

    if hasattr(registry, "_run_in_subprocess"):
        registry._run_in_subprocess = lambda look: look()


def _ones_for_meta() -> None:
    """A few models read a small tensor while they are built (ALiBi's slopes, an activation's constants); on the meta device
    there is nothing to read, and ones do: that the layer has them is what is counted."""
    import torch

    def readable(real: Any) -> Any:
        return lambda tensor: real(torch.ones(tensor.shape, dtype=tensor.dtype, device="cpu") if tensor.is_meta else tensor)

    for name in ("tolist", "item", "cpu"):
        if not hasattr(torch.Tensor, f"attnkit_{name}"):
            setattr(torch.Tensor, f"attnkit_{name}", getattr(torch.Tensor, name))
            setattr(torch.Tensor, name, readable(getattr(torch.Tensor, name)))


def stand_in_group(ranks: int, tensor: int, pipeline: int) -> None:
    """vLLM's groups, of the real world size, over torch's fake backend: every rank but ours is imagined."""
    import torch
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from vllm.distributed import parallel_state

    new_group = torch.distributed.new_group

    def fake_group(*args: Any, **named: Any) -> Any:
        return new_group(*args, **{**named, "backend": "fake"})

    real_group = parallel_state.init_model_parallel_group

    def quiet_group(*args: Any, **named: Any) -> Any:  # neither shared memory nor a queue to ranks that are not there
        return real_group(*args, **{**named, "use_device_communicator": False, "use_message_queue_broadcaster": False})

    parallel_state.init_model_parallel_group = quiet_group
    torch.distributed.init_process_group(backend="fake", rank=0, world_size=ranks, store=FakeStore())
    torch.distributed.new_group = fake_group
    parallel_state.init_distributed_environment(world_size=ranks, rank=0, local_rank=0, backend="gloo")
    parallel_state.initialize_model_parallel(tensor, pipeline)


def layers(config: Any, model: Any) -> list[dict[str, Any]]:
    """Every attention layer of a built model: those that registered, and the encoders of images and sound, which do not."""
    found = [_registered(name, layer) for name, layer in config.compilation_config.static_forward_context.items()]
    return [*filter(None, found), *_encoders(model)]


def _registered(name: str, layer: Any) -> dict[str, Any] | None:
    kind = type(layer).__name__
    row: dict[str, Any] = {"name": name, "class": kind}
    backend = _backend(layer)
    if getattr(layer, "kv_lora_rank", None) and hasattr(layer, "qk_rope_head_dim"):
        sparse = bool(
            getattr(layer, "use_sparse", False)
            or getattr(getattr(layer, "impl", None), "topk_indices_buffer", None) is not None
        )
        return row | {
            "kind": "sparse_mla" if sparse else "mla",
            "num_heads": layer.num_heads,
            "num_kv_heads": 1,
            "head_dim": layer.kv_lora_rank + layer.qk_rope_head_dim,
            "head_dim_v": layer.kv_lora_rank,
            "backend": backend,
            "cache_dtype": str(getattr(layer, "kv_cache_dtype", "auto")),
            "scale": _number(getattr(layer, "scale", None)),
        }
    if not hasattr(layer, "head_size") or not hasattr(layer, "num_kv_heads"):
        if hasattr(layer, "mamba_type") or "Mamba" in kind or "Linear" in kind or "DeltaNet" in kind or "Conv" in kind:
            what = getattr(layer, "mamba_type", None)
            return row | {"kind": "other", "what": str(getattr(what, "value", what) or kind), "backend": backend}
        from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

        return row | {"kind": "other", "what": kind} if isinstance(layer, AttentionLayerBase) else None  # None: experts
    impl = getattr(layer, "impl", None)
    attn_type = str(getattr(getattr(layer, "attn_type", "decoder"), "value", getattr(layer, "attn_type", "decoder")))
    return row | {
        "kind": {"encoder_only": "encoder", "encoder": "encoder", "encoder_decoder": "cross"}.get(attn_type, "decoder"),
        "num_heads": layer.num_heads,
        "num_kv_heads": layer.num_kv_heads,
        "head_dim": layer.head_size,
        "head_dim_v": getattr(layer, "head_size_v", None) or layer.head_size,
        "window": _window(layer, impl),
        "chunk": getattr(layer, "attention_chunk_size", None),
        "softcap": _number(getattr(impl, "logits_soft_cap", None)),
        "sinks": bool(getattr(layer, "has_sink", False)) or getattr(impl, "sinks", None) is not None,
        "alibi": getattr(impl, "alibi_slopes", None) is not None,
        "scale": _number(getattr(impl, "scale", None)),
        "cache_dtype": str(getattr(layer, "kv_cache_dtype", "auto")),
        "backend": backend,
    }


def _encoders(model: Any) -> Iterable[dict[str, Any]]:
    for name, module in model.named_modules():
        bases = {base.__name__ for base in type(module).__mro__}
        if bases & {"MMEncoderAttention", "MultiHeadAttention"} and hasattr(module, "head_size"):
            audio = "audio" in name or "speech" in name
            encoder = name.startswith("model.encoder.")  # Whisper; towers have names of their own
            yield {
                "name": name,
                "class": type(module).__name__,
                "kind": "encoder" if encoder else "audio" if audio else "vision",
                "num_heads": module.num_heads,
                "num_kv_heads": getattr(module, "num_kv_heads", None) or module.num_heads,
                "head_dim": module.head_size,
                "head_dim_v": module.head_size,
                "scale": _number(getattr(module, "scale", None)),
                "backend": str(getattr(getattr(module, "attn_backend", None), "name", "")) or None,
            }
        elif _of_transformers(name, module):
            heads = getattr(module, "num_heads", None) or module.config.num_attention_heads
            yield {
                "name": name,
                "class": type(module).__name__,
                "kind": "audio" if "audio" in name or "speech" in name else "vision",
                "num_heads": heads,
                "num_kv_heads": heads // (getattr(module, "num_key_value_groups", None) or 1),
                "head_dim": module.head_dim,
                "head_dim_v": module.head_dim,
                "scale": None,
                "backend": "transformers",
            }


def _of_transformers(name: str, module: Any) -> bool:
    """Whether transformers' own code computes this attention of a tower: vLLM takes some towers whole from there."""
    kind = type(module)
    return (
        kind.__module__.startswith("transformers.")
        and kind.__name__.endswith("Attention")
        and hasattr(module, "head_dim")
        and (hasattr(module, "num_heads") or hasattr(getattr(module, "config", None), "num_attention_heads"))
        and any(word in name for word in ("audio", "speech", "vision", "visual", "image"))
    )


def _backend(layer: Any) -> str | None:
    """vLLM's name of the backend that a layer computes with, else its class's."""
    backend = getattr(layer, "attn_backend", None)
    if backend is None and callable(getattr(layer, "get_attn_backend", None)):
        backend = layer.get_attn_backend()
    if backend is None:
        return None
    try:
        return str(backend.get_name())
    except Exception:  # some wrap another and have no name
        return str(getattr(backend, "__name__", type(backend).__name__))


def _window(layer: Any, impl: Any) -> int | None:
    window = getattr(layer, "sliding_window", None)
    return int(window) if isinstance(window, int) and window > 0 else None


def _number(value: Any) -> float | None:
    try:
        return float(value) if value else None
    except (TypeError, ValueError):
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
