"""Which variants of our Triton kernels a node will ask for, found by planning calls with stand-in tensors.

The planners of `attnkit.kernels.triton` decide tiles, splits and compile-time constants from a call's shapes. Here the same
planners see small CPU tensors with the shapes, strides and dtypes of the real ones, so that what is compiled ahead is, key for
key, what the node launches. Nothing about tiles is written a second time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from attnkit.errors import UsageError, unknown_name
from attnkit.kernels.triton import cache_write, differential, tile_sizes
from attnkit.kernels.triton.dual_chunk import plan as dual_chunk
from attnkit.kernels.triton.launch import Launch
from attnkit.kernels.triton.mla import plan as mla_plan
from attnkit.kernels.triton.paged import plan as paged_plan
from attnkit.kernels.triton.targets import TARGETS
from attnkit.spec import (
    Call,
    DifferentialAttention,
    Dtype,
    DualChunkAttention,
    MlaDecode,
    PagedAttention,
    Softmax,
    TreeAttention,
    VarlenAttention,
    dtype_name,
)


@dataclass(frozen=True)
class Geometry:
    """The heads of a family of models.

    Args:
        name: what `attnkit kernels build` calls it.
        heads, kv_heads, head_dim: of one tensor-parallel rank; only their ratio and the width matter for the code.
        softcap, window: what the family's layers add (0 and -1: nothing).
        latent: MLA's latent width; heads share one cache of head_dim.
    """

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    softcap: float = 0.0
    window: int = -1
    latent: int = 0


GEOMETRIES: tuple[Geometry, ...] = (
    Geometry("group4-d128", 32, 8, 128),
    Geometry("group8-d128", 64, 8, 128),
    Geometry("group7-d128", 28, 4, 128),
    Geometry("group5-d128", 40, 8, 128),
    Geometry("group2-d128", 16, 8, 128),
    Geometry("mha-d128", 32, 32, 128),
    Geometry("group4-d64", 32, 8, 64),
    Geometry("group7-d64", 14, 2, 64),
    Geometry("mha-d64", 16, 16, 64),
    Geometry("group2-d256-softcap", 8, 4, 256, softcap=50.0),
    Geometry("group2-d256-softcap-window", 8, 4, 256, softcap=50.0, window=4095),
    Geometry("mla-128", 128, 1, 576, latent=512),
    Geometry("mla-16", 16, 1, 576, latent=512),
)
"""Head layouts of the model families served most; an image may hold fewer or, from a model's config, others."""

DEFAULT_GEOMETRIES: tuple[str, ...] = ("group4-d128", "group8-d128", "group7-d128", "group4-d64")
"""What is compiled by default: Llama 3, Mistral, Qwen3 (4), their 70B class (8), Qwen2.5-7B (7), Llama 3.2 1B (64)."""


def geometry(name: str) -> Geometry:
    """The geometry of a name; UsageError with the known names otherwise."""
    for one in GEOMETRIES:
        if one.name == name:
            return one
    raise unknown_name("geometry", name, (g.name for g in GEOMETRIES))


def dtypes(arch: str) -> tuple[Dtype, ...]:
    """The dtypes worth compiling for an architecture: sm_75 has no bfloat16."""
    return ("float16",) if arch == "sm_75" else ("bfloat16", "float16")


def calls(
    shape: Geometry, dtype: Dtype, *, block_size: int = 16, return_lse: bool = False, large: bool = False
) -> Iterator[Call]:
    """The calls a serving node makes with this geometry: prefill, mixed batch, decode; MLA: decode.

    Args:
        large: also caches of more than 2 GiB, which the AMD compiler tells apart from smaller ones.
    """
    for nbytes in (0, TWO_GIB) if large else (0,):
        for query_lens in ((1, 1), (128, 128), (128, 1)) if not shape.latent else ((1, 1),):
            yield _call(shape, dtype, query_lens, block_size, return_lse, nbytes)


TWO_GIB = 1 << 31


def _cache(shape: tuple[int, ...], kind: Any, nbytes: int) -> Any:
    """A cache in a storage of at least `nbytes`, which is reserved and never touched."""
    if not nbytes:
        return torch.zeros(shape, dtype=kind)
    return torch.empty(nbytes + 4096, dtype=torch.uint8).view(kind)[: math.prod(shape)].view(shape)


def _call(
    shape: Geometry,
    dtype: Dtype,
    query_lens: tuple[int, ...],
    block_size: int,
    return_lse: bool,
    nbytes: int,
) -> Call:
    kind = getattr(torch, dtype)
    tokens, seqs, width = sum(query_lens), len(query_lens), shape.head_dim
    longest = 1 << 20  # far beyond any split: every number of splits is planned, see `launches`
    starts = torch.tensor([0, *query_lens], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    batch: dict[str, Any] = {
        "block_table": torch.zeros(seqs, 16, dtype=torch.int32),
        "seq_lens": torch.zeros(seqs, dtype=torch.int32),
        "query_start_loc": starts,
        "max_query_len": max(query_lens),
        "max_seq_len": longest,
        "return_lse": return_lse,
    }
    query = torch.zeros(tokens, shape.heads, width, dtype=kind)
    if shape.latent:
        cache = _cache((2, block_size, width), kind, nbytes)
        return MlaDecode(query=query, kv_cache=cache, kv_lora_rank=shape.latent, softmax_scale=width**-0.5, **batch)
    cache = _cache((2, block_size, shape.kv_heads, width), kind, nbytes)
    softmax = Softmax(width**-0.5, softcap=shape.softcap, window=(shape.window, -1))
    return PagedAttention(query=query, key_cache=cache, value_cache=cache, softmax=softmax, **batch)


def launches(call: Call, arch: str) -> list[Launch]:
    """Every launch `call` can lead to on `arch`, for every number of splits that a device of any size may choose."""
    found: list[Launch] = []
    if isinstance(call, PagedAttention):
        found.extend(paged_plan.plan_paged(call, arch=arch, splits=1, crowded=True)[2])
    for plan, longest in _plans(call, arch):
        splits = 1
        while splits <= min(tile_sizes.MAX_SPLITS, max(1, longest // 16)):
            found.extend(plan(splits))
            splits *= 2
    return found


def planned(call: Call, arch: str, splits: int) -> list[Launch]:
    """The launches of this call on `arch` where a decode's context is cut into `splits`."""
    return [launch for plan, _ in _plans(call, arch) for launch in plan(splits)]


def _plans(call: Call, arch: str) -> Iterator[tuple[Callable[[int], list[Launch]], int]]:
    """Planners of the call, from a number of splits to launches, and the longest context each is to cut."""
    if isinstance(call, PagedAttention):
        yield lambda n: paged_plan.plan_paged(call, arch=arch, splits=n)[2], call.max_seq_len
    elif isinstance(call, TreeAttention):
        paged = replace(call.paged, softmax=replace(call.paged.softmax, causal=False))
        yield lambda n: paged_plan.plan_paged(paged, tree_mask=call.tree_mask, arch=arch, splits=n)[2], paged.max_seq_len
    elif isinstance(call, VarlenAttention):
        yield lambda _: paged_plan.plan_varlen(call, arch=arch)[2], 0
    elif isinstance(call, MlaDecode):
        yield lambda n: mla_plan.plan(call, arch=arch, splits=n)[2], call.max_seq_len
    elif isinstance(call, DualChunkAttention):
        yield lambda n: dual_chunk.plan(call, arch=arch, splits=n)[2], call.paged.max_seq_len
    elif isinstance(call, DifferentialAttention):
        yield lambda n: differential.plan(call, arch=arch, splits=n)[1], call.paged.max_seq_len
    else:
        raise UsageError(f"no Triton kernel of attnkit computes {type(call).__name__}")


UNITS = range(14, 257)
"""Multiprocessors (compute units) that a device may have: from the smallest Turing GPU to beyond the largest of today."""


@dataclass(frozen=True)
class BootCalls:
    """What the boot's self-test asks.

    Args:
        level: of the self-test.
        calls_for: for a target, every call with the code that runs it: the target's name, or sm_75-scalar for the backends
            that run on sm_75 without Turing's hook.
    """

    level: str
    calls_for: Callable[[str], Iterable[tuple[str, Call]]]


def exact(call: Call, arch: str) -> list[Launch]:
    """The launches of this very call on a device of `arch` with any of `UNITS` multiprocessors.

    Unlike `launches`, which takes the call for one of its kind in a serving engine, whose batches have any size.
    """
    found: list[Launch] = []
    for plan, _ in _plans(call, arch):
        first = plan(1)
        splits = {1}
        for launch in first:
            if launch.splits_for is not None:
                splits = {launch.splits_for(n) for n in UNITS}
        for number in sorted(splits):
            found.extend(first if number == 1 else plan(number))
    return found


def writes(call: Call) -> list[Launch]:
    """The launches that fill the caches `call` reads."""
    if not isinstance(call, PagedAttention):
        return []
    slots = torch.zeros(2, dtype=torch.int64)
    rows = torch.zeros(2, *call.key_cache.shape[2:], dtype=call.query.dtype)
    return [cache_write.plan_write(rows, call.key_cache, slots, 1.0)]


def variants(arch: str, asked: Iterable[Call]) -> dict[str, Launch]:
    """Distinct launches by variant name (kernel and digest), in order.

    Raises:
        UsageError: the architecture is not one that kernels are compiled for.
    """
    if arch not in TARGETS:
        raise unknown_name("target", arch, TARGETS)
    found: dict[str, Launch] = {}
    for call in asked:
        for launch in (*launches(call, arch), *writes(call)):
            found.setdefault(variant_name(launch), launch)
    return found


def variant_name(launch: Launch) -> str:
    """kernel-digest: equal where the compiler would be asked for the same code."""
    params = {p.name: p for p in launch.kernel.params}
    facts: list[Any] = [sorted(launch.options.items()), launch.num_warps, launch.num_stages]
    facts.extend([name, _fact(value, params[name])] for name, value in sorted(launch.args.items()))
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return f"{launch.kernel.fn.__name__}-{digest}"


def _fact(value: Any, param: Any) -> Any:
    """What the compiler specialises on in one argument."""
    aligns = not (param.do_not_specialize or param.do_not_specialize_on_alignment)
    if isinstance(value, torch.Tensor):
        return [dtype_name(value), aligns and value.data_ptr() % 16 == 0, value.untyped_storage().nbytes() >= TWO_GIB]
    if hasattr(value, "block_shape"):  # a matrix that the copy engine reads
        return [dtype_name(value.base), list(value.block_shape), repr(value.layout)]
    if param.is_constexpr or value is None:
        return value
    if isinstance(value, float):
        return "float"
    one = value == 1 and not param.do_not_specialize
    return ["int", one or (aligns and value % 16 == 0), one, abs(int(value)) < 2**31]
