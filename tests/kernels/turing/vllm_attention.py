"""A program: compile vLLM's own Triton attention kernel for sm_75, without and with the hook; JSON on stdout.

    python vllm_attention.py [vllm-….whl]

With no argument it takes the installed vLLM. From a wheel it reads the kernel and its helpers as they are; vLLM's logger,
platform and environment modules, which the kernel file imports but no kernel code uses, are stood in for, so that none of
vLLM's dependencies is needed. Needs torch and Triton, no GPU.
"""

import ast
import json
import logging
import sys
import tempfile
import types
import zipfile
from enum import IntEnum
from pathlib import Path

import torch
import triton

from attnkit.kernels.triton.launch import Launch
from attnkit.kernels.triton.targets import compile_launch
from attnkit.kernels.turing import hook
from tools.kernels.machine_code import inspect_ptx

KERNEL = "vllm.v1.attention.ops.triton_unified_attention"
GEOMETRIES = {"group4-d128": (32, 8, 128), "group8-d128": (64, 8, 128), "group4-d64": (32, 8, 64)}


def from_wheel(wheel: Path, folder: Path):
    """The kernel module out of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith("vllm/v1/attention/ops/triton_")]
        archive.extractall(folder, names)
        interface = archive.read("vllm/v1/kv_cache_interface.py").decode()
    for package in ("vllm", "vllm.v1", "vllm.v1.attention", "vllm.v1.attention.ops"):
        module = types.ModuleType(package)
        module.__path__ = [str(folder.joinpath(*package.split(".")))]
        sys.modules[package] = module
    enum = next(n for n in ast.parse(interface).body if isinstance(n, ast.ClassDef) and n.name == "KVQuantMode")
    scope = {"IntEnum": IntEnum}
    exec(compile(ast.Module([enum], []), "kv_cache_interface.py", "exec"), scope)
    platform = types.SimpleNamespace(fp8_dtype=lambda: torch.float8_e4m3fn, is_cuda=lambda: True)
    neighbours = {
        "vllm.envs": {"VLLM_BATCH_INVARIANT": False},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.platforms": {"current_platform": platform, "vllm_version_matches_substr": lambda _text: False},
        "vllm.v1.kv_cache_interface": {"KVQuantMode": scope["KVQuantMode"]},
    }
    for name, content in neighbours.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    # vLLM's triton_utils hides Triton where no GPU driver is active; the real one is wanted here.
    utils = types.ModuleType("vllm.triton_utils")
    vars(utils).update(triton=triton, tl=triton.language, HAS_TRITON=True, LOG2E=1.4426950408889634, LOGE2=0.6931471805599453)
    sys.modules["vllm.triton_utils"] = utils
    sys.modules["vllm"].envs = sys.modules["vllm.envs"]


def launch(kernel, heads, kv_heads, head_dim, three_d):
    """The launch vLLM's wrapper makes for this geometry: 2-D for prefill, 3-D (split) for decode."""
    group = heads // kv_heads
    block_m = 16 if group <= 16 else 1 << (group - 1).bit_length()
    query = torch.zeros(8, heads, head_dim, dtype=torch.float16)
    cache = torch.zeros(4, 16, kv_heads, head_dim, dtype=torch.float16)
    ints = torch.zeros(16, dtype=torch.int32)
    part = torch.zeros(64)
    names = [p.name for p in kernel.params]
    known = {
        "output_ptr": query, "query_ptr": query, "key_cache_ptr": cache, "value_cache_ptr": cache,
        "sink_ptr": None, "block_tables_ptr": ints, "seq_lens_ptr": ints, "alibi_slopes_ptr": None, "qq_bias_ptr": None,
        "scale": head_dim**-0.5, "q_scale": None, "k_scale": part, "v_scale": part, "out_scale": 1.0, "softcap": 0.0,
        "num_query_heads": heads, "num_queries_per_kv": group, "block_table_stride": 16,
        "query_stride_0": query.stride(0), "query_stride_1": query.stride(1),
        "output_stride_0": query.stride(0), "output_stride_1": query.stride(1), "qq_bias_stride_0": 0,
        "BLOCK_SIZE": 16, "TILE_SIZE": 16 if three_d else 32, "HEAD_SIZE": head_dim, "HEAD_SIZE_PADDED": head_dim,
        "USE_ALIBI_SLOPES": False, "USE_ALIBI_SQRT": False, "USE_QQ_BIAS": False, "USE_SOFTCAP": False, "USE_SINKS": False,
        "SLIDING_WINDOW": 0, "USE_CAUSAL": True, "USE_PER_SEQ_CAUSAL": False, "per_seq_causal_ptr": None,
        "USE_MM_PREFIX": False, "MAX_MM_RANGES": 0, "mm_prefix_range_ptr": None,
        "rswa_prefix_lens_ptr": ints, "R_SWA_WINDOW": 0, "USE_R_SWA": False,
        **{f"stride_{c}_cache_{i}": cache.stride(i) for c in "kv" for i in range(4)},
        "query_start_len_ptr": ints, "BLOCK_Q": block_m // group, "num_seqs": 2, "BLOCK_M": block_m,
        "NUM_SEGMENTS_PER_SEQ": 16 if three_d else 1, "USE_FP8": False, "IS_3D": three_d,
        "segm_output_ptr": part if three_d else None, "segm_max_ptr": part if three_d else None,
        "segm_expsum_ptr": part if three_d else None,
    }  # fmt: skip
    return Launch(kernel, (1, 1, 1), {n: v for n, v in known.items() if n in names}, 4, 3)


def cost(one):
    """Instruction mix of the code for sm_75, or the error."""
    try:
        compiled = compile_launch(one, "sm_75")
        found = inspect_ptx(compiled.asm["ptx"], "sm_75")
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "HMMA.1688": found.count("HMMA.1688"),
        "FFMA": found.count("FFMA"),
        "registers": found.registers,
        "spill_bytes": found.spill_bytes,
        "shared_bytes": compiled.shared,
    }


def main():
    """Both ways for each geometry."""
    with tempfile.TemporaryDirectory() as folder:
        source = "installed vllm"
        if len(sys.argv) > 1:
            source = Path(sys.argv[1]).name
            from_wheel(Path(sys.argv[1]), Path(folder))
        __import__(KERNEL)
        kernel = sys.modules[KERNEL].kernel_unified_attention
        kernel = getattr(kernel, "fn", kernel) if not hasattr(kernel, "warmup") else kernel
        command = "python tests/kernels/turing/vllm_attention.py" + (f" {source}" if len(sys.argv) > 1 else "")
        result = {
            "command": command,
            "source": source,
            "kernel": f"{KERNEL}.kernel_unified_attention",
            "triton": triton.__version__,
        }
        plans = {
            f"{name} {'decode' if three_d else 'prefill'}": launch(kernel, *shape, three_d)
            for name, shape in GEOMETRIES.items()
            for three_d in (False, True)
        }
        stock = {name: cost(one) for name, one in plans.items()}
        hook.enable()
        result["sm_75"] = {name: {"stock": stock[name], "turing": cost(one)} for name, one in plans.items()}
        json.dump(result, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
