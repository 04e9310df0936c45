"""vLLM's own attention backends as backends of attnkit, so that the self-test can judge what will serve, without a server.

For every call a real `Attention` layer of vLLM is built with the backend under test, the cache is allocated in that backend's
own layout, the context is written through the backend's own `do_kv_cache_update`, the metadata come from its own builder, and
its `forward` computes. Nothing here knows how a block is laid out, and nothing of vLLM is replaced.

The interface is vLLM's internal one and moves between releases. Where it moved, `EngineMovedError` says what is missing, and
`validate_engine_backend` makes a verdict `inconclusive` of it. The way of driving is that of vLLM's own
tests/v1/attention/test_attention_backends.py.
"""

from __future__ import annotations

import inspect
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.errors import EXIT_INCONCLUSIVE, AttnkitError, UnsupportedError, unknown_name
from attnkit.hardware.device import Device
from attnkit.selftest.model import CaseResult, Level, Verdict
from attnkit.spec import AttentionOutput, AttentionSpec, Call, Dtype, Feature, KvCacheDtype, PagedAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

PREFIX = "vllm:"
TESTED = {"cpu": ">=0.32,<0.33", "cuda": ">=0.25,<0.26"}
"""vLLM versions whose interface this driver was written for, by vLLM's word for the platform."""

MAX_LEN = 1 << 20
STALE, STALE_BYTE = 4.0, 0x44
"""What unused slots hold: far from the data of any case, finite in every dtype (the byte is 3.0 or 4.0 in float8)."""
_UNCLAIMED: dict[str, frozenset[Feature]] = {
    "CPU_ATTN": frozenset({"softcap", "alibi", "sinks"}),
    "FLASH_ATTN": frozenset({"softcap", "alibi"}),
    "TRITON_ATTN": frozenset({"softcap", "alibi"}),
    "FLASHINFER": frozenset({"softcap"}),
    "FLEX_ATTENTION": frozenset({"softcap", "alibi"}),
}
"""Features that vLLM's class has no method to claim, though its implementation takes and honours them."""

_CONFLICTS: tuple[frozenset[Feature], ...] = (frozenset({"non_causal", "window"}),)
"""vLLM's window is one number: so many tokens back."""

_numbers = itertools.count()


class EngineMovedError(AttnkitError, ImportError):
    """vLLM's attention interface is not what this driver knows; nothing can be said about the backend.

    An ImportError too, so that the self-test's runner counts a case that meets it as inconclusive, not as wrong.
    """

    exit_code = EXIT_INCONCLUSIVE


@contextmanager
def _interface(what: str) -> Iterator[None]:
    """Turn what a moved interface raises into `EngineMovedError`. Never around the computation itself."""
    try:
        yield
    except (ImportError, AttributeError, TypeError, KeyError) as error:
        raise EngineMovedError(f"vLLM {vllm_version()}: {what}: {type(error).__name__}: {error}") from error


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


class EngineBackend(Backend):
    """One of vLLM's attention backends; make it with `engine_backend`."""

    engine_name: ClassVar[str]

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        """Compute a paged call through vLLM's implementation.

        Sequences without new tokens are left out of the batch, as vLLM's scheduler does.

        Raises:
            UnsupportedError: not a paged call, or outside what the vLLM class claims.
            EngineMovedError: vLLM's interface moved.
        """
        from attnkit.backends.torch_device import device_of

        if not isinstance(call, PagedAttention):
            raise UnsupportedError(f"{self.name} is driven through paged calls only, not {call.op}")
        self.require(call, device_of(call.query), provider)
        with engine_layer(self.engine_name, call) as layer:
            return _forward(layer, call)


@cache
def engine_backend(name: str) -> EngineBackend:
    """vLLM's backend `name` ("CPU_ATTN" or "vllm:CPU_ATTN") as a backend of attnkit.

    Its capability is read from what the vLLM class says about itself. Where attnkit's plugin is switched on and takes that
    backend's place, it is the plugin's classes that are driven.

    Raises:
        EngineMovedError: vLLM is absent or its registry moved.
        UsageError: this vLLM has no such backend.
    """
    engine_name = name.removeprefix(PREFIX).upper()
    with _interface("its registry of attention backends"):
        from vllm.v1.attention.backends.registry import AttentionBackendEnum

        from attnkit.engines import vllm_plugin

        vllm_plugin.register()
        known = [member.name for member in AttentionBackendEnum]
        if engine_name not in known:
            raise unknown_name(f"attention backend of vLLM {vllm_version()}", engine_name, known)
        backend_class = AttentionBackendEnum[engine_name].get_class()
        provider = Provider(f"vllm {vllm_version()}", _capability(engine_name, backend_class), why="vLLM's own implementation")
    attributes = {
        "name": PREFIX + engine_name,
        "engine_name": engine_name,
        "providers": (provider,),
        "summary": f"vLLM's {engine_name}",
        "automatic": False,
    }
    made: type[EngineBackend] = type(f"Engine_{engine_name}", (EngineBackend,), attributes)
    return made()


def _capability(name: str, backend: Any) -> Capability:
    """The vLLM class's claims in attnkit's words."""
    if hasattr(backend, "attnkit_capability"):  # our own classes, put there by the plugin
        ours: Capability = backend.attnkit_capability()
        features = ours.features - {"lse", "score_mod", "mask_mod"}  # no words for them in vLLM's interface
        return replace(ours, ops=frozenset({"paged"}), features=features, conflicts=_CONFLICTS, graphs=False)
    dtypes = {dtype.removeprefix("torch.") for dtype in map(str, backend.supported_dtypes)}
    caches: dict[str, KvCacheDtype] = {"auto": "auto", "fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
    sizes = backend.get_supported_kernel_block_sizes()
    bases = [size.base for size in sizes if hasattr(size, "base")]
    heads = backend.get_supported_head_sizes()
    features: set[Feature] = set(_UNCLAIMED.get(name, frozenset()))
    parameters = inspect.signature(backend.get_impl_cls().__init__).parameters
    if getattr(backend, "supports_sliding_window", lambda: "sliding_window" in parameters)():
        features.add("window")
    if backend.supports_sink():
        features.add("sinks")
    if getattr(backend, "supports_non_causal", lambda: False)():
        features.add("non_causal")
    return Capability(
        ops=frozenset({"paged"}),
        archs={"cpu": ("*",)} if name.startswith("CPU") else {"nvidia": ("*",), "amd": ("*",), "intel": ("*",)},
        dtypes=frozenset(d for d in ("float16", "bfloat16", "float32") if d in dtypes),
        head_dims=HeadDims.of(*heads) if heads else HeadDims(high=512),
        block_sizes=None if bases else frozenset(sizes),
        min_block_size=min(bases, default=1),
        block_multiple=min(bases, default=1),
        kv_cache_dtypes=frozenset(caches[c] for c in backend.supported_kv_cache_dtypes if c in caches),
        features=frozenset(features),
        conflicts=_CONFLICTS,
    )


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
    """A real `VllmConfig` for a one-layer model of this geometry, from a config.json on disk."""
    with _interface("its configuration classes"):
        from vllm.config import CacheConfig, ModelConfig, VllmConfig

        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(_model_config(geometry)), encoding="utf-8")
            model = ModelConfig(model=folder, skip_tokenizer_init=True, dtype=geometry.dtype, max_model_len=MAX_LEN, seed=0)
            cache_config = CacheConfig(
                block_size=geometry.block_size, cache_dtype=geometry.kv_cache_dtype, enable_prefix_caching=False
            )
            config = VllmConfig(model_config=model, cache_config=cache_config)
        config.cache_config.block_size = geometry.block_size  # a platform may have rounded it
        config.cache_config.num_gpu_blocks = 1024
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
    prefix = f"model.layers.{next(_numbers)}.self_attn.attn"
    with _interface("building a layer"):
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.layers.attention import Attention
        from vllm.v1.attention.backends.registry import AttentionBackendEnum
        from vllm.v1.kv_cache_interface import FullAttentionSpec
    with set_current_vllm_config(config), _default_dtype(call.query.dtype):
        with _interface("building a layer"):
            backend = AttentionBackendEnum[name].get_class()
            module = Attention(
                geometry.num_heads,
                geometry.head_dim,
                call.softmax.softmax_scale,
                geometry.num_kv_heads,
                cache_config=config.cache_config,
                prefix=prefix,
                attn_backend=backend,
                **_layer_arguments(call),
            ).to(call.query.device)
            spec = FullAttentionSpec(
                block_size=geometry.block_size,
                num_kv_heads=geometry.num_kv_heads,
                head_size=geometry.head_dim,
                dtype=module.kv_cache_torch_dtype,
            )
            kv_cache = allocate(backend, spec, call.key_cache.shape[0] + 1, config, call.query.device)
            builder = backend.get_builder_cls()(spec, [prefix], config, torch.device(call.query.device))
        try:
            yield Layer(module, builder, kv_cache, config)
        finally:
            config.compilation_config.static_forward_context.pop(prefix, None)


def _layer_arguments(call: PagedAttention) -> dict[str, Any]:
    """The softmax's shape in the arguments of vLLM's layer."""
    softmax = call.softmax
    arguments: dict[str, Any] = {
        "logits_soft_cap": softmax.softcap or None,
        "alibi_slopes": None if softmax.alibi_slopes is None else softmax.alibi_slopes.tolist(),
        "per_layer_sliding_window": softmax.window[0] + 1 if softmax.window[0] >= 0 else None,
    }
    if softmax.sinks is not None:
        arguments["sinks"] = softmax.sinks
    return arguments


def _set_scales(module: Any, k_scale: float, v_scale: float) -> None:
    """Cache scales, in every form the versions keep them in."""
    for letter, scale in (("k", k_scale), ("v", v_scale)):
        getattr(module, f"_{letter}_scale").fill_(scale)
        setattr(module, f"_{letter}_scale_float", scale)
        with suppress(AttributeError):
            getattr(module, f"_{letter}_scale_cpu").fill_(scale)


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    """vLLM's layers take their dtype from torch's default, which the model loader sets."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def allocate(backend: Any, spec: Any, num_blocks: int, config: Any, device: Any) -> Tensor:
    """A cache of `num_blocks` blocks as this vLLM version's runner lays it out for `backend`, filled with stale values.

    Stale but finite, as in serving: blocks are reused without being cleared, so what a sequence has not written must not reach
    its result. Not NaN: vLLM clears the cache once at the start, and its kernels may multiply what lies there by zero.
    """
    import torch

    if hasattr(backend, "get_kv_cache_shape"):  # until the layout became a property of the cache's specification
        shape = backend.get_kv_cache_shape(
            num_blocks, spec.block_size, spec.num_kv_heads, spec.head_size, cache_dtype_str=config.cache_config.cache_dtype
        )
        order = tuple(range(len(shape)))
        with suppress(AttributeError, NotImplementedError):
            order = backend.get_kv_cache_stride_order()
        physical = torch.empty([shape[axis] for axis in order], dtype=spec.dtype, device=device)
        view = physical.permute([order.index(axis) for axis in range(len(order))])
    else:
        from vllm.v1.kv_cache_interface import KVCacheLayout, compute_layer_kv_cache_shape_bytes, compute_layout_strides

        layout = (backend.supported_kv_cache_layouts() or (KVCacheLayout.LBNHC,))[0]
        config.cache_config.kv_cache_layout = layout.name
        bytes_shape = compute_layer_kv_cache_shape_bytes(spec, num_blocks)
        strides = compute_layout_strides(spec, num_blocks, 1, layout)
        raw = torch.empty(num_blocks * spec.page_size_bytes, dtype=torch.int8, device=device)
        physical = raw.view(spec.dtype)
        view = torch.as_strided(raw, (1, *bytes_shape), strides)[0].view(spec.dtype)
    physical.fill_(STALE if physical.dtype.is_floating_point else STALE_BYTE)
    return view


def _forward(layer: Layer, call: PagedAttention) -> AttentionOutput:
    """Write the context, build the metadata, compute.

    A float8 cache is written with scale one and read with the call's scales: every stored value is exact in the query's dtype,
    so vLLM's cache holds the call's very bytes (vLLM's CPU quantiser truncates: with a scale they would change).
    """
    import torch

    batch = _batch(call)
    out = call.out if call.out is not None and call.out.is_contiguous() else torch.full_like(call.query, float("nan"))
    kernel = f"vllm.{type(layer.module.impl).__name__}" + (f"[{layer.module.isa}]" if hasattr(layer.module, "isa") else "")
    if batch is not None:
        with _interface("writing its cache"):
            update = layer.module.impl.do_kv_cache_update
            _set_scales(layer.module, 1.0, 1.0)
        with _interface("building its metadata"):
            metadata = layer.builder.build(common_prefix_len=0, common_attn_metadata=_common(call, batch))
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
class _Batch:
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


def _batch(call: PagedAttention) -> _Batch | None:
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
    return _Batch(
        key=read_cache(call.key_cache, slot, 1.0, dtype),
        value=read_cache(call.value_cache, slot, 1.0, dtype),
        slots=slot + call.key_cache.shape[1],
        new=new.to(slot.device),
        table=table.to(torch.int32) + 1,
        lens=lens,
        starts=starts,
    )


def _common(call: PagedAttention, batch: _Batch) -> Any:
    """`CommonAttentionMetadata`, with the host copies that this version has fields for."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    device = call.query.device
    computed = batch.lens - batch.starts.diff()
    host_copies = {
        "_seq_lens_cpu": batch.lens,
        "seq_lens_cpu_upper_bound": batch.lens,
        "_num_computed_tokens_cpu": computed,
    }
    known = {field.name for field in fields(CommonAttentionMetadata)}
    return CommonAttentionMetadata(
        query_start_loc=batch.starts.to(device),
        query_start_loc_cpu=batch.starts,
        seq_lens=batch.lens.to(device),
        num_reqs=len(batch.lens),
        num_actual_tokens=int(batch.starts[-1]),
        max_query_len=int(batch.starts.diff().max()),
        max_seq_len=int(batch.lens.max()),
        block_table_tensor=batch.table,
        slot_mapping=batch.slots[batch.new],
        causal=call.softmax.causal,
        **{name: value for name, value in host_copies.items() if name in known},
    )


def is_tested(version: str, platform: str) -> bool:
    """True where this driver was written for that version of vLLM on that platform ("cpu", "cuda")."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return platform in TESTED and SpecifierSet(TESTED[platform]).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def served_spec(backend: Backend, spec: AttentionSpec) -> AttentionSpec:
    """`spec` with the block size that vLLM takes where it cannot use the one asked: 128 on CPU, else the backend's least."""
    capability = backend.providers[0].capability
    size = spec.block_size
    if size is None or (size % capability.block_multiple == 0 and (capability.block_sizes or {size}) >= {size}):
        return spec
    fitting = min(capability.block_sizes) if capability.block_sizes else capability.block_multiple
    return replace(spec, block_size=128 if "cpu" in capability.archs else fitting)


def validate_engine_backend(
    name: str,
    spec: AttentionSpec | None,
    level: Level,
    *,
    device: Device,
    on_case: Callable[[CaseResult], None] | None = None,
    fault: str | None = None,
    torch_device: str | None = None,
) -> Verdict:
    """The self-test of vLLM's backend `name` on `device`.

    Args:
        name: "CPU_ATTN" or "vllm:CPU_ATTN".
        spec, level, on_case, fault, torch_device: as for `attnkit.selftest.run_selftest`.

    Returns:
        The verdict. It is inconclusive where vLLM's interface moved, and where a case failed under a version that the driver
        was not tried with: then the driver may be what is wrong. A pass is a pass under any version.

    Raises:
        UsageError: this vLLM has no such backend, or the fault is unknown.
    """
    from attnkit.selftest import run_selftest

    try:
        backend = engine_backend(name)
        verdict = run_selftest(
            backend,
            device,
            None if spec is None else served_spec(backend, spec),
            level=level,
            fault=fault,
            on_case=on_case,
            torch_device=torch_device,
        )
    except EngineMovedError as error:
        case = CaseResult("interface", "how vLLM's attention is called", "inconclusive", str(error))
        if on_case:
            on_case(case)
        provider = f"vllm {vllm_version()}"
        return Verdict(_name(name), provider, f"{device.name} ({device.arch})", level, "inconclusive", (case,), fault=fault)
    platform = "cpu" if device.vendor == "cpu" else "cuda"
    if verdict.outcome == "fail" and not is_tested(vllm_version(), platform) and fault is None:
        doubt = (
            f"vLLM {vllm_version()} is outside {TESTED[platform]}, the versions whose interface is known; "
            "a failed case may be the driver's"
        )
        return replace(verdict, outcome="inconclusive", unseen=(*verdict.unseen, doubt))
    return verdict


def _name(name: str) -> str:
    return PREFIX + name.removeprefix(PREFIX).upper()
