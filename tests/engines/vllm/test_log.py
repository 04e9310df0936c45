"""Which backend a vLLM runs, from its own log lines; the lines are copied from runs and sources of vLLM 0.25 to 0.33."""

from __future__ import annotations

import pytest

from attnkit.engines.vllm.log import LOG_LINE, assert_chosen, backend_from_log, matters, read_log

CONFIG = (
    "(EngineCore pid=7) INFO 11-24 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: "
    "model='m', device_config=cpu, seed=0"
)
REPLACED = "(Worker pid=9) INFO 11-24 16:19:02 [cpu.py:178] Cannot use AttentionBackendEnum.TORCH_SDPA backend on CPU."
PLUGIN = "(Worker pid=9) INFO 11-24 [vllm_backend.py:340] " + LOG_LINE.format(backend="TORCH_SDPA", slot="CPU_ATTN")
LOADING = "(Worker pid=9) INFO 11-24 [cpu_model_runner.py:68] Starting to load model /tmp/llama..."


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("INFO [cuda.py:446] Using AttentionBackendEnum.FLASH_ATTN backend.", "FLASH_ATTN"),
        ("INFO [cuda.py:477] Using TRITON_ATTN attention backend out of potential backends: ['TRITON_ATTN'].", "TRITON_ATTN"),
        ("INFO [rocm.py:749] Using ROCM_AITER_FA backend (selected via --attention-backend).", "ROCM_AITER_FA"),
        (
            "INFO [rocm.py:849] Using TRITON_ATTN backend out of potential backends: ['TRITON_ATTN', 'ROCM_ATTN'].",
            "TRITON_ATTN",
        ),
        ("INFO [cpu.py:163] Using AMX_MLA backend.", "AMX_MLA"),
        ("INFO [xpu.py:239] Using Flash Attention backend.", "FLASH_ATTN"),
        ("INFO [xpu.py:162] Using Triton MLA backend on V1 engine.", "TRITON_MLA"),
        (PLUGIN, "TORCH_SDPA"),
    ],
)
def test_the_backend_is_named(line: str, name: str) -> None:
    assert backend_from_log([LOADING, line, LOADING], "0.32.0") == name
    assert assert_chosen(name, [line], "0.32.0") is None
    assert assert_chosen(f"vllm:{name.lower()}", [line], "0.32.0") is None


def test_cpu_attn_says_nothing_so_the_platform_must() -> None:
    assert backend_from_log([CONFIG, LOADING], "0.32.0") == "CPU_ATTN"
    assert backend_from_log([LOADING], "0.32.0") is None


def test_a_silent_replacement_is_an_error_with_the_line() -> None:
    problem = assert_chosen("TORCH_SDPA", [CONFIG, LOADING, REPLACED], "0.32.0")
    assert problem is not None
    assert "runs CPU_ATTN, not TORCH_SDPA" in problem
    assert "silently replaced" in problem
    assert REPLACED in problem
    assert read_log([REPLACED], "0.32.0").refused == "TORCH_SDPA"


def test_our_plugin_computes_though_vllm_says_it_cannot() -> None:
    lines = [CONFIG, REPLACED, PLUGIN]
    assert read_log(lines, "0.32.0").place == "CPU_ATTN"
    assert assert_chosen("TORCH_SDPA", lines, "0.32.0") is None
    assert "not CPU_ATTN" in (assert_chosen("CPU_ATTN", lines, "0.32.0") or "")


def test_the_backend_of_the_vision_tower_is_not_the_model_s() -> None:
    assert (
        backend_from_log(["INFO [cuda.py:566] Using backend AttentionBackendEnum.FLASH_ATTN for vit attention"], "0.32.0")
        is None
    )


@pytest.mark.parametrize("version", ["0.9.2", "0.40.0", "dev"])
def test_lines_of_an_unknown_version_are_not_guessed_at(version: str) -> None:
    line = "INFO Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN']."
    assert backend_from_log([line], version) is None
    assert "not known" in (assert_chosen("FLASH_ATTN", [line], version) or "")


def test_a_log_that_names_none_is_not_taken_for_agreement() -> None:
    assert "cannot tell" in (assert_chosen("FLASH_ATTN", [LOADING], "0.32.0") or "")


def test_the_lines_that_matter_are_enough() -> None:
    lines = [LOADING, CONFIG, LOADING, REPLACED, LOADING]
    kept = [line for line in lines if matters(line)]
    assert kept == [CONFIG, REPLACED]
    assert read_log(kept, "0.32.0") == read_log(lines, "0.32.0")
