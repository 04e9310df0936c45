"""vLLM's own attention backends as backends of attnkit, so that the self-test can judge what will serve, without a server.

For every call a real `Attention` layer of vLLM is built with the backend under test, the cache is allocated in that backend's
own layout, the context is written through the backend's own `do_kv_cache_update`, the metadata come from its own builder, and
its `forward` computes (`vllm_layer`; `vllm_mla` for multi-head latent attention). Nothing here knows how a block is laid out,
and nothing of vLLM is replaced.

The interface is vLLM's internal one and moves between releases. Where it moved, `EngineMovedError` says what is missing, and
`validate_engine_backend` makes a verdict `inconclusive` of it. The way of driving is that of vLLM's own
tests/v1/attention/test_attention_backends.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.engines.vllm import encoder, layer_rows, tower
from attnkit.engines.vllm.layer import EngineMovedError, engine_layer, forward, interface, vllm_version
from attnkit.errors import unknown_name
from attnkit.hardware.device import Device
from attnkit.selftest.results import CaseResult, Level, Verdict
from attnkit.spec import (
    PHASES,
    AttentionOutput,
    AttentionSpec,
    Feature,
    KvCacheDtype,
    MlaDecode,
    Op,
    PagedAttention,
    Phase,
)

PREFIX = "vllm:"
TESTED = {"cpu": ">=0.32,<0.33", "cuda": ">=0.25,<0.26"}
"""vLLM versions whose interface this driver was written for, by vLLM's word for the platform."""

_UNCLAIMED: dict[str, frozenset[Feature]] = {
    "CPU_ATTN": frozenset({"softcap", "alibi", "sinks"}),
    "FLASH_ATTN": frozenset({"softcap", "alibi"}),
    "TRITON_ATTN": frozenset({"softcap", "alibi"}),
    "FLASHINFER": frozenset({"softcap"}),
    "FLEX_ATTENTION": frozenset({"softcap", "alibi"}),
}
"""Features that vLLM's class has no method to claim, though its implementation takes and honours them."""

_PAGED: frozenset[Op] = frozenset({"paged"})
_MLA: frozenset[Op] = frozenset({"mla_decode"})
_DECODE: frozenset[Phase] = frozenset({"decode"})
"""MLA's prefill goes through W_UV, which attnkit's calls leave to the model."""

_CONFLICTS: tuple[frozenset[Feature], ...] = (frozenset({"non_causal", "window"}),)
"""vLLM's window is one number: so many tokens back."""


def _run(call: PagedAttention | MlaDecode, name: str) -> AttentionOutput:
    """A paged or MLA decode call through vLLM's implementation `name`.

    Sequences without new tokens are left out of the batch, as vLLM's scheduler does.

    Raises:
        EngineMovedError: vLLM's interface moved.
    """
    if isinstance(call, MlaDecode):
        from attnkit.engines.vllm.layer_mla import decode

        return decode(name, call)
    with engine_layer(name, call) as layer:
        return forward(layer, call)


@cache
def engine_backend(name: str) -> Backend:
    """vLLM's backend `name` ("CPU_ATTN" or "vllm:CPU_ATTN") as a backend of attnkit.

    Its capability is read from what the vLLM class says about itself. Where attnkit's plugin is switched on and takes that
    backend's place, it is the plugin's classes that are driven.

    Raises:
        EngineMovedError: vLLM is absent or its registry moved.
        UsageError: this vLLM has no such backend.
    """
    engine_name = name.removeprefix(PREFIX).upper()
    if engine_name.startswith(tower.TOWER):
        return tower.tower_backend(PREFIX, engine_name.removeprefix(tower.TOWER))
    if engine_name.startswith(encoder.ENCODER):
        return encoder.encoder_backend(PREFIX, engine_name.removeprefix(encoder.ENCODER))
    with interface("its registry of attention backends"):
        from vllm.v1.attention.backends.registry import AttentionBackendEnum

        from attnkit.engines.vllm import plugin as vllm_plugin

        vllm_plugin.register()
        known = [member.name for member in AttentionBackendEnum]
        if engine_name not in known:
            raise unknown_name(f"attention backend of vLLM {vllm_version()}", engine_name, known)
        backend_class = AttentionBackendEnum[engine_name].get_class()
        with _a_configuration():
            capability = _capability(engine_name, backend_class)
        provider = Provider(
            f"vllm {vllm_version()}", capability, partial(_run, name=engine_name), why="vLLM's own implementation"
        )
    return Backend(PREFIX + engine_name, (provider,), summary=f"vLLM's {engine_name}", automatic=False)


def implementation(name: str) -> tuple[str, ...]:
    """The classes that `engine_backend(name)` drives, as paths: vLLM's backend and its `impl`; a tower's layer.

    Raises:
        EngineMovedError: the registry moved.
    """
    if _name(name).startswith(PREFIX + tower.TOWER):
        return (tower.LAYER,)
    with interface("its registry of attention backends"):
        from vllm.v1.attention.backends.registry import AttentionBackendEnum

        backend = AttentionBackendEnum[name.removeprefix(PREFIX).upper().removeprefix(encoder.ENCODER)].get_class()
        return tuple(layer_rows.implementation(backend, backend.get_impl_cls()))


def _capability(name: str, backend: Any) -> Capability:
    """The vLLM class's claims in attnkit's words.

    Under a float8 cache vLLM's layer may make the query float8 before FLASH_ATTN or TRITON_ATTN gets it; what is driven here
    is TRITON_ATTN with exact queries (FLASH_ATTN's class does not list float8 caches).
    """
    mla = bool(backend.is_mla())
    if hasattr(backend, "attnkit_capability"):  # our own classes, put there by the plugin
        ours: Capability = backend.attnkit_capability()
        spoken = ours.features - {"lse", "score_mod", "mask_mod"}  # vLLM's interface has no words for these
        if mla:
            # vLLM's cache for MLA is never float8 on CPU, and its layer decodes one token a sequence
            dims, caches = HeadDims.of((576, 512)), frozenset[KvCacheDtype]({"auto"})
            ours = replace(ours, ops=_MLA, phases=_DECODE, head_dims=dims, kv_cache_dtypes=caches)
            return replace(ours, features=frozenset(), graphs=False, of_engine=True)
        return replace(ours, ops=_PAGED, features=spoken, conflicts=_CONFLICTS, graphs=False, of_engine=True)
    dtypes = {dtype.removeprefix("torch.") for dtype in map(str, backend.supported_dtypes)}
    words: dict[str, KvCacheDtype] = {"auto": "auto", "fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
    sizes = backend.get_supported_kernel_block_sizes()
    bases = [size.base for size in sizes if hasattr(size, "base")]
    features: set[Feature] = set(_UNCLAIMED.get(name, frozenset()))
    if name == "FLASH_ATTN" and not _has_flash_attention_2():
        features.discard("alibi")
    parameters = inspect.signature(backend.get_impl_cls().__init__).parameters
    if getattr(backend, "supports_sliding_window", lambda: "sliding_window" in parameters)():
        features.add("window")
    if backend.supports_sink():
        features.add("sinks")
    if getattr(backend, "supports_non_causal", lambda: False)():
        features.add("non_causal")
    caches = frozenset(words[cache] for cache in backend.supported_kv_cache_dtypes if cache in words)
    return Capability(
        ops=_MLA if mla else _PAGED,
        archs={"cpu": ("*",)} if name.startswith(("CPU", "AMX")) else {"nvidia": ("*",), "amd": ("*",), "intel": ("*",)},
        dtypes=frozenset(d for d in ("float16", "bfloat16", "float32") if d in dtypes),
        head_dims=HeadDims.of((576, 512)) if mla else _head_dims(backend),
        block_sizes=None if bases else frozenset(sizes),
        min_block_size=min(bases, default=1),
        block_multiple=min(bases, default=1),
        kv_cache_dtypes=caches - _refused_caches(name, mla),
        phases=_DECODE if mla else frozenset(PHASES),
        features=frozenset() if mla else frozenset(features),
        conflicts=_CONFLICTS,
        of_engine=True,
    )


@contextmanager
def _a_configuration() -> Iterator[None]:
    """vLLM's current configuration, set to its defaults where none is: some classes read it before they answer."""
    from vllm.config import VllmConfig, get_current_vllm_config_or_none, set_current_vllm_config

    if get_current_vllm_config_or_none() is not None:
        yield
        return
    with set_current_vllm_config(VllmConfig()):
        yield


def _head_dims(backend: Any) -> HeadDims:
    """The head sizes that the class takes, asked one by one where it names none."""
    named = backend.get_supported_head_sizes()
    taken = named or [size for size in range(1, 513) if backend.supports_head_size(size)]
    if named or not taken:
        return HeadDims.of(*taken)
    step = 1 if len(taken) == 1 else min(b - a for a, b in pairwise(taken))
    regular = HeadDims(low=taken[0], high=taken[-1], multiple_of=step)
    return regular if taken == [d for d in range(1, 513) if regular.accepts(d, d)] else HeadDims.of(*taken)


def _has_flash_attention_2() -> bool:
    """Whether vLLM has the version of FlashAttention that it takes for ALiBi; a build for one architecture may lack it."""
    try:
        from vllm.v1.attention.backends.fa_utils import get_flash_attn_version

        return get_flash_attn_version(requires_alibi=True) is not None
    except (ImportError, AssertionError, TypeError):
        return False


def _refused_caches(name: str, mla: bool) -> frozenset[KvCacheDtype]:
    """Caches that the class claims and that cannot be judged here.

    CPU_ATTN's float8 needs AVX-512 or AMX (vLLM being asked). Under a float8 cache vLLM's MLA layer hands its backends queries
    that it has made float8, too; attnkit's call has them exact, and TRITON_MLA alone takes them so.
    """
    float8 = frozenset[KvCacheDtype]({"fp8_e4m3", "fp8_e5m2"})
    if mla and name != "TRITON_MLA":
        return float8
    if name == "CPU_ATTN":
        try:
            import torch
            from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

            _get_attn_isa(torch.bfloat16, 128, 64, "fp8_e4m3")
        except NotImplementedError:
            return float8
        except (ImportError, TypeError):
            pass  # another vLLM, which keeps its word or fails the self-test
    return frozenset()


def is_tested(version: str, platform: str) -> bool:
    """True where this driver was written for that version of vLLM on that platform ("cpu", "cuda")."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    try:
        return platform in TESTED and SpecifierSet(TESTED[platform]).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def served_spec(backend: Backend, spec: AttentionSpec) -> AttentionSpec:
    """`spec` as it is served: with the block size that vLLM takes where it cannot use the one asked (128 on CPU, else the
    backend's least), and only the phases that are driven.
    """
    capability = backend.providers[0].capability
    spec = replace(spec, phases=spec.phases & capability.phases)
    size = spec.block_size
    if size is None or (size % capability.block_multiple == 0 and (capability.block_sizes or {size}) >= {size}):
        return spec
    fitting = min(capability.block_sizes) if capability.block_sizes else capability.block_multiple
    return replace(spec, block_size=128 if "cpu" in capability.archs and not capability.block_sizes else fitting)


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

    if spec is None and _name(name).startswith((PREFIX + tower.TOWER, PREFIX + encoder.ENCODER)):
        spec = tower.USUAL
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
        verdict = replace(verdict, implementation=implementation(name))
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
