"""The speed floor: a backend made really slow fails it with a reason, the real one does not, others are skipped with theirs."""

from __future__ import annotations

import platform
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from attnkit.backends import registry
from attnkit.backends.base import Backend
from attnkit.hardware.device import Device
from attnkit.selftest import run_selftest
from attnkit.selftest import speed as speed_floor
from attnkit.selftest.cases import Case
from attnkit.spec import AttentionOutput, AttentionSpec, PagedAttention

CPU = Device("cpu", "cpu", "CPU", platform.machine())
NEED = AttentionSpec(dtype="float32", num_heads=4, num_kv_heads=2, head_dim=64)
SMALL = speed_floor.Sizes(read_bytes=1 << 26, matrix=512, cache_bytes=1 << 22, decodes=2, prompts=1, prompt=192)
REAL = registry.get("TORCH_SDPA")
PROVIDER = next(p for p in REAL.providers if p.name == "torch")


def looping() -> Backend:
    """TORCH_SDPA asked for one head of one token at a time: right, and slow."""

    def run(call: PagedAttention) -> AttentionOutput:
        whole = PROVIDER.run(call)
        for seq, (begin, end) in enumerate(pairwise(call.query_start_loc.tolist())):
            for token in range(begin, end):
                for head in range(call.query.shape[1]):
                    whole.out[token, head] = one(call, seq, token, head, end)
        return whole

    def one(call: PagedAttention, seq: int, token: int, head: int, end: int) -> torch.Tensor:
        length = call.seq_lens[seq] - (end - 1 - token)
        single = replace(
            call,
            query=call.query[token : token + 1],
            block_table=call.block_table[seq : seq + 1],
            seq_lens=length[None],
            query_start_loc=torch.tensor([0, 1], dtype=torch.int32),
            max_query_len=1,
            max_seq_len=int(length),
            out=None,
        )
        return PROVIDER.run(single).out[0, head]

    return replace(REAL, providers=(replace(PROVIDER, run=run),))


def speeds(backend: Backend, sizes: speed_floor.Sizes = SMALL) -> dict[str, Any]:
    found = speed_floor.measure(backend, PROVIDER, CPU, NEED, "cpu", sizes)
    return {speed.work: speed for speed in found}


def test_the_real_backend_is_over_the_floor() -> None:
    found = speeds(REAL)
    assert set(found) == {"decode", "prefill"}
    for speed in found.values():
        assert speed.outcome == "pass" and speed.kernel == "scaled_dot_product_attention", speed
        assert speed.fraction == pytest.approx(speed.rate / speed.ceiling)
        assert speed.floor == speed_floor.SPEED_FLOORS["cpu", "composed"][speed.work]


def test_a_backend_that_loops_fails_and_says_how_far_off_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_floor, "ENOUGH_S", 0.01)  # one call is enough of this
    found = speeds(looping(), replace(SMALL, cache_bytes=1 << 17, prompt=48))
    for work, speed in found.items():
        assert speed.outcome == "fail", speed
        assert speed.fraction < speed.floor
        assert speed.reason.startswith(f"{work} reaches") and "this device just showed" in speed.reason


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"kind": "interpreter"}, "cpu", "an interpreter runs at Python's speed"),
        ({"kind": None}, "cpu", "no floor is stated for torch"),
        ({}, "tpu", "no yardstick for tpu"),
    ],
)
def test_where_nothing_can_be_said_it_is_skipped_with_the_reason(changes: dict[str, Any], where: str, words: str) -> None:
    (speed,) = speed_floor.measure(REAL, replace(PROVIDER, **changes), CPU, NEED, where, SMALL)
    assert speed.outcome == "skipped" and words in speed.reason and speed.fraction is None


def test_a_need_that_is_refused_is_not_measured() -> None:
    (speed,) = speed_floor.measure(REAL, PROVIDER, CPU, replace(NEED, features=frozenset({"softcap"})), "cpu", SMALL)
    assert speed.outcome == "skipped" and "refused" in speed.reason


def test_every_provider_that_has_a_floor_has_it_for_its_device() -> None:
    for backend in registry.all_backends():
        for provider in backend.providers:
            kinds = {"cpu" if vendor == "cpu" else "gpu" for vendor in provider.capability.archs}
            if backend.name == "NO_ATTENTION" or provider.kind is None:
                assert (backend.name, provider.name) in {("NO_ATTENTION", "attnkit"), ("PALLAS", "attnkit")}
            elif provider.kind != "interpreter":
                assert all((kind, provider.kind) in speed_floor.SPEED_FLOORS for kind in kinds)


def test_the_work_is_counted() -> None:
    case = Case("x", "", "paged", "bfloat16", 32, 8, 128, 128, 16, ((1, 1000), (1, 24)))
    assert speed_floor.cache_bytes(case) == 2 * 1024 * 8 * 128 * 2
    assert speed_floor.cache_bytes(replace(case, kv_cache_dtype="fp8_e4m3")) == 2 * 1024 * 8 * 128
    latent = replace(case, op="mla_decode", kv_heads=1, head_dim=576, head_dim_v=512)
    assert speed_floor.cache_bytes(latent) == 1024 * 576 * 2
    prefill = replace(case, seqs=((100, 100),))
    assert speed_floor.multiplications(prefill) == 4 * 100 * 100 * 32 * 128 // 2


def test_the_quick_level_measures_nothing() -> None:
    assert run_selftest(REAL, CPU, NEED, level="quick").speed == ()


def test_a_speed_under_the_floor_fails_the_verdict_and_is_among_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speed_floor.SIZES, "cpu", SMALL)  # type: ignore[misc]
    monkeypatch.setattr("attnkit.selftest.runner.cases", lambda *_: ())
    verdict = run_selftest(REAL, CPU, NEED, level="standard", provider="torch")
    assert [case.case for case in verdict.cases] == ["speed-decode", "speed-prefill"]
    monkeypatch.setattr(speed_floor, "SPEED_FLOORS", {("cpu", "composed"): {"decode": 1e9, "prefill": 0.0}})
    verdict = run_selftest(REAL, CPU, NEED, level="standard", provider="torch")
    assert verdict.outcome == "fail"
    assert [case.outcome for case in verdict.cases] == ["fail", "pass"]
    assert [speed.outcome for speed in verdict.speed] == ["fail", "pass"]
