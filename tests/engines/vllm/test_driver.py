"""vLLM's CPU_ATTN under attnkit's self-test, through its real implementation, builder and cache."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from typing import Any

import pytest

pytestmark = pytest.mark.engine

torch = pytest.importorskip("torch", reason="torch is not installed here")
vllm = pytest.importorskip("vllm", reason="vLLM is not installed here")

from attnkit.engines.vllm import driver as vllm_driver  # noqa: E402
from attnkit.errors import UnsupportedError, UsageError  # noqa: E402
from attnkit.hardware.device import Device  # noqa: E402
from attnkit.selftest.reference import reference  # noqa: E402
from attnkit.selftest.results import CaseResult  # noqa: E402
from attnkit.spec import AttentionSpec, PagedAttention, Softmax  # noqa: E402

DEVICE = Device(vendor="cpu", kind="cpu", name="CPU", arch=platform.machine())
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2 * 2**-8, torch.float16: 2 * 2**-11}
"""Of the largest output: twice its rounding. A processor without bfloat16 dot products rounds the probabilities, too."""

if not vllm.__version__.startswith("0.32."):
    pytest.skip(f"written for vLLM 0.32 on CPU; this is {vllm.__version__}", allow_module_level=True)


def call(
    lens: list[int],
    new: list[int],
    *,
    heads: int = 8,
    kv: int = 2,
    d: int = 64,
    dtype: Any = torch.float32,
    page: int = 32,
    **how: Any,
) -> PagedAttention:
    """A batch with a permuted block table and NaN wherever no sequence wrote."""
    draw = torch.Generator().manual_seed(len(lens) + d)
    pages = [-(-n // page) for n in lens]
    order = torch.randperm(sum(pages) + 2, generator=draw)
    caches = [torch.randn(sum(pages) + 2, page, kv, d, generator=draw) for _ in "kv"]
    table = torch.zeros(len(lens), max(pages), dtype=torch.int32)
    unused = torch.ones(sum(pages) + 2, page, dtype=torch.bool)
    taken = 0
    for row, (count, length) in enumerate(zip(pages, lens, strict=True)):
        table[row, :count] = order[taken : taken + count]
        taken += count
        for position in range(length):
            unused[table[row, position // page], position % page] = False
    key, value = (cache.masked_fill(unused[..., None, None], float("nan")).to(dtype) for cache in caches)
    starts = torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32)
    query = torch.randn(sum(new), heads, d, generator=draw).to(dtype)
    lengths = torch.tensor(lens, dtype=torch.int32)
    return PagedAttention(query, key, value, table, lengths, starts, max(new), max(lens), Softmax(d**-0.5, **how))


def error(batch: PagedAttention) -> float:
    """Largest error against float64, as a part of the largest output."""
    output = vllm_driver.engine_backend("CPU_ATTN").run(replace(batch, out=torch.full_like(batch.query, float("nan"))))
    assert output.kernel.startswith("vllm.CPUAttentionBackendImpl[")
    oracle = reference(batch).out
    return float((output.out.double() - oracle).abs().max() / oracle.abs().max())


BATCHES = {
    "decode": ([100, 33, 1], [1, 1, 1]),
    "prefill": ([63, 127], [63, 127]),
    "chunked": ([200, 90], [50, 31]),
    "mixed": ([200, 64, 7, 300], [1, 64, 7, 40]),
    "a sequence without new tokens": ([200, 40, 7], [1, 0, 7]),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_phase(batch: str, dtype: Any) -> None:
    assert error(call(*BATCHES[batch], dtype=dtype)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("heads", "kv", "d", "page"), [(4, 4, 80, 32), (8, 1, 128, 64), (16, 2, 256, 128)])
def test_geometries(heads: int, kv: int, d: int, page: int) -> None:
    assert error(call(*BATCHES["mixed"], heads=heads, kv=kv, d=d, page=page)) < TOLERANCE[torch.float32]


FEATURES: dict[str, dict[str, Any]] = {
    "window": {"window": (31, -1)},
    "softcap": {"softcap": 20.0},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.1, 0.05, 0.5, 0.25, 0.1, 0.05])},
    "sinks": {"sinks": torch.linspace(-1.0, 3.0, 8)},
    "non_causal": {"causal": False},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_features(feature: str) -> None:
    batch = call(*BATCHES["mixed"], **FEATURES[feature])
    assert error(batch) < TOLERANCE[torch.float32]
    plain = replace(batch, softmax=Softmax(batch.softmax.softmax_scale))
    assert (reference(batch).out - reference(plain).out).abs().max() > 0.01, "the feature must matter for the test to see it"


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_float8_caches_hold_the_bytes_of_the_call(stored: Any) -> None:
    claimed = vllm_driver.engine_backend("CPU_ATTN").providers[0].capability.kv_cache_dtypes
    if "fp8_e4m3" not in claimed:
        pytest.skip("vLLM's float8 caches need AVX-512 or AMX, which this processor lacks")
    plain = call(*BATCHES["mixed"], dtype=torch.bfloat16)
    key, value = ((c.float().nan_to_num() / 0.05).to(stored) for c in (plain.key_cache, plain.value_cache))
    batch = replace(plain, key_cache=key, value_cache=value, k_scale=0.05, v_scale=0.05)
    assert error(batch) < TOLERANCE[torch.bfloat16]


def test_a_wrong_scale_is_seen() -> None:
    batch = call(*BATCHES["mixed"])
    wrong = replace(batch, softmax=Softmax(batch.softmax.softmax_scale * 1.02))
    output = vllm_driver.engine_backend("CPU_ATTN").run(wrong).out.double()
    assert (output - reference(batch).out).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_self_test_passes_cpu_attn_with_a_model_s_geometry(dtype: Any) -> None:
    seen: list[CaseResult] = []
    spec = AttentionSpec(dtype=dtype, num_heads=4, num_kv_heads=2, head_dim=64, block_size=16)
    verdict = vllm_driver.validate_engine_backend("cpu_attn", spec, "quick", device=DEVICE, on_case=seen.append)
    assert verdict.outcome == "pass", [(c.case, c.reason) for c in verdict.cases if c.outcome != "pass"]
    assert verdict.backend == "vllm:CPU_ATTN"
    assert verdict.provider == f"vllm {vllm.__version__}"
    assert len(seen) == len(verdict.cases) >= 5
    assert all("page128" in case.case for case in seen), "vLLM's own block size where it cannot use the one asked"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_self_test_passes_cpu_mla(dtype: Any) -> None:
    need = AttentionSpec("mla_decode", dtype, num_heads=16, num_kv_heads=1, head_dim=576, head_dim_v=512, block_size=64)
    verdict = vllm_driver.validate_engine_backend("CPU_MLA", need, "quick", device=DEVICE)
    assert verdict.outcome == "pass", [(c.case, c.reason) for c in verdict.cases if c.outcome != "pass"]
    assert {case.kernel for case in verdict.cases} == {"vllm.CPUMLAImpl"}
    assert all("page16" in case.case for case in verdict.cases)


def test_the_self_test_fails_cpu_mla_with_a_planted_fault() -> None:
    need = AttentionSpec("mla_decode", "bfloat16", num_heads=16, num_kv_heads=1, head_dim=576, head_dim_v=512, block_size=16)
    assert vllm_driver.validate_engine_backend("CPU_MLA", need, "quick", device=DEVICE, fault="scale").outcome == "fail"


def test_the_self_test_fails_cpu_attn_with_a_planted_fault() -> None:
    spec = AttentionSpec(dtype="bfloat16", num_heads=4, num_kv_heads=2, head_dim=64, block_size=32)
    verdict = vllm_driver.validate_engine_backend("CPU_ATTN", spec, "quick", device=DEVICE, fault="scale")
    assert verdict.outcome == "fail"


def test_a_moved_interface_is_inconclusive_and_says_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    monkeypatch.delattr(CPUAttentionBackendImpl, "do_kv_cache_update")
    spec = AttentionSpec(dtype="float32", num_heads=4, num_kv_heads=2, head_dim=64, block_size=32)
    verdict = vllm_driver.validate_engine_backend("CPU_ATTN", spec, "quick", device=DEVICE)
    assert verdict.outcome == "inconclusive"
    assert any("do_kv_cache_update" in case.reason for case in verdict.cases)


def test_a_failure_under_an_untried_version_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    import attnkit.selftest

    monkeypatch.setitem(vllm_driver.TESTED, "cpu", ">=0.1,<0.2")
    spec = AttentionSpec(dtype="bfloat16", num_heads=4, num_kv_heads=2, head_dim=64, block_size=32)
    real = attnkit.selftest.run_selftest
    monkeypatch.setattr(attnkit.selftest, "run_selftest", lambda *a, **k: real(*a, **{**k, "fault": "scale"}))
    verdict = vllm_driver.validate_engine_backend("CPU_ATTN", spec, "quick", device=DEVICE)
    assert verdict.outcome == "inconclusive"
    assert any("may be the driver's" in text for text in verdict.unseen)


@pytest.mark.parametrize(
    ("version", "platform_", "known"), [("0.32.0", "cpu", True), ("0.33.0", "cpu", False), ("0.25.1", "cuda", True)]
)
def test_the_versions_that_were_tried(version: str, platform_: str, known: bool) -> None:
    assert vllm_driver.is_tested(version, platform_) is known


def test_what_the_class_does_not_claim_is_refused() -> None:
    backend = vllm_driver.engine_backend("CPU_ATTN")
    with pytest.raises(UnsupportedError, match="head_dim 72"):
        backend.run(call([40], [1], d=72))
    with pytest.raises(UnsupportedError, match="block size 16"):
        backend.run(call([40], [1], page=16))
    with pytest.raises(UnsupportedError, match="window"):
        backend.run(call([40], [4], window=(8, 8), causal=False))


def test_an_unknown_name_lists_what_this_vllm_has() -> None:
    with pytest.raises(UsageError, match="CPU_ATTN"):
        vllm_driver.engine_backend("CPU_ATTEN")


@pytest.mark.parametrize(
    ("named", "takes", "some", "others"),
    [
        ([32, 64], lambda _: False, (32, 64), (48, 128)),
        ([], lambda d: d % 8 == 0 and d <= 256, (8, 80, 256), (12, 264)),
        ([], lambda d: d >= 32, (32, 33, 512), (31, 513)),
        ([], lambda d: d in (64, 96, 256), (64, 96, 256), (128, 32)),
        ([], lambda d: d == 128, (128,), (64, 256)),
    ],
)
def test_head_sizes_are_asked_where_the_class_names_none(named: Any, takes: Any, some: Any, others: Any) -> None:
    backend: Any = type("Backend", (), {"get_supported_head_sizes": lambda: named, "supports_head_size": staticmethod(takes)})
    dims = vllm_driver._head_dims(backend)
    assert all(dims.accepts(d, d) for d in some)
    assert not any(dims.accepts(d, d) for d in others)


def test_a_float8_cache_of_mla_is_claimed_only_where_queries_stay_exact() -> None:
    assert vllm_driver._refused_caches("FLASHMLA", mla=True) == {"fp8_e4m3", "fp8_e5m2"}
    assert not vllm_driver._refused_caches("TRITON_MLA", mla=True)
    assert not vllm_driver._refused_caches("TRITON_ATTN", mla=False)


def test_the_command_tests_vllm_s_own(tmp_path: Any) -> None:
    from attnkit.isolation.check import CheckOptions, run_checks

    def shows_nothing(*_: Any) -> None:
        raise AssertionError("a JSON file was asked for")

    report = tmp_path / "report.json"
    options = CheckOptions(backend="vllm:cpu_attn", level="quick", json_file=report)
    assert run_checks(options, shows_nothing, shows_nothing) == 0
    (verdict,) = json.loads(report.read_text(encoding="utf-8"))["verdicts"]
    assert (verdict["backend"], verdict["provider"], verdict["outcome"]) == (
        "vllm:CPU_ATTN",
        f"vllm {vllm.__version__}",
        "pass",
    )
    with pytest.raises(UsageError, match="NO_SUCH"):
        run_checks(replace(options, backend="vllm:no_such"), shows_nothing, shows_nothing)
