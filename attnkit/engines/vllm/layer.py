"""A real attention layer of vLLM for one call: configuration, layer, cache, metadata, forward.

Written for vLLM 0.25 and 0.32. Where a version keeps something elsewhere, `EngineMovedError` says what.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnkit.backends.base import Capability, HeadDims
from attnkit.errors import EXIT_INCONCLUSIVE, AttnkitError
from attnkit.spec import AttentionOutput, Dtype, PagedAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

MAX_LEN = 1 << 20
STALE, STALE_BYTE = 4.0, 0x44
"""What unused slots hold: far from the data of any case, finite in every dtype (the byte is 3.0 or 4.0 in float8)."""

LARGE = 1 << 30
"""Bytes of a cache from which a CPU's is not filled whole."""

numbers = itertools.count()
"""Layer names must differ within a configuration."""


class EngineMovedError(AttnkitError, ImportError):
    """vLLM's attention interface is not what this driver knows; nothing can be said about the backend.

    An ImportError too, so that the self-test's runner counts a case that meets it as inconclusive, not as wrong.
    """

    exit_code = EXIT_INCONCLUSIVE


@contextmanager
def interface(what: str, *also: type[Exception]) -> Iterator[None]:
    """Turn what a moved interface raises into `EngineMovedError`. Never around the computation itself.

    Args:
        also: further exceptions that say nothing of the backend where they are raised.
    """
    moved: tuple[type[Exception], ...] = (ImportError, AttributeError, TypeError, KeyError, *also)
    try:
        yield
    except moved as error:
        raise EngineMovedError(f"vLLM {vllm_version()}: {what}: {type(error).__name__}: {error}") from error


def without_cache(head_dims: HeadDims) -> Capability:
    """What vLLM's layers of encoders and towers compute: packed sequences of their own tokens, without a causal mask."""
    return Capability(
        ops=frozenset({"varlen"}),
        archs=dict.fromkeys(("cpu", "nvidia", "amd", "intel"), ("*",)),
        dtypes=frozenset[Dtype]({"float16", "bfloat16", "float32"}),
        head_dims=head_dims,
        phases=frozenset({"prefill"}),
        features=frozenset({"non_causal"}),
        of_engine=True,
    )


def vllm_version() -> str:
    """`vllm.__version__`; "absent" where vLLM cannot be imported. Distribution metadata is missing in CPU builds."""
    try:
        import vllm
    except ImportError:
        return "absent"
    return str(vllm.__version__)


@dataclass(frozen=True)
class Geometry:
    """What vLLM's configuration depends on. kv_cache_dtype in vLLM's words."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: Dtype
    kv_cache_dtype: str
    block_size: int


def _geometry(call: PagedAttention) -> Geometry:
    spec = call.spec()
    return Geometry(
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.dtype,
        "auto" if spec.kv_cache_dtype == "auto" else spec.kv_cache_dtype,
        call.key_cache.shape[1],
    )


@lru_cache(maxsize=64)
def vllm_config(geometry: Geometry) -> Any:
    """A real `VllmConfig` for a one-layer decoder of this geometry. Kept: a configuration takes most of a second to build."""
    return make_config(_model_config(geometry), geometry.dtype, geometry.kv_cache_dtype, geometry.block_size)


def make_config(model_config: dict[str, Any], dtype: Dtype, kv_cache_dtype: str, block_size: int) -> Any:
    """A real `VllmConfig` for a model's config.json, written to disk for the purpose."""
    # The model is ours and plain: a vLLM that refuses it (ValueError, pydantic's too) lacks something of its own.
    with interface("its configuration classes", ValueError):
        from vllm.config import CacheConfig, ModelConfig, VllmConfig

        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(model_config), encoding="utf-8")
            model = ModelConfig(
                model=folder, skip_tokenizer_init=True, dtype=dtype, max_model_len=MAX_LEN, enforce_eager=True, seed=0
            )
            cache_config = CacheConfig(block_size=block_size, cache_dtype=kv_cache_dtype, enable_prefix_caching=False)
            config = VllmConfig(model_config=model, cache_config=cache_config)
        config.cache_config.block_size = block_size  # a platform may have rounded it
        return config


def _model_config(geometry: Geometry) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128,
        "hidden_size": geometry.num_heads * geometry.head_dim,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": geometry.num_heads,
        "num_key_value_heads": geometry.num_kv_heads,
        "head_dim": geometry.head_dim,
        "max_position_embeddings": MAX_LEN,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "torch_dtype": geometry.dtype,
    }


@dataclass(frozen=True)
class Layer:
    """vLLM's layer for one call, with its builder and an empty cache in the backend's own layout."""

    module: Any
    builder: Any
    cache: Tensor
    config: Any


@contextmanager
def engine_layer(name: str, call: PagedAttention) -> Iterator[Layer]:
    """Build layer, builder and cache; vLLM's current configuration is set around construction and use."""
    import torch

    geometry = _geometry(call)
    config = vllm_config(geometry)
    prefix = f"model.layers.{next(numbers)}.self_attn.attn"
    with interface("building a layer"):
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.layers.attention import Attention
        from vllm.v1.attention.backends.registry import AttentionBackendEnum
    with set_current_vllm_config(config), default_dtype(call.query.dtype):
        with interface("building a layer"):
            backend = AttentionBackendEnum[name].get_class()
            with torch.device(call.query.device):  # as the model loader does: slopes become a tensor in the constructor
                module = Attention(
                    geometry.num_heads,
                    geometry.head_dim,
                    call.softmax.softmax_scale,
                    geometry.num_kv_heads,
                    cache_config=config.cache_config,
                    prefix=prefix,
                    attn_backend=backend,
                    **_layer_arguments(call, name),
                ).to(call.query.device)
            # the layer's own: builders read the window there. A windowed layer may choose smaller blocks; the call's are meant
            spec = replace(module.get_kv_cache_spec(config), block_size=geometry.block_size)
            kv_cache = allocate(backend, spec, call.key_cache.shape[0] + 1, config, call.block_table)
            builder = backend.get_builder_cls()(spec, [prefix], config, torch.device(call.query.device))
        try:
            yield Layer(module, builder, kv_cache, config)
        finally:
            config.compilation_config.static_forward_context.pop(prefix, None)


def _layer_arguments(call: PagedAttention, name: str) -> dict[str, Any]:
    """The softmax's shape in the arguments of vLLM's layer. FLASH_ATTN takes sinks in bfloat16 only, as gpt-oss stores them."""
    import torch

    softmax = call.softmax
    arguments: dict[str, Any] = {
        "logits_soft_cap": softmax.softcap or None,
        "alibi_slopes": None if softmax.alibi_slopes is None else softmax.alibi_slopes.tolist(),
        "per_layer_sliding_window": softmax.window[0] + 1 if softmax.window[0] >= 0 else None,
    }
    if softmax.sinks is not None:
        arguments["sinks"] = softmax.sinks.to(torch.bfloat16) if name == "FLASH_ATTN" else softmax.sinks
    return arguments


def _set_scales(module: Any, k_scale: float, v_scale: float) -> None:
    """Cache scales, in every form the versions keep them in."""
    for letter, scale in (("k", k_scale), ("v", v_scale)):
        getattr(module, f"_{letter}_scale").fill_(scale)
        setattr(module, f"_{letter}_scale_float", scale)
        with suppress(AttributeError):
            getattr(module, f"_{letter}_scale_cpu").fill_(scale)


@contextmanager
def default_dtype(dtype: Any) -> Iterator[None]:
    """vLLM's layers take their dtype from torch's default, which the model loader sets."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def allocate(backend: Any, spec: Any, num_blocks: int, config: Any, table: Tensor) -> Tensor:
    """A cache of `num_blocks` blocks as this vLLM version's runner lays it out for `backend`, filled with stale values.

    Of one over `LARGE` bytes in a CPU's memory only the null block and those of the call's block table are filled: gigabytes
    that nobody asks for would take seconds.
    The configuration is told how many there are: FLEX_ATTENTION makes its mask of the whole cache.
    Stale but finite, as in serving: blocks are reused without being cleared, so what a sequence has not written must not reach
    its result. Not NaN: vLLM clears the cache once at the start, and its kernels may multiply what lies there by zero.
    """
    import torch

    config.cache_config.num_gpu_blocks = num_blocks
    if hasattr(backend, "get_kv_cache_shape"):  # until the layout became a property of the cache's specification
        shape = backend.get_kv_cache_shape(
            num_blocks, spec.block_size, spec.num_kv_heads, spec.head_size, cache_dtype_str=config.cache_config.cache_dtype
        )
        order = tuple(range(len(shape)))
        with suppress(AttributeError, NotImplementedError):  # vLLM's own runner takes these for "as the shape is"
            order = backend.get_kv_cache_stride_order()
        physical = _empty([shape[axis] for axis in order], spec.dtype, table.device)
        view = physical.permute([order.index(axis) for axis in range(len(order))])
    else:
        from vllm.v1.kv_cache_interface import KVCacheLayout, compute_layer_kv_cache_shape_bytes, compute_layout_strides

        layout = (backend.supported_kv_cache_layouts() or (KVCacheLayout.LBNHC,))[0]
        config.cache_config.kv_cache_layout = layout.name
        bytes_shape = compute_layer_kv_cache_shape_bytes(spec, num_blocks)
        strides = compute_layout_strides(spec, num_blocks, 1, layout)
        raw = _empty([num_blocks * spec.page_size_bytes], torch.int8, table.device)
        physical = raw.view(spec.dtype)
        view = torch.as_strided(raw, (1, *bytes_shape), strides)[0].view(spec.dtype)
    stale = STALE if physical.dtype.is_floating_point else STALE_BYTE
    if physical.nbytes < LARGE or not physical.is_cpu:
        physical.fill_(stale)
    else:
        for block in {0, *(table + 1).unique().clamp(0, num_blocks - 1).tolist()}:
            view.select(view.shape.index(num_blocks), block).fill_(stale)
    return view


def _empty(shape: Sequence[int], dtype: Any, device: Any) -> Tensor:
    """Memory as it comes: not even the self-test's poison, as stale values come next."""
    import torch

    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled


def forward(layer: Layer, call: PagedAttention) -> AttentionOutput:
    """Write the context, build the metadata, compute.

    A float8 cache is written with scale one and read with the call's scales: every stored value is exact in the query's dtype,
    so vLLM's cache holds the call's very bytes (vLLM's CPU quantiser truncates: with a scale they would change).
    """
    import torch

    batch = as_batch(call)
    out = call.out if call.out is not None and call.out.is_contiguous() else torch.full_like(call.query, float("nan"))
    kernel = f"vllm.{type(layer.module.impl).__name__}" + (f"[{layer.module.isa}]" if hasattr(layer.module, "isa") else "")
    if batch is not None:
        with interface("writing its cache"):
            update = layer.module.impl.do_kv_cache_update
            _set_scales(layer.module, 1.0, 1.0)
        with interface("building its metadata"):
            metadata = layer.builder.build(common_prefix_len=0, common_attn_metadata=batch_metadata(call, batch))
        with torch.inference_mode():
            update(layer.module, batch.key, batch.value, layer.cache, batch.slots)
            _set_scales(layer.module, call.k_scale, call.v_scale)
            key, value = batch.key[batch.new] * call.k_scale, batch.value[batch.new] * call.v_scale
            layer.module.impl.forward(layer.module, call.query, key, value, layer.cache, metadata, output=out)
    if call.out is not None and out is not call.out:
        call.out.copy_(out)
        out = call.out
    return AttentionOutput(out, None, kernel)


@dataclass(frozen=True)
class Batch:
    """The sequences with new tokens.

    Args:
        key, value: [total_kv, num_kv_heads, head_dim] as stored, in the query's dtype, sequence after sequence.
        slots: [total_kv] int64, where vLLM's cache holds them. new: [num_tokens] rows of the new tokens in `key`.
        table: [n, max_blocks] int32. lens, starts: [n], [n + 1] int32 on the host.
    """

    key: Tensor
    value: Tensor
    slots: Tensor
    new: Tensor
    table: Tensor
    lens: Tensor
    starts: Tensor


def as_batch(call: PagedAttention) -> Batch | None:
    """Gather the call's cache; None where no sequence has a new token.

    vLLM's block 0 is the null block, so block b of the call is block b + 1 of vLLM.
    """
    import torch

    from attnkit.backends.torch_common import read_cache, slots

    query_lens = call.query_start_loc.diff().cpu()
    kept = torch.nonzero(query_lens > 0).flatten()
    if not len(kept):
        return None
    lens = call.seq_lens.cpu()[kept].to(torch.int32)
    query_lens = query_lens[kept]
    table = call.block_table[kept.to(call.block_table.device)].contiguous()
    slot = slots(table, lens.tolist(), call.key_cache.shape[1])
    dtype = call.query.dtype
    ends = torch.cumsum(lens, 0)
    new = torch.cat([torch.arange(end - n, end) for end, n in zip(ends.tolist(), query_lens.tolist(), strict=True)])
    starts = torch.nn.functional.pad(torch.cumsum(query_lens, 0), (1, 0)).to(torch.int32)
    return Batch(
        key=read_cache(call.key_cache, slot, 1.0, dtype),
        value=read_cache(call.value_cache, slot, 1.0, dtype),
        slots=slot + call.key_cache.shape[1],
        new=new.to(slot.device),
        table=table.to(torch.int32) + 1,
        lens=lens,
        starts=starts,
    )


def batch_metadata(call: PagedAttention, batch: Batch) -> Any:
    """vLLM's `CommonAttentionMetadata` of a batch made by `as_batch`."""
    return common_metadata(
        call.query.device, batch.starts, batch.lens, batch.table, batch.slots[batch.new], call.softmax.causal
    )


def common_metadata(device: Any, starts: Tensor, lens: Tensor, table: Tensor, slots: Tensor, causal: bool = True) -> Any:
    """`CommonAttentionMetadata`, with the host copies that this version has fields for.

    Args:
        starts: [n + 1] int32 and lens: [n] int32 on the host. table: [n, max_blocks] int32. slots: of the new tokens.
    """
    from vllm.v1.attention.backend import CommonAttentionMetadata

    host_copies = {
        "_seq_lens_cpu": lens,
        "seq_lens_cpu_upper_bound": lens,
        "_num_computed_tokens_cpu": lens - starts.diff(),
    }
    known = {field.name for field in fields(CommonAttentionMetadata)}
    return CommonAttentionMetadata(
        query_start_loc=starts.to(device),
        query_start_loc_cpu=starts,
        seq_lens=lens.to(device),
        num_reqs=len(lens),
        num_actual_tokens=int(starts[-1]),
        max_query_len=int(starts.diff().max()),
        max_seq_len=int(lens.max()),
        block_table_tensor=table,
        slot_mapping=slots,
        causal=causal,
        **{name: value for name, value in host_copies.items() if name in known},
    )
