"""Which implementation has to be proven and which name the log must show, before a vLLM is started."""

from __future__ import annotations

import pytest

from attnkit.engines.vllm.expected import Expected, expected
from attnkit.engines.vllm.names import resolve
from attnkit.errors import UsageError


def test_on_cpu_what_serves_is_cpu_attn_whatever_was_chosen() -> None:
    now = resolve("TORCH_SDPA", "0.32.0", "cpu").now
    assert expected(now, "cpu", {}) == Expected("vllm:CPU_ATTN", "CPU_ATTN")


def test_the_plugin_is_proven_in_the_place_it_takes() -> None:
    variables = {"ATTNKIT_VLLM_BACKEND": "sdpa"}
    assert expected("CPU_ATTN", "cpu", variables) == Expected("vllm:CPU_ATTN", "TORCH_SDPA")
    assert expected("FLASH_ATTN", "cuda", variables) == Expected("vllm:CUSTOM", "TORCH_SDPA")


def test_elsewhere_it_is_the_backend_that_was_handed_over() -> None:
    assert expected("FLASH_ATTN", "cuda", {"ATTNKIT_VLLM_BACKEND": " "}) == Expected("vllm:FLASH_ATTN", "FLASH_ATTN")


@pytest.mark.parametrize(("amx", "name"), [(False, "CPU_MLA"), (True, "AMX_MLA")])
def test_mla_layers_have_backends_of_their_own_on_cpu(amx: bool, name: str) -> None:
    variables = {"ATTNKIT_VLLM_BACKEND": "sdpa"}
    assert expected("CPU_ATTN", "cpu", {}, mla=True, amx=amx) == Expected(f"vllm:{name}", name)
    assert expected("CPU_ATTN", "cpu", variables, mla=True, amx=amx) == Expected(f"vllm:{name}", "TORCH_SDPA")


def test_the_plugin_has_no_place_for_mla_layers_elsewhere() -> None:
    variables = {"ATTNKIT_VLLM_BACKEND": "sdpa"}
    assert expected("TRITON_MLA", "cuda", variables, mla=True) == Expected("vllm:TRITON_MLA", "TRITON_MLA")


def test_nothing_known_is_nothing_expected() -> None:
    assert expected(None, "tpu", {}) is None


def test_a_wrong_name_is_an_error() -> None:
    with pytest.raises(UsageError, match="TORCH_SDPA"):
        expected("CPU_ATTN", "cpu", {"ATTNKIT_VLLM_BACKEND": "TORCH_SPDA"})
