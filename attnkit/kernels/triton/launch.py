"""What every launcher here shares: a launch as a value, the device's name, and float8 caches.

A launcher's planner returns `Launch` values; running them is one step more. Compiling ahead uses the same planners with
stand-in tensors and calls `Launch.warmup`, so that the compiled variants are exactly those that a node will ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from attnkit.errors import UnsupportedError
from attnkit.hardware.torch_names import from_torch
from attnkit.kernels.triton import tiles
from attnkit.kernels.triton.keys import hash_callees_first
from attnkit.spec import MlaDecode, PagedAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Args:
        kernel: the `triton.jit` function.
        grid: programs in each direction.
        args: every argument by name, compile-time constants included.
        num_warps, num_stages: compile options.
        splits_for: where keys are split: how many splits the planner takes for a number of multiprocessors.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    splits_for: Callable[[int], int] | None = field(default=None, compare=False, repr=False)

    def run(self) -> None:
        """Launch it on the current stream."""
        hash_callees_first(self.kernel)
        self.kernel[self.grid](**self.args, num_warps=self.num_warps, num_stages=self.num_stages, **self.options)

    def warmup(self) -> Any:
        """Compile it for the active target without running it; tensors may be `triton.runtime.jit.MockTensor`."""
        hash_callees_first(self.kernel)
        return self.kernel.warmup(
            **self.args, grid=self.grid, num_warps=self.num_warps, num_stages=self.num_stages, **self.options
        )


Result: TypeAlias = "tuple[Tensor, Tensor | None, str]"
"""out, lse where asked for, and the kernels that ran."""
Plan: TypeAlias = "tuple[Tensor, Tensor | None, list[Launch], str]"
"""Launches, where their results will be, and the kernels' names."""


def run_all(launches: Sequence[Launch]) -> None:
    """Run launches in order."""
    for launch in launches:
        launch.run()


def run_plan(plan: Plan) -> Result:
    """Run the launches of a plan."""
    out, lse, launches, name = plan
    run_all(launches)
    return out, lse, name


@dataclass(frozen=True)
class Target:
    """Where a kernel is to run: architecture name (sm_90, gfx942, xe…, interpreter) and its number of multiprocessors."""

    arch: str
    units: int

    @property
    def interpret(self) -> bool:
        """True where the kernels run in Triton's interpreter on the CPU."""
        return self.arch == "interpreter"


@cache
def _target(kind: str, index: int) -> Target:
    if kind == "cpu":
        return Target("interpreter", 8)
    if kind not in ("cuda", "xpu"):
        raise UnsupportedError(f"the Triton kernels run on CUDA, ROCm and XPU devices, not on {kind}")
    found = from_torch(kind, index, getattr(torch, kind).get_device_properties(index), hip=bool(torch.version.hip))
    return Target("xe" if kind == "xpu" else found.arch, found.units or 64)


def target_of(tensor: Tensor, arch: str | None = None) -> Target:
    """The target of a tensor's device; `arch` overrides the name.

    A device of sm_75 is "sm_75-scalar", what stock Triton compiles for it; "sm_75", with tensor cores, must be asked for.
    """
    found = _target(tensor.device.type, tensor.device.index or 0)
    if arch is None:
        arch = "sm_75-scalar" if found.arch == "sm_75" else found.arch
    return Target(arch, found.units)


@dataclass(frozen=True)
class Cache:
    """A key or value cache as a kernel takes it: float8 where the target has no such type goes in as bytes."""

    data: Tensor
    fp8: int


_BITS = {
    "float8_e4m3fn": tiles.FP8_E4M3_BITS.value,
    "float8_e4m3fnuz": tiles.FP8_E4M3FNUZ_BITS.value,
    "float8_e5m2": tiles.FP8_E5M2_BITS.value,
    "float8_e5m2fnuz": tiles.FP8_E5M2FNUZ_BITS.value,
}


def cache_of(data: Tensor, target: Target) -> Cache:
    """Wrap a cache tensor; float8 is converted by the hardware where it can (sm_89 on), by bit moves elsewhere."""
    name = str(data.dtype).removeprefix("torch.")
    if name not in _BITS:
        return Cache(data, tiles.FP8_NONE.value)
    native = target.arch.startswith("sm_") and int(target.arch[3:].partition("-")[0]) >= 89 and not name.endswith("fnuz")
    return Cache(data, tiles.FP8_NATIVE.value) if native else Cache(data.view(torch.uint8), _BITS[name])


def cache_args(key: Cache, value: Cache) -> dict[str, Any]:
    """The arguments by which the kernels address a paged cache [num_blocks, block_size, num_kv_heads, head_dim]."""
    return {
        "key": key.data,
        "value": value.data,
        "stride_k_block": key.data.stride(0),
        "stride_k_token": key.data.stride(1),
        "stride_k_head": key.data.stride(2),
        "stride_v_block": value.data.stride(0),
        "stride_v_token": value.data.stride(1),
        "stride_v_head": value.data.stride(2),
        "SAME_STRIDES": key.data.stride()[:2] == value.data.stride()[:2],
        "FP8": key.fp8,
    }


def query_args(query: Tensor) -> dict[str, Any]:
    """The arguments by which the kernels address queries [num_tokens, num_heads, head_dim]."""
    return {"query": query, "stride_q_token": query.stride(0), "stride_q_head": query.stride(1)}


def batch_args(call: PagedAttention | MlaDecode) -> dict[str, Any]:
    """The arguments by which the kernels find the sequences of a batch and their blocks."""
    table = call.block_table
    return {
        "seq_lens": call.seq_lens,
        "query_start_loc": call.query_start_loc,
        "table": table,
        "stride_lens": step(call.seq_lens),
        "stride_starts": step(call.query_start_loc),
        "stride_table": table.stride(0),
        "stride_page": step(table, 1),
    }


def step(tensor: Tensor | None, dim: int = 0) -> int:
    """The stride of a dimension; 1, for which code is compiled, where there is nothing to step over."""
    return 1 if tensor is None or tensor.shape[dim] <= 1 else tensor.stride(dim)


GRID_Z = (1 << 16) - 1
"""Programs in the last direction of a CUDA grid."""


def in_parts(launch: Launch) -> list[Launch]:
    """A launch with a sequence a program in the last direction, cut where those are more than a grid takes."""
    num_seqs = launch.grid[2]
    if num_seqs <= GRID_Z:
        return [launch]
    found = []
    for first in range(0, num_seqs, GRID_Z):
        taken = {name: launch.args[name][first:] for name in ("seq_lens", "query_start_loc", "table")}
        grid = (*launch.grid[:2], min(GRID_Z, num_seqs - first))
        found.append(replace(launch, grid=grid, args={**launch.args, **taken}))
    return found


def result_args(out: Tensor, lse: Tensor | None) -> dict[str, Any]:
    """The arguments by which the kernels address results [num_tokens, num_heads, head_dim], or splits of those."""
    return {"out": out, "lse": lse, "stride_o_token": out.stride(-3), "stride_o_head": out.stride(-2)}


def pairs_of(data: Tensor, target: Target) -> Cache | None:
    """A float8 cache as uint16, two neighbouring columns an element, for `warp_decode`; None where it cannot be so read."""
    name = str(data.dtype).removeprefix("torch.")
    odd = any(number % 2 for number in (data.shape[-1], data.storage_offset(), *data.stride()[:-1]))
    if name not in _BITS or odd or data.stride(-1) != 1:
        return None
    by_instruction = {"float8_e4m3fn": tiles.FP8_E4M3_PAIRS.value, "float8_e5m2": tiles.FP8_E5M2_PAIRS.value}
    code = _BITS[name]
    if target.arch.startswith("sm_") and not tiles.INTERPRET.value:
        code = by_instruction.get(name, code)
    return Cache(data.view(torch.uint16), code)


def outputs(query: Tensor, out: Tensor | None, return_lse: bool, width: int) -> tuple[Tensor, Tensor | None]:
    """`out`, or a new one [num_tokens, heads, width] in the query's dtype; lse [num_tokens, heads] float32, or None."""
    if out is None:
        out = torch.empty(*query.shape[:2], width, dtype=query.dtype, device=query.device)
    lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device) if return_lse else None
    return out, lse


def padded(width: int) -> int:
    """The next power of two, at least 16: what `tl.arange` and `tl.dot` take."""
    return max(16, 1 << (width - 1).bit_length())


def require_rows(**tensors: Tensor) -> None:
    """Refuse a tensor whose last dimension is not contiguous.

    Raises:
        UnsupportedError: names the tensor and its strides.
    """
    for name, tensor in tensors.items():
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise UnsupportedError(f"{name}: the last dimension must be contiguous; strides are {tuple(tensor.stride())}")
