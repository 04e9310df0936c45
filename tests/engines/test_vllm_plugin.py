"""attnkit inside a real vLLM on CPU: the same greedy tokens, and a silent replacement that is caught."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata

import pytest

pytestmark = pytest.mark.engine

pytest.importorskip("torch", reason="torch is not installed here")
vllm = pytest.importorskip("vllm", reason="vLLM is not installed here")

from attnkit.engines import equal_tokens  # noqa: E402
from attnkit.engines.vllm_log import assert_chosen, read_log  # noqa: E402

PROBE = """
import {before}
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from attnkit.engines.vllm_plugin import register
register(); register()
print(AttentionBackendEnum.CPU_ATTN.get_path())
"""


def in_child(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ATTNKIT_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_entry_point_is_installed() -> None:
    points = metadata.entry_points(group="vllm.general_plugins")
    assert [p.value for p in points if p.name == "attnkit"] == ["attnkit.engines.vllm_plugin:register"]


def test_unset_leaves_vllm_alone() -> None:
    done = in_child(PROBE.format(before="sys"))
    assert done.stdout.split()[-1] == "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend", done.stderr


def test_set_takes_the_place_of_cpu_attn() -> None:
    done = in_child(PROBE.format(before="vllm"), ATTNKIT_VLLM_BACKEND="torch_sdpa")
    assert done.stdout.split()[-1] == "attnkit.engines.vllm_backend.InCpuAttn", done.stderr


def test_an_unknown_name_is_an_error() -> None:
    done = in_child(PROBE.format(before="vllm"), ATTNKIT_VLLM_BACKEND="TORCH_SPDA")
    assert done.returncode
    assert "Did you mean TORCH_SDPA" in done.stderr


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"head_size": 64, "dtype": "float32"}, None),
        ({"head_size": 64, "dtype": "float32", "use_mla": True}, "mla is not supported"),
        ({"head_size": 1024, "dtype": "float32"}, "head_dim 1024 is not supported"),
        ({"head_size": 64, "dtype": "float32", "kv_cache_dtype": "nvfp4"}, "nvfp4"),
        ({"head_size": 64, "dtype": "float32", "attn_type": "encoder_decoder"}, "encoder_decoder"),
    ],
)
def test_vllm_s_question_is_answered_from_our_capabilities(asked: dict[str, object], reason: str | None) -> None:
    code = f"""
import torch
from attnkit.engines.vllm_backend import AsCustom
asked = dict(kv_cache_dtype="auto", block_size=32, device_capability=None) | {asked!r}
asked["dtype"] = getattr(torch, asked["dtype"])
print("ANSWER", AsCustom.validate_configuration(**asked))
"""
    done = in_child(code, ATTNKIT_VLLM_BACKEND="TORCH_SDPA")
    answer = done.stdout.partition("ANSWER ")[2].strip()
    assert (answer == "[]") if reason is None else (reason in answer), answer + done.stderr


def test_our_backend_passes_the_self_test_through_vllm_s_interface() -> None:
    code = """
import platform
from attnkit.engines.vllm_driver import validate_engine_backend
from attnkit.hardware.device import Device
from attnkit.spec import AttentionSpec
device = Device(vendor="cpu", kind="cpu", name="CPU", arch=platform.machine())
spec = AttentionSpec(dtype="bfloat16", num_heads=8, num_kv_heads=2, head_dim=64, block_size=16, features=frozenset({"window"}))
for fault in (None, "window-off-by-one"):
    verdict = validate_engine_backend("CPU_ATTN", spec, "quick", device=device, fault=fault)
    print("VERDICT", verdict.outcome, len(verdict.cases), {case.kernel for case in verdict.cases})
"""
    done = in_child(code, ATTNKIT_VLLM_BACKEND="TORCH_SDPA")
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("VERDICT")]
    assert [line[1] for line in found] == ["pass", "fail"], done.stdout + done.stderr
    assert "vllm.AttnkitImpl" in found[0][3]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "qwen3", "mistral-window"])
def test_greedy_tokens_are_those_of_vllm_s_own_attention(model: str) -> None:
    found = equal_tokens.compare(model, count=8, tokens=64, backend="TORCH_SDPA")
    assert (found.own, found.ours) == ("CPU_ATTN", "TORCH_SDPA")
    assert found.first_difference is None
    assert found.equal == found.prompts == 8
    assert found.distinct > 100, "tokens that do not vary would hide a wrong attention"


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["TORCH_SDPA", "FLASH_ATTN"])
def test_vllm_replaces_silently_on_cpu_and_we_say_so(asked: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = equal_tokens.make_model("llama", tmp_path_factory.mktemp("model"))
    code = f"""
from vllm import LLM
if __name__ == "__main__":
    LLM(model={str(model)!r}, dtype="float32", skip_tokenizer_init=True, enforce_eager=True, max_model_len=256,
        attention_backend={asked!r})
"""
    script = model / "run.py"
    script.write_text(code, encoding="utf-8")
    environment = {n: v for n, v in os.environ.items() if not n.startswith("ATTNKIT_")}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, "\n".join(lines[-20:])
    running = read_log(lines, vllm.__version__)
    assert (running.backend, running.refused) == ("CPU_ATTN", asked)
    problem = assert_chosen(asked, lines, vllm.__version__)
    assert problem is not None
    assert f"runs CPU_ATTN, not {asked}, having silently replaced {asked}" in problem
    assert assert_chosen("CPU_ATTN", lines, vllm.__version__) is None
