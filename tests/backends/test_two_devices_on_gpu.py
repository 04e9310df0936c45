"""A call runs on the device of its tensors, whichever is current: every backend, eagerly and as a captured graph."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from attnkit import api
from attnkit.backends import registry
from attnkit.backends.base import Backend, Provider, missing
from attnkit.backends.torch_device import device_of
from attnkit.selftest import run_selftest
from attnkit.selftest.cases import Case, cases
from attnkit.selftest.tensors import build
from attnkit.spec import AttentionOutput, AttentionSpec, Call

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
NEED = AttentionSpec(dtype="float16", num_heads=4, num_kv_heads=2, head_dim=64)
RUNNABLE = [
    pytest.param(b, p, id=f"{b.name}-{p.name}") for b in registry.all_backends() for p in b.providers if p.kind != "interpreter"
]


@pytest.fixture(autouse=True)
def first_is_current() -> Iterator[None]:
    """Device 0 is current before and after each test."""
    torch.cuda.set_device(0)
    yield
    assert torch.cuda.current_device() == 0


def questions(backend: Backend, provider: Provider) -> list[Case]:
    """A case of each operation that the provider claims here, in sixteen bits where it has them; skips where it cannot run."""
    device = device_of(torch.empty(0, device="cuda:0"))
    reasons = [*provider.capability.device_reasons(device), *missing(provider, backend.installed())]
    if reasons:
        pytest.skip("; ".join(reason.message for reason in reasons))
    found: dict[str, Case] = {}
    for case in cases("quick", provider.capability, device, None):
        found.setdefault(f"{case.op} {case.phase()}", case)
    assert found
    return list(found.values())


def agree(found: AttentionOutput, expected: AttentionOutput, provider: Provider) -> None:
    """The same kernel gave the same on the other device; the same bits where that is claimed."""
    assert found.kernel == expected.kernel
    if provider.capability.deterministic:
        assert torch.equal(found.out.cpu(), expected.out.cpu())
    else:
        torch.testing.assert_close(found.out.cpu(), expected.out.cpu())


@pytest.mark.parametrize(("backend", "provider"), RUNNABLE)
def test_a_backend_runs_on_the_device_of_its_tensors(backend: Backend, provider: Provider) -> None:
    for case in questions(backend, provider):
        first, second = (backend.run(build(case, f"cuda:{index}"), provider.name) for index in (0, 1))
        assert second.out.device == torch.device("cuda:1"), case.name
        assert torch.cuda.current_device() == 0, case.name
        agree(second, first, provider)


@pytest.mark.parametrize(("backend", "provider"), RUNNABLE)
def test_a_graph_is_captured_and_replayed_on_the_device_of_its_tensors(backend: Backend, provider: Provider) -> None:
    if not provider.capability.graphs:
        pytest.skip(f"{provider.name} does not claim graph capture")
    for case in questions(backend, provider):
        first = backend.run(build(case, "cuda:0"), provider.name)
        agree(replayed(backend, provider, build(case, "cuda:1")), first, provider)


def replayed(backend: Backend, provider: Provider, call: Call) -> AttentionOutput:
    """What a graph captured on the call's device, device 0 being current around it, writes over NaN."""
    device = call.batch.query.device
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        backend.run(call, provider.name)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = backend.run(call, provider.name)
    assert torch.cuda.current_device() == 0
    result.out.fill_(math.nan)
    graph.replay()
    torch.cuda.synchronize(device)
    return result


def test_the_chosen_backend_runs_there_too() -> None:
    device = device_of(torch.empty(0, device="cuda:1"))
    capability = registry.get("TORCH_SDPA").providers[-1].capability
    case = next(c for c in cases("quick", capability, device, NEED) if c.name == "mixed")
    first, second = (api.run(build(case, f"cuda:{index}")) for index in (0, 1))
    assert (second.out.device, second.kernel) == (torch.device("cuda:1"), first.kernel)
    torch.testing.assert_close(second.out.cpu(), first.out.cpu())


@pytest.mark.parametrize("cache_dtype", [torch.float16, torch.float8_e4m3fn])
def test_keys_and_values_are_written_where_the_cache_is(cache_dtype: torch.dtype) -> None:
    written = []
    for index in (0, 1):
        draw = torch.Generator().manual_seed(0)
        key, value = (torch.randn(5, 2, 64, generator=draw).half().to(f"cuda:{index}") for _ in range(2))
        caches = [torch.zeros(3, 16, 2, 64, dtype=cache_dtype, device=f"cuda:{index}") for _ in range(2)]
        slots = torch.tensor([0, 17, -1, 40, 3], device=f"cuda:{index}")
        api.write_kv_cache(key, value, *caches, slots)
        written.append([cache.float().cpu() for cache in caches])
    assert written[0][0].any()
    for ours, theirs in zip(*written, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["TRITON_ATTN", "TORCH_SDPA"])
def test_the_self_test_passes_on_the_second_device(name: str) -> None:
    device = device_of(torch.empty(0, device="cuda:1"))
    verdict = run_selftest(registry.get(name), device, NEED, level="quick", torch_device="cuda:1")
    assert verdict.outcome == "pass", [case for case in verdict.cases if case.outcome != "pass"]
