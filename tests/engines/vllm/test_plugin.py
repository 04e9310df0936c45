"""attnkit inside a real vLLM on CPU: the same greedy tokens, and a silent replacement that is caught."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

pytest.importorskip("torch", reason="torch is not installed here")
vllm = pytest.importorskip("vllm", reason="vLLM is not installed here")

from attnkit.engines.vllm.log import assert_chosen, read_log  # noqa: E402
from tools.engines import equal_tokens  # noqa: E402

PROBE = """
import {before}
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from attnkit.engines.vllm.plugin import register
register(); register()
print(*(AttentionBackendEnum[place].get_path() for place in ("CPU_ATTN", "CPU_MLA", "AMX_MLA")))
"""


def in_child(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ATTNKIT_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment | variables, capture_output=True, text=True, check=False, timeout=600
    )


def test_the_entry_point_is_installed() -> None:
    points = metadata.entry_points(group="vllm.general_plugins")
    assert [p.value for p in points if p.name == "attnkit"] == ["attnkit.engines.vllm_plugin:register"]


def test_unset_leaves_vllm_alone() -> None:
    done = in_child(PROBE.format(before="sys"))
    assert [path.rpartition(".")[2] for path in done.stdout.split()[-3:]] == [
        "CPUAttentionBackend",
        "CPUMLABackend",
        "AMXMLABackend",
    ], done.stderr


GRAPHS = """
import vllm
from dataclasses import replace
from attnkit.engines.vllm import batch as vllm_batch
from attnkit.engines.vllm.requirements import capability
here = capability("paged")
for graphs in (True, False):
    vllm_batch.capability = lambda op: replace(here, graphs=graphs)
    print(vllm_batch.AttnkitBuilder.get_cudagraph_support(None, None).name)
"""


def test_decodes_are_captured_only_where_the_backend_may_be() -> None:
    done = in_child(GRAPHS, ATTNKIT_VLLM_BACKEND="TORCH_SDPA")
    assert done.stdout.split()[-2:] == ["UNIFORM_SINGLE_TOKEN_DECODE", "NEVER"], done.stderr


def test_set_takes_every_place_that_vllm_has_on_cpu() -> None:
    done = in_child(PROBE.format(before="vllm"), ATTNKIT_VLLM_BACKEND="torch_sdpa")
    assert done.stdout.split()[-3:] == [
        "attnkit.engines.vllm.backend.InCpuAttn",
        "attnkit.engines.vllm.backend_mla.InCpuMla",
        "attnkit.engines.vllm.backend_mla.InAmxMla",
    ], done.stderr


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("TREE_ATTN", "the tree of a speculative batch"),
        ("DUAL_CHUNK_FLASH_ATTN", "keys without their rotary embedding"),
        ("DIFFERENTIAL_FLASH_ATTN", "the lambdas and the paired heads"),
    ],
)
def test_what_vllm_s_layers_never_ask_for(name: str, needs: str) -> None:
    from attnkit.backends.registry import get
    from attnkit.engines.vllm.plugin import lacking

    assert lacking(get(name)) == needs
    assert not lacking(get("TORCH_SDPA")) and not lacking(get("TRITON_MLA"))


def test_the_refusal_stops_every_process_of_vllm() -> None:
    done = in_child(PROBE.format(before="vllm"), ATTNKIT_VLLM_BACKEND="DIFFERENTIAL_FLASH_ATTN")
    assert done.returncode
    assert "do not hand over the lambdas" in done.stderr


def test_a_layer_for_which_vllm_would_take_its_own_backend_is_refused() -> None:
    code = """
import torch
from types import SimpleNamespace
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from attnkit.engines.vllm.plugin import register
register(); register()
layer = SimpleNamespace(use_sparse=False, use_mla=False)
print("OURS", current_platform.get_attn_backend_cls(None, layer))
AttentionBackendEnum.CPU_ATTN.clear_override()  # as on a platform, or for a kind of layer, without a place for attnkit
current_platform.get_attn_backend_cls(None, layer)
"""
    done = in_child(code, ATTNKIT_VLLM_BACKEND="TORCH_SDPA")
    assert "OURS attnkit.engines.vllm.backend.InCpuAttn" in done.stdout, done.stderr
    assert done.returncode
    refusal = (
        "ATTNKIT_VLLM_BACKEND=TORCH_SDPA: vLLM would run vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend for a layer"
    )
    assert refusal in done.stderr


DUAL_CHUNK = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "dual_chunk_attention_config": {"chunk_size": 256, "local_size": 32, "original_max_position_embeddings": 256},
}
"""Qwen2.5-1M's config.json, made small."""

CONFIGURE = """
from vllm.config import ModelConfig, VllmConfig
from vllm.plugins import load_general_plugins
load_general_plugins()
model = ModelConfig(model={folder!r}, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, trust_remote_code=True)
VllmConfig(model_config=model)
"""


def test_dual_chunk_models_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DUAL_CHUNK), encoding="utf-8")
    done = in_child(CONFIGURE.format(folder=str(tmp_path)), ATTNKIT_VLLM_BACKEND="TORCH_SDPA")
    assert done.returncode
    assert "ATTNKIT_VLLM_BACKEND=TORCH_SDPA: this model asks for dual chunk attention" in done.stderr
    plain = {name: value for name, value in DUAL_CHUNK.items() if name != "dual_chunk_attention_config"}
    (tmp_path / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    done = in_child(CONFIGURE.format(folder=str(tmp_path)), ATTNKIT_VLLM_BACKEND="TORCH_SDPA")
    assert done.returncode == 0, done.stderr


def test_vllm_itself_has_no_dual_chunk_on_cpu() -> None:
    code = """
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope
with set_current_vllm_config(VllmConfig()):
    get_rope(64, max_position=1024, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
             dual_chunk_attention_config={"chunk_size": 256, "local_size": 32, "original_max_position_embeddings": 256})
"""
    done = in_child(code)
    assert "Cannot access accelerator device when none is available" in done.stderr


def test_vllm_itself_no_longer_has_phi_4_flash(tmp_path: Path) -> None:
    config = {
        "architectures": ["Phi4FlashForCausalLM"],
        "model_type": "phi4flash",
        "auto_map": {"AutoConfig": "configuration_phi4flash.Phi4FlashConfig"},
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 1024,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code = "from transformers import PretrainedConfig\nclass Phi4FlashConfig(PretrainedConfig):\n    model_type = 'phi4flash'\n"
    (tmp_path / "configuration_phi4flash.py").write_text(code, encoding="utf-8")
    done = in_child(CONFIGURE.format(folder=str(tmp_path)), ATTNKIT_VLLM_BACKEND="TORCH_SDPA", HF_MODULES_CACHE=str(tmp_path))
    assert done.returncode
    assert "Phi4FlashForCausalLM was supported in vLLM until v0.10.2, and is not supported anymore" in done.stderr


def test_arguments_of_a_special_attention_are_refused() -> None:
    code = """
from attnkit.engines.vllm.backend import AttnkitImpl
AttnkitImpl(4, 64, 0.125, 2, layer_idx=0, dual_chunk_attention_config={"chunk_size": 256})
"""
    done = in_child(code, ATTNKIT_VLLM_BACKEND="TORCH_SDPA")
    assert "does not take this layer's dual_chunk_attention_config, layer_idx" in done.stderr


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
from attnkit.engines.vllm.backend import AsCustom
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
from attnkit.engines.vllm.driver import validate_engine_backend
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
@pytest.mark.parametrize(
    ("model", "backend", "own"),
    [
        ("llama", "TORCH_SDPA", "CPU_ATTN"),
        ("qwen3", "TORCH_SDPA", "CPU_ATTN"),
        ("mistral-window", "TORCH_SDPA", "CPU_ATTN"),
        ("gemma2", "FLEX_ATTENTION", "CPU_ATTN"),
        ("deepseek", "TORCH_SDPA", "CPU_MLA"),
    ],
)
def test_greedy_tokens_are_those_of_vllm_s_own_attention(model: str, backend: str, own: str) -> None:
    found = equal_tokens.compare(model, equal_tokens.Serving(count=8, tokens=64), backend=backend)
    assert (found.own, found.ours) == (own, backend)
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
