"""vLLM's towers and encoders as backends: what is asked of them; with vLLM here, the layers themselves."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest

from attnkit.engines.vllm.driver import PREFIX, engine_backend, validate_engine_backend
from attnkit.engines.vllm.encoder import ENCODER
from attnkit.engines.vllm.tower import LAYER, TOWER, USUAL
from attnkit.hardware.device import Device
from attnkit.selftest.cases import cases
from attnkit.selftest.results import LEVELS

CPU = Device(vendor="cpu", kind="cpu", name="A CPU", arch="x86_64")
NAME = f"{PREFIX}{TOWER}TORCH_SDPA"


@pytest.mark.parametrize("level", LEVELS)
def test_a_tower_is_asked_about_its_own_tokens_without_a_causal_mask(level) -> None:
    backend = engine_backend(NAME)
    assert backend.name == NAME
    asked = cases(level, backend.providers[0].capability, CPU, replace(USUAL, head_dim=72))
    assert {"prefill", "encoder"} <= {case.name for case in asked}
    assert all(new == total for case in asked for new, total in case.seqs)
    assert not any(case.causal for case in asked)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
@pytest.mark.parametrize(
    ("name", "head_dim", "kernel"),
    [
        (NAME, 72, "vllm.MMEncoderAttention[TORCH_SDPA]"),
        (f"{PREFIX}{ENCODER}CPU_ATTN", 64, "vllm.EncoderOnlyAttention[CPU_ATTN]"),
    ],
)
def test_vllms_own_layer_is_driven(name: str, head_dim: int, kernel: str) -> None:
    spec = replace(USUAL, dtype="float32", num_heads=4, num_kv_heads=4, head_dim=head_dim)
    verdict = validate_engine_backend(name, spec, "quick", device=CPU)
    assert (verdict.backend, verdict.outcome) == (name, "pass")
    assert {case.kernel for case in verdict.cases} == {kernel}
    assert validate_engine_backend(name, spec, "quick", device=CPU, fault="scale").outcome == "fail"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
def test_what_the_platform_has_not_is_not_judged() -> None:
    verdict = validate_engine_backend(f"{PREFIX}{TOWER}FLASH_ATTN", USUAL, "quick", device=CPU)
    assert verdict.outcome == "inconclusive", "a CPU has none"
    assert verdict.implementation == (LAYER,)
