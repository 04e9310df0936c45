"""The contract of a backend, and how a need is checked against a capability.

A backend is a *name* users know (FLASH_ATTN, TRITON_ATTN …). Behind it stand one or more *providers*, each with its own
`Capability`: FLASH_ATTN has vLLM's FA3 (sm_90 only) and FA2 (sm_80 on). Everything here is plain data; torch, jax and vendor
libraries are imported inside a provider's `run`, never at import time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from attnkit.backends.versions import Installed, lookup, split_requirement
from attnkit.errors import UnsupportedError
from attnkit.hardware.device import Device
from attnkit.spec import ENGINE_MADE, AttentionOutput, AttentionSpec, Call, Dtype, Feature, KvCacheDtype, Op, Phase

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet


@dataclass(frozen=True)
class Reason:
    """Why a provider cannot serve a need.

    Args:
        code: stable and short, for machines: device, arch, op, dtype, kv_cache_dtype, head_dim, block_size, feature, phase,
            not_installed, version, policy, workload.
        message: one sentence for people, with the value that was asked and what is allowed.
    """

    code: str
    message: str


@dataclass(frozen=True)
class HeadDims:
    """Which head sizes work: an explicit set, or every multiple of `multiple_of` from `low` to `high` and the pairs `extra`."""

    values: frozenset[tuple[int, int]] | None = None
    low: int = 1
    high: int = 256
    multiple_of: int = 1
    extra: frozenset[tuple[int, int]] = frozenset()

    @classmethod
    def of(cls, *dims: int | tuple[int, int]) -> HeadDims:
        """An explicit set; a pair is (query/key width, value width)."""
        return cls(values=frozenset(d if isinstance(d, tuple) else (d, d) for d in dims))

    def accepts(self, head_dim: int, head_dim_v: int) -> bool:
        if self.values is not None:
            return (head_dim, head_dim_v) in self.values
        in_range = head_dim == head_dim_v and self.low <= head_dim <= self.high and head_dim % self.multiple_of == 0
        return in_range or (head_dim, head_dim_v) in self.extra

    def __str__(self) -> str:
        if self.values is not None:
            return ", ".join(str(d) if d == v else f"{d}/{v}" for d, v in sorted(self.values))
        step = f", multiples of {self.multiple_of}" if self.multiple_of > 1 else ""
        pairs = "".join(f", {d}/{v}" for d, v in sorted(self.extra))
        return f"{self.low} to {self.high}{step}{pairs}"


@dataclass(frozen=True)
class Capability:
    """What a provider can do. Everything not claimed is refused.

    Args:
        ops: operations it implements.
        archs: per vendor, patterns of architectures ("sm_9*", "gfx942", "*"); a vendor not listed is refused.
        dtypes: dtypes of query and output.
        bf16_needs: per vendor, architectures on which bfloat16 works where that is fewer than `archs`.
        head_dims: see `HeadDims`.
        block_sizes: cache block sizes, None for any; paged ops only.
        min_block_size, block_multiple: used where `block_sizes` is None.
        kv_cache_dtypes: "auto" plus the float8 formats it reads.
        fp8_archs: per vendor, architectures on which float8 caches work (absent: wherever it runs).
        fnuz: reads float8 caches in AMD's "fnuz" formats too.
        phases: phases it serves.
        features: features it honours.
        conflicts: sets of features that it cannot honour together, though each alone.
        max_heads_ratio: largest num_heads / num_kv_heads, None for any.
        num_heads: query head counts it has kernels for, None for any.
        graphs: safe under CUDA/HIP graph capture.
        deterministic: same input, same bits.
        tensor_cores: runs on tensor cores alone; refused on the GPUs of an architecture that are made without them.
        of_engine: an engine's own code, which is called by that engine alone. It is asked for no row without a key, and where a
            model is known for no other geometry: what it refuses is known to its constructor, not to its claims.
    """

    ops: frozenset[Op]
    archs: Mapping[str, tuple[str, ...]]
    dtypes: frozenset[Dtype]
    bf16_needs: Mapping[str, tuple[str, ...]] | None = None
    head_dims: HeadDims = HeadDims()
    block_sizes: frozenset[int] | None = None
    min_block_size: int = 1
    block_multiple: int = 1
    kv_cache_dtypes: frozenset[KvCacheDtype] = frozenset({"auto"})
    fp8_archs: Mapping[str, tuple[str, ...]] | None = None
    fnuz: bool = False
    phases: frozenset[Phase] = frozenset({"prefill", "decode", "mixed"})
    features: frozenset[Feature] = frozenset()
    conflicts: tuple[frozenset[Feature], ...] = ()
    max_heads_ratio: int | None = None
    num_heads: frozenset[int] | None = None
    graphs: bool = False
    deterministic: bool = False
    tensor_cores: bool = False
    of_engine: bool = False

    def reject(self, spec: AttentionSpec, device: Device) -> tuple[Reason, ...]:
        """Every reason why this cannot serve `spec` on `device`; empty where it can."""
        return tuple(self.device_reasons(device)) or tuple(self._spec_reasons(spec, device))

    def device_reasons(self, device: Device) -> list[Reason]:
        """Why this does not run on `device` at all; empty where it does."""
        if device.obstacle is not None:
            return [Reason("device", device.obstacle)]
        if device.vendor not in self.archs:
            return [Reason("device", f"runs on {', '.join(sorted(self.archs))}, not on {device.vendor} ({device.name})")]
        if not arch_matches(device, self.archs):
            return [Reason("arch", f"needs {arch_words(self.archs[device.vendor])}; {device.name} is {device.arch}")]
        if self.tensor_cores and not device.tensor_cores:
            return [Reason("arch", f"needs tensor cores; {device.name} is {device.arch} made without them")]
        return []

    def _spec_reasons(self, spec: AttentionSpec, device: Device) -> list[Reason]:
        reasons: list[Reason] = []
        if spec.op not in self.ops:
            return [Reason("op", f"does not implement {spec.op}; implements {_list(self.ops)}")]
        if spec.dtype not in self.dtypes:
            reasons.append(Reason("dtype", f"does not take {spec.dtype}; takes {_list(self.dtypes)}"))
        elif spec.dtype == "bfloat16" and self.bf16_needs is not None and not arch_matches(device, self.bf16_needs):
            reasons.append(Reason("dtype", f"{device.arch} has no bfloat16 matrix instructions; use float16"))
        if spec.kv_cache_dtype not in self.kv_cache_dtypes:
            reasons.append(
                Reason("kv_cache_dtype", f"cannot read a {spec.kv_cache_dtype} cache; reads {_list(self.kv_cache_dtypes)}")
            )
        elif spec.kv_cache_dtype != "auto" and self.fp8_archs is not None and not arch_matches(device, self.fp8_archs):
            reasons.append(Reason("kv_cache_dtype", f"cannot read a {spec.kv_cache_dtype} cache on {device.arch}"))
        elif spec.fnuz and not self.fnuz:
            reasons.append(Reason("kv_cache_dtype", f"cannot read a {spec.kv_cache_dtype} cache in the fnuz format"))
        if not self.head_dims.accepts(spec.head_dim, spec.value_dim):
            asked = str(spec.head_dim) if spec.head_dim == spec.value_dim else f"{spec.head_dim}/{spec.value_dim}"
            reasons.append(Reason("head_dim", f"head_dim {asked} is not supported; supports {self.head_dims}"))
        ratio = spec.num_heads // spec.num_kv_heads
        if self.max_heads_ratio is not None and ratio > self.max_heads_ratio:
            reasons.append(Reason("heads", f"{ratio} query heads a key head; supports up to {self.max_heads_ratio}"))
        if self.num_heads is not None and spec.num_heads not in self.num_heads:
            allowed = ", ".join(map(str, sorted(self.num_heads)))
            reasons.append(Reason("heads", f"{spec.num_heads} query heads are not supported; supports {allowed}"))
        reasons.extend(self._block_reasons(spec))
        for phase in sorted(spec.phases - self.phases):
            reasons.append(Reason("phase", f"does not serve {phase}; serves {_list(self.phases)}"))
        made = ENGINE_MADE if spec.op == "paged" else frozenset[Feature]()
        for feature in sorted(spec.features - self.features - made):
            reasons.append(Reason("feature", f"does not honour {feature}; honours {_list(self.features) or 'none'}"))
        for together in self.conflicts:
            if together <= spec.features:
                reasons.append(Reason("feature", f"cannot honour {' with '.join(sorted(together))}"))
        return reasons

    def _block_reasons(self, spec: AttentionSpec) -> list[Reason]:
        size = spec.block_size
        if size is None or spec.op == "varlen":
            return []
        if self.block_sizes is not None:
            if size not in self.block_sizes:
                allowed = ", ".join(map(str, sorted(self.block_sizes)))
                return [Reason("block_size", f"block size {size} is not supported; supports {allowed}")]
        elif size < self.min_block_size or size % self.block_multiple:
            return [
                Reason(
                    "block_size",
                    f"block size {size} is not supported; supports multiples of {self.block_multiple} "
                    f"from {self.min_block_size}",
                )
            ]
        return []


def arch_matches(device: Device, archs: Mapping[str, tuple[str, ...]]) -> bool:
    """True where the device's vendor is listed and its architecture matches one of that vendor's patterns."""
    return any(fnmatchcase(device.arch, pattern) for pattern in archs.get(device.vendor, ()))


_KNOWN_SM = (70, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
"""NVIDIA architectures that exist, to say "sm_80 or newer" where that is what the patterns mean."""


def arch_words(patterns: tuple[str, ...]) -> str:
    """Architecture patterns in words: ("sm_8*", "sm_9*", "sm_1*") is "sm_80 or newer"."""
    if "*" in patterns:
        return "any architecture"
    served = [sm for sm in _KNOWN_SM if any(fnmatchcase(f"sm_{sm}", p) for p in patterns)]
    if len(served) > 1 and served == list(_KNOWN_SM[-len(served) :]):
        return f"sm_{served[0]} or newer"
    return " or ".join(p.replace("*", "x") for p in patterns)


def _list(names: frozenset[str] | frozenset[Op]) -> str:
    return ", ".join(sorted(names))


@dataclass(frozen=True)
class Provider:
    """A library (or our own kernels) behind a backend.

    Args:
        name: "torch", "vllm_flash_attn", "flashinfer-python", "attnkit" …
        capability: what it can do.
        run: computes a call that `capability` claims, on the device of its tensors, which is the current one. Imports its
            library when it is called.
        requires: distributions or import names that must be present, with an optional version specifier:
            ("torch>=2.8", "triton>=3.6,<3.10"). Looked up without importing them.
        why: one line on what it is, for the docs table.
        kind: "kernel" (one kernel reads the cache's pages where they lie), "composed" (pages are gathered, then the library's
            dense kernel runs) or "interpreter"; what speed is expected of it (`selftest.speed`). None: nothing is stated.
        kernels: patterns of the kernel names that its answers may bear; the self-test holds it to them.
        to_get: what to do where a requirement of our own ("attnkit-…") is missing, which no package installs.
        any_stride: takes index tensors, slopes and sinks whatever their strides; others get contiguous copies of views.
        max_sequences: sequences that a call may have at most; None for any number.
    """

    name: str
    capability: Capability
    run: Callable[[Any], AttentionOutput] = field(repr=False, compare=False)
    requires: tuple[str, ...] = ()
    why: str = ""
    kind: Literal["kernel", "composed", "interpreter"] | None = None
    to_get: str = ""
    kernels: tuple[str, ...] = ()
    any_stride: bool = False
    max_sequences: int | None = None


@dataclass(frozen=True)
class Accepted:
    """A backend that can serve, through `provider`."""

    backend: str
    provider: str
    reason: str


@dataclass(frozen=True)
class Rejected:
    """A backend that cannot serve, and why: every provider's reasons, prefixed by the provider's name where several."""

    backend: str
    reasons: tuple[Reason, ...]


_HOPELESS = frozenset({"device", "arch", "op"})
"""Reasons that no installation cures: what else is missing then does not matter."""


@dataclass(frozen=True, eq=False)
class Backend:
    """A named implementation of attention. One instance lives in the registry; a changed one is made by `replace`.

    Args:
        name, aliases: the name users know and its other spellings.
        providers: what may run it, the preferred first.
        summary: one line for the docs table.
        automatic: False where only an explicit choice or a debug workload may take it (NO_ATTENTION).
        device_of: the device a tensor counts as living on, where that is not what torch says.
    """

    name: str
    providers: tuple[Provider, ...]
    aliases: tuple[str, ...] = ()
    summary: str = ""
    automatic: bool = True
    device_of: Callable[[Any], Device] | None = field(default=None, repr=False)

    def run(self, call: Call, provider: str | None = None) -> AttentionOutput:
        """Compute `call` on the device of its tensors, whichever is current.

        Args:
            call: one of the call classes of spec.py.
            provider: which provider to use, used as asked: where its library is missing, the import says so. None takes the
                first that is installed and can serve.

        Raises:
            UnsupportedError: the call is outside the provider's capability. Never computes something else instead.
        """
        from attnkit.backends import torch_device

        if not any(call.op in p.capability.ops for p in self.providers):
            ops = frozenset[Op]().union(*(p.capability.ops for p in self.providers))
            raise UnsupportedError(
                f"{self.name} cannot run this call: it does not implement {call.op}; implements {_list(ops)}"
            )
        query = call.batch.query
        device = (self.device_of or torch_device.device_of)(query)
        chosen = self.require(call, device, provider, self.installed() if provider is None else None)
        most, sequences = chosen.max_sequences, call.batch.query_start_loc.shape[0] - 1
        if most is not None and sequences > most:
            raise UnsupportedError(f"{self.name}: {chosen.name} takes up to {most} sequences in a call, not {sequences}")
        with torch_device.made_current(query.device):
            return chosen.run(call if chosen.any_stride else torch_device.with_contiguous_indices(call))

    @cached_property
    def requirements(self) -> tuple[str, ...]:
        """Every name that any provider requires, sorted."""
        return tuple(sorted({split_requirement(text)[0] for p in self.providers for text in p.requires}))

    def installed(self) -> Installed:
        """Versions of what the providers require, None where absent. Looked up, not imported."""
        return lookup(self.requirements)

    def evaluate(self, spec: AttentionSpec, device: Device, installed: Installed) -> Accepted | Rejected:
        """The first provider that can serve `spec` on `device` with what is `installed`, or all reasons against."""
        if device.obstacle is not None:
            return Rejected(self.name, (Reason("device", device.obstacle),))
        # Where some provider is made for this vendor, nobody wants to read that the others are not.
        candidates = [p for p in self.providers if device.vendor in p.capability.archs] or list(self.providers)
        reasons: list[Reason] = []
        for provider in candidates:
            found = provider.capability.reject(spec, device)
            if not any(r.code in _HOPELESS for r in found):
                found += missing(provider, installed)
            if not found:
                return Accepted(self.name, provider.name, provider.why or f"{provider.name} can serve this on {device.arch}")
            reasons.extend(found if len(candidates) == 1 else (Reason(r.code, f"{provider.name}: {r.message}") for r in found))
        said = {r.message.split(": ", 1)[-1]: r for r in reasons}
        if len(said) == 1:  # all providers are refused for the same thing: say it once
            (message, reason), *_ = said.items()
            return Rejected(self.name, (Reason(reason.code, message),))
        return Rejected(self.name, tuple(dict.fromkeys(reasons)))

    def require(self, call: Call, device: Device, provider: str | None = None, installed: Installed | None = None) -> Provider:
        """The provider that is to run `call` on `device`: the one named, else the first that is installed and can.

        Args:
            call: the call about to run.
            device: where its tensors live.
            provider: a provider's name; None takes the first that can.
            installed: versions by requirement name. None leaves out what is installed: the import then says what is missing.

        Raises:
            UnsupportedError: no such provider, or it cannot serve the call; the message lists every reason.
        """
        versions = None if installed is None else tuple(installed.items())
        return _required(self, call.spec(), device, provider, versions)

    def _first(self, spec: AttentionSpec, device: Device, provider: str | None, installed: Installed | None) -> Provider:
        candidates = [p for p in self.providers if provider in (None, p.name)]
        if not candidates:
            known = ", ".join(p.name for p in self.providers)
            raise UnsupportedError(f"{self.name} has no provider {provider!r}; it has {known}")
        against: list[str] = []
        for candidate in candidates:
            reasons = candidate.capability.reject(spec, device)
            if installed is not None:
                reasons += missing(candidate, installed)
            if not reasons:
                return candidate
            against.extend(f"{candidate.name}: {r.message}" for r in reasons)
        raise UnsupportedError(f"{self.name} cannot run this call: " + "; ".join(dict.fromkeys(against)))


@lru_cache(maxsize=1024)  # an engine asks the same of every layer in every step
def _required(
    backend: Backend,
    spec: AttentionSpec,
    device: Device,
    provider: str | None,
    installed: tuple[tuple[str, str | None], ...] | None,
) -> Provider:
    return backend._first(spec, device, provider, None if installed is None else dict(installed))


def missing(provider: Provider, installed: Installed) -> tuple[Reason, ...]:
    """Reasons code not_installed / version for what `provider` requires and `installed` lacks."""
    reasons: list[Reason] = []
    for text in provider.requires:
        name, wanted = split_requirement(text)
        version = installed.get(name)
        if version is None:
            how = f" ({provider.to_get})" if provider.to_get and name.startswith("attnkit-") else ""
            reasons.append(Reason("not_installed", f"{name} is not installed{how}"))
        elif wanted and not _specifier(wanted).contains(version, prereleases=True):
            reasons.append(Reason("version", f"{name} {version} is installed; needs {wanted}"))
    return tuple(reasons)


@cache
def _specifier(text: str) -> SpecifierSet:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(text)
