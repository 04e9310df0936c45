"""attnkit in the place of vLLM's MLA backends on CPU: decoding, prefill, chunks over a cached context."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

pytest.importorskip("torch", reason="torch is not installed here")
vllm = pytest.importorskip("vllm", reason="vLLM is not installed here")

if not vllm.__version__.startswith("0.32."):
    pytest.skip(f"written for vLLM 0.32 on CPU; this is {vllm.__version__}", allow_module_level=True)


def in_child(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ATTNKIT_")}
    environment["ATTNKIT_VLLM_BACKEND"] = "TORCH_SDPA"
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize(("place", "impl"), [("CPU_MLA", "InCpuMlaImpl"), ("AMX_MLA", "InAmxMlaImpl")])
def test_a_mixed_batch_of_a_real_layer_is_right_in_float64(place: str, impl: str) -> None:
    done = in_child(str(Path(__file__).with_name("mla_layer.py")), place)
    assert "ANSWER " in done.stdout, done.stderr
    answer = json.loads(done.stdout.partition("ANSWER ")[2])
    assert answer["impl"] == impl
    assert [line.split()[0] for line in answer["ran"]] == ["varlen", "mla_decode"]
    assert len(answer["errors"]) == 4 and max(answer["errors"]) < 5e-6, answer


def test_the_self_test_sees_attnkit_in_that_place_and_a_planted_fault() -> None:
    code = f"""
from attnkit.engines.vllm.driver import validate_engine_backend
from attnkit.hardware.device import Device
from attnkit.spec import AttentionSpec
device = Device(vendor="cpu", kind="cpu", name="CPU", arch={platform.machine()!r})
spec = AttentionSpec("mla_decode", "bfloat16", num_heads=16, num_kv_heads=1, head_dim=576, head_dim_v=512, block_size=16)
for fault in (None, "scale"):
    verdict = validate_engine_backend("CPU_MLA", spec, "quick", device=device, fault=fault)
    print("VERDICT", verdict.outcome, {{case.kernel for case in verdict.cases}})
"""
    done = in_child("-c", code)
    found = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line.startswith("VERDICT")]
    assert [line[1] for line in found] == ["pass", "fail"], done.stdout + done.stderr
    assert found[0][2] == "{'vllm.InCpuMlaImpl'}"


def test_vllm_s_rotary_kernel_misreads_the_views_of_an_mla_layer() -> None:
    """Why `equal_tokens` gives its DeepSeek model the yarn scaling of the real ones: that takes another path in vLLM."""
    code = """
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope
torch.manual_seed(0)
with set_current_vllm_config(VllmConfig()), torch.inference_mode():
    rope = get_rope(64, max_position=64, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, is_neox_style=False)
    positions, query, key = torch.arange(20), torch.randn(20, 4, 192), torch.randn(20, 576)
    right = rope.forward_native(positions, query.clone()[..., 128:], key.clone()[:, 512:].unsqueeze(1))
    got = rope.forward_cpu(positions, query.clone()[..., 128:], key.clone()[:, 512:].unsqueeze(1))
    flat = rope.forward_cpu(positions, query[..., 128:].reshape(20, 256), key[:, 512:].contiguous())
    print("ERRORS", *(float((a - b.view(a.shape)).abs().max()) for pair in (got, flat) for a, b in zip(pair, right)))
"""
    done = in_child("-c", code)
    views, rows = (done.stdout.partition("ERRORS ")[2].split()[part] for part in (slice(0, 2), slice(2, 4)))
    assert all(float(error) > 1 for error in views), done.stdout + done.stderr
    assert all(float(error) < 1e-5 for error in rows), done.stdout + done.stderr
