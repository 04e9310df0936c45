"""The speed floor of the standard level: is the backend anywhere near what this device just showed it can do?

In the same run the device's own read bandwidth (torch's sum over a large tensor) and its matrix rate (torch's matrix product
in the tested dtype) are measured; then one decode and one prefill of the backend. Decode is held against the bandwidth by the
bytes of cache it must read, prefill against the matrix rate by the multiplications it must make.

`SPEED_FLOORS` are no targets. They are far under what an honest provider of their kind should reach, so that only something
badly broken is under them: a fallback to the CPU, an interpreter, a loop over tokens. What was
reached, by report: docs/reference/self-test.md. How fast a backend should be is for the benchmarks.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from attnkit.backends.base import Backend, Capability, Provider
from attnkit.hardware.device import Device
from attnkit.selftest.cases import Case, own_geometry
from attnkit.selftest.results import Speed
from attnkit.spec import AttentionSpec, Dtype, Op

Work: TypeAlias = Literal["decode", "prefill"]

SPEED_FLOORS: Mapping[tuple[str, str], Mapping[Work, float]] = {
    ("gpu", "kernel"): {"decode": 0.01, "prefill": 0.005},
    ("gpu", "composed"): {"decode": 0.001, "prefill": 0.0005},
    ("cpu", "kernel"): {"decode": 0.01, "prefill": 0.01},
    ("cpu", "composed"): {"decode": 0.005, "prefill": 0.005},
}
"""Fraction of the device's own rate by (kind of device, kind of provider; see `Provider.kind`)."""

OPS: Mapping[Op, tuple[Work, ...]] = {"paged": ("decode", "prefill"), "varlen": ("prefill",), "mla_decode": ("decode",)}
"""What is measured of an operation; the others are built on these."""

ENOUGH_S = 1.0
"""Seconds spent on timing one thing, at least one call."""


@dataclass(frozen=True)
class Sizes:
    """How large the work is on a kind of device: large enough to fill it, small enough for seconds."""

    read_bytes: int
    matrix: int
    cache_bytes: int
    decodes: int
    prompts: int
    prompt: int


SIZES: Mapping[str, Sizes] = {
    "gpu": Sizes(read_bytes=1 << 30, matrix=4096, cache_bytes=1 << 29, decodes=32, prompts=4, prompt=2048),
    "cpu": Sizes(read_bytes=1 << 28, matrix=1024, cache_bytes=1 << 26, decodes=4, prompts=1, prompt=512),
}
_PREFERRED: tuple[Dtype, ...] = ("bfloat16", "float16", "float32")
LONGEST = 16384
"""Tokens of one decode's context at most."""


def measure(
    backend: Backend, provider: Provider, device: Device, spec: AttentionSpec | None, where: str, sizes: Sizes | None = None
) -> Iterator[Speed]:
    """The decode and the prefill of one provider, each against its floor; where nothing can be said, one that is skipped.

    Args:
        backend, provider, device, where: as for `run_selftest`.
        spec: a model's need, whose geometry is measured; None takes a usual one that the provider claims.
        sizes: of the work; None takes those of `SIZES`.
    """
    case, why_not = _geometry(provider.capability, device, spec)
    if provider.kind == "interpreter":
        why_not = "an interpreter runs at Python's speed, which says nothing of the kernel"
    elif provider.kind is None:
        why_not = f"no floor is stated for {provider.name}"
    elif where.partition(":")[0] not in ("cpu", "cuda", "xpu"):
        why_not = f"there is no yardstick for {where}"
    if why_not or case is None:
        yield Speed("any", "skipped", why_not)
        return
    kind = "cpu" if where.startswith("cpu") else "gpu"
    sizes = sizes or SIZES[kind]
    for work in OPS[case.op]:
        sized = _sized(case, work, sizes)
        if provider.capability.reject(sized.spec(), device):
            yield Speed(work, "skipped", f"does not serve {work}")
        else:
            yield _held(backend, provider.name, sized, work, where, sizes, SPEED_FLOORS[kind, str(provider.kind)][work])


def _held(backend: Backend, provider: str, case: Case, work: Work, where: str, sizes: Sizes, floor: float) -> Speed:
    """One piece of work of the backend against the device's own rate, measured just before."""
    import torch

    from attnkit.selftest.tensors import build

    try:
        ceiling = _read_rate(where, sizes) if work == "decode" else _matrix_rate(where, case.dtype, sizes)
        call = build(case, where)
        kernel = backend.run(call, provider).kernel  # also compiles what is compiled on first use
        seconds = _seconds(lambda: backend.run(call, provider), where)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return Speed(work, "skipped", f"not enough memory to measure it: {str(error).strip().splitlines()[0][:200]}")
    amount = cache_bytes(case) if work == "decode" else multiplications(case)
    fraction = amount / seconds / ceiling
    reason = ""
    if not fraction >= floor:
        unit, size = ("GB/s", 1e9) if work == "decode" else ("TFLOP/s", 1e12)
        reason = (
            f"{work} reaches {amount / seconds / size:.3g} {unit}, {fraction:.3%} of the {ceiling / size:.3g} {unit} that this "
            f"device just showed; under {floor:.1%} something is badly broken"
        )
    return Speed(work, "fail" if reason else "pass", reason, kernel, seconds, amount / seconds, ceiling, fraction, floor)


def cache_bytes(case: Case) -> int:
    """Bytes of cache that a decode must read: keys and values, or the one latent cache of MLA."""
    width = case.head_dim if case.op == "mla_decode" else case.head_dim + case.head_dim_v
    return sum(total for _, total in case.seqs) * case.kv_heads * width * _itemsize(case)


def multiplications(case: Case) -> int:
    """Floating-point operations of a causal prefill: two per product of q.k and p.v, half of the square."""
    return sum(new * total for new, total in case.seqs) * case.heads * (case.head_dim + case.head_dim_v)


def _itemsize(case: Case) -> int:
    return 1 if case.kv_cache_dtype != "auto" else (4 if case.dtype == "float32" else 2)


def _geometry(capability: Capability, device: Device, spec: AttentionSpec | None) -> tuple[Case | None, str]:
    """A case with the heads and sizes to measure, or why there is none."""
    if spec is not None:
        if spec.op not in OPS:
            return None, f"no floor is stated for {spec.op}; it is built on the operations that have one"
        case = own_geometry(spec.op, spec.dtype, capability, device, spec)
        return (None, "the model's need is refused") if capability.reject(spec, device) or case is None else (case, "")
    for op in OPS:
        for dtype in _PREFERRED:
            small = own_geometry(op, dtype, capability, device, None)
            if small is None:
                continue
            usual = replace(small, heads=32, kv_heads=8, head_dim=128, head_dim_v=128)
            fits = op != "mla_decode" and not capability.reject(replace(usual.spec(), phases=frozenset()), device)
            return (usual if fits else small), ""
    return None, f"no floor is stated for {', '.join(sorted(capability.ops))}; they are built on operations that have one"


def _sized(case: Case, work: Work, sizes: Sizes) -> Case:
    """The case with as many tokens as the device wants."""
    if work == "prefill":
        return replace(case, name="speed-prefill", seqs=((sizes.prompt, sizes.prompt),) * sizes.prompts)
    a_token = cache_bytes(replace(case, seqs=((1, 1),)))
    length = min(LONGEST, max(64, sizes.cache_bytes // sizes.decodes // a_token))
    return replace(case, name="speed-decode", seqs=((1, length),) * sizes.decodes)


def _read_rate(where: str, sizes: Sizes) -> float:
    """Bytes a second that the device reads."""
    import torch

    data = torch.ones(sizes.read_bytes // 4, dtype=torch.float32, device=where)
    data.sum()
    return sizes.read_bytes / _seconds(data.sum, where)


def _matrix_rate(where: str, dtype: str, sizes: Sizes) -> float:
    """Floating-point operations a second of the device's matrix product in `dtype`."""
    import torch

    square = torch.ones(sizes.matrix, sizes.matrix, dtype=getattr(torch, dtype), device=where)
    torch.mm(square, square)
    return 2.0 * sizes.matrix**3 / _seconds(lambda: torch.mm(square, square), where)


def _seconds(run: Callable[[], Any], where: str) -> float:
    """Median seconds of a call, each waited for; the caller has run it once before."""
    wait = _waiter(where)
    wait()
    taken: list[float] = []
    while sum(taken) < ENOUGH_S and len(taken) < 20:
        started = time.perf_counter()
        run()
        wait()
        taken.append(max(time.perf_counter() - started, math.ulp(1.0)))
    return statistics.median(taken)


def _waiter(where: str) -> Callable[[], None]:
    import torch

    if where.startswith("cuda"):
        return lambda: torch.cuda.synchronize(where)
    if where.startswith("xpu"):
        return lambda: torch.xpu.synchronize(where)
    return lambda: None
