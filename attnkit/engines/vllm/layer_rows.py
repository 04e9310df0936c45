"""What vLLM's built attention layers say about themselves, a row each: read before serving by `census_child`, and in the
processes that serve by `serving_census`.

Imports nothing of vLLM before a layer is there. What has moved in another version raises what Python raises.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any


def layers(config: Any, model: Any) -> list[dict[str, Any]]:
    """Every attention layer of a built model: those that registered, and the encoders of images and sound, which do not."""
    found = [_registered(name, layer) for name, layer in config.compilation_config.static_forward_context.items()]
    return [*filter(None, found), *_encoders(model)]


def _registered(name: str, layer: Any) -> dict[str, Any] | None:
    kind, impl = type(layer).__name__, getattr(layer, "impl", None)
    row: dict[str, Any] = {
        "name": name,
        "class": kind,
        "implementation": implementation(_backend_class(layer), None if impl is None else type(impl)),
    }
    backend = backend_name(layer)
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
    attn_type = str(getattr(getattr(layer, "attn_type", "decoder"), "value", getattr(layer, "attn_type", "decoder")))
    return row | {
        "kind": {"encoder_only": "encoder", "encoder": "encoder", "encoder_decoder": "cross"}.get(attn_type, "decoder"),
        "num_heads": layer.num_heads,
        "num_kv_heads": layer.num_kv_heads,
        "head_dim": layer.head_size,
        "head_dim_v": getattr(layer, "head_size_v", None) or layer.head_size,
        "window": _window(layer),
        "chunk": getattr(layer, "attention_chunk_size", None),
        "softcap": _number(getattr(impl, "logits_soft_cap", None)),
        "sinks": bool(getattr(layer, "has_sink", False)) or getattr(impl, "sinks", None) is not None,
        "alibi": getattr(impl, "alibi_slopes", None) is not None,
        "scale": _number(getattr(impl, "scale", getattr(layer, "scale", None))),
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
                "implementation": [_path(type(module))],
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
                "scale": _number(getattr(module, "scaling", getattr(module, "scale", None))),
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


def implementation(backend: Any, impl: Any) -> list[str]:
    """The classes that compute, as paths: of a backend and of its `impl`; without what is None.

    vLLM wraps a backend for chunked, encoder-only and other layers in a subclass made for the layer; what it wraps is
    what is named.
    """
    return [_path(one) for one in (_wrapped(backend), impl) if isinstance(one, type)]


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _wrapped(backend: Any) -> Any:
    while isinstance(backend, type) and backend.__module__.startswith("vllm."):
        if getattr(sys.modules.get(backend.__module__), backend.__name__, None) is backend:
            break
        backend = backend.__base__
    return backend


def _backend_class(layer: Any) -> Any:
    backend = getattr(layer, "attn_backend", None)
    if backend is None and callable(getattr(layer, "get_attn_backend", None)):
        backend = layer.get_attn_backend()
    return backend


def backend_name(layer: Any) -> str | None:
    """The name of the backend that computes a layer: attnkit's where its plugin does, else that of vLLM's registry, else what
    the class says (a few say another's)."""
    ours = getattr(getattr(layer, "impl", None), "backend", None)
    if ours is not None and type(layer.impl).__module__.startswith("attnkit."):
        return str(ours.name)
    backend = _backend_class(layer)
    if backend is None:
        return None
    if (name := _registered_as(_wrapped(backend))) is not None:
        return name
    try:
        return str(backend.get_name())
    except Exception:  # some wrap another and have no name
        return str(getattr(backend, "__name__", type(backend).__name__))


def _registered_as(backend: Any) -> str | None:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    for member in AttentionBackendEnum:
        with suppress(ValueError):  # CUSTOM, while nobody took it
            if isinstance(backend, type) and member.get_path() == _path(backend):
                return str(member.name)
    return None


def _window(layer: Any) -> int | None:
    window = getattr(layer, "sliding_window", None)
    return int(window) if isinstance(window, int) and window > 0 else None


def _number(value: Any) -> float | None:
    try:
        return float(value) if value else None
    except (TypeError, ValueError):
        return None
