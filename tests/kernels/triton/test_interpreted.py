"""Our Triton kernels in Triton's interpreter, against the float64 reference; each case says which kernel must have run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed here")

PREFILL, DECODE, SPLIT = "triton_paged_prefill", "triton_paged_decode", "triton_paged_decode_split"
BOTH, BOTH_SPLIT = f"{PREFILL}+{DECODE}", f"{PREFILL}+{SPLIT}"

WARP_CASES = (
    "warp",
    "warp-bf16",
    "warp-block-128",
    "warp-dim-80",
    "warp-window",
    "warp-softcap",
    "warp-alibi",
    "warp-sinks",
    "warp-speculative",
    "warp-float8_e4m3fn-float16",
    "warp-float8_e4m3fn-bfloat16",
    "warp-float8_e5m2-float16",
    "warp-float8_e5m2-bfloat16",
    "warp-fp8-dim-80",
    "warp-fp8-dim-256",
    "warp-fp8-rows",
    "warp-fp8-softcap",
    "warp-fp8-alibi",
    "warp-fp8-sinks",
    "warp-fp8-rows-apart",
)

KERNELS = {
    "prefill": PREFILL,
    "prefill-odd-lengths": BOTH,
    "chunked": PREFILL,
    "decode": DECODE,
    "decode-split": SPLIT,
    "speculative": SPLIT,
    "mixed": BOTH,
    "mixed-bf16": BOTH,
    "mixed-fp32": BOTH,
    "dim-16": BOTH,
    "dim-80": BOTH,
    "dim-96": BOTH,
    "dim-128": BOTH,
    "dim-256": BOTH,
    "block-32": BOTH_SPLIT,
    "block-64": BOTH_SPLIT,
    "block-128": BOTH_SPLIT,
    "mha": BOTH,
    "gqa-7": BOTH,
    "mqa-32": SPLIT,
    "non-causal": BOTH,
    "window": BOTH,
    "window-both": BOTH,
    "window-decode": SPLIT,
    "softcap": BOTH,
    "alibi": BOTH,
    "sinks": BOTH,
    "sinks-split": SPLIT,
    "cache-float8_e4m3fn": BOTH,
    "cache-float8_e5m2": BOTH,
    "large-scores": BOTH,
    "strided-cache": BOTH,
    "varlen": "triton_varlen_prefill",
    "varlen-non-causal": "triton_varlen_prefill",
    "mla": "triton_mla_decode",
    "mla-split": "triton_mla_decode_split",
    "mla-two-tokens": "triton_mla_decode",
    "mla-fp8": "triton_mla_decode",
    "tree": f"triton_tree:{DECODE}",
    "tree-split": f"triton_tree:{SPLIT}",
    "tree-rows": f"triton_tree:{DECODE}",
    "tree-rows-split": f"triton_tree:{SPLIT}",
    "tree-unequal": f"triton_tree:{PREFILL}+{DECODE}",
    "dual-40": "triton_dual_chunk",
    "dual-1024": "triton_dual_chunk",
    "dual-decode": "triton_dual_chunk_split",
    "dual-odd-period": "triton_dual_chunk_split",
    "dual-few-cosines": "triton_dual_chunk_split",
    "dual-rows-split": "triton_dual_chunk_split",
    "dual-fp8": "triton_dual_chunk",
    **dict.fromkeys(
        ("dual-composed-40", "dual-composed-1024", "dual-composed-bf16", "dual-composed-fp8", "dual-composed-heads-in-turn"),
        "triton_dual_chunk_composed:triton_varlen_prefill",
    ),
    "differential": f"2*({BOTH_SPLIT})+triton_differential_combine",
    "differential-decode": f"triton_differential_spread+{SPLIT}+triton_differential_combine",
    "differential-decode-fp8": f"triton_differential_spread+{SPLIT}+triton_differential_combine",
    "differential-apart": f"2*({SPLIT})+triton_differential_combine",
    **dict.fromkeys(WARP_CASES, "triton_warp_decode_split"),
    "warp-one-split": "triton_warp_decode",
    "warp-tree": "triton_tree:triton_warp_decode_split",
}
_FORMATS = ("float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
WRITES = (*_FORMATS, *(f"halves-{name}" for name in _FORMATS))
PLANTED = ("planted-scale", "planted-block")


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    """Every case's line, from one run of the script."""
    script = Path(__file__).with_name("interpreted_cases.py")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert run.returncode == 0, run.stderr[-4000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    return {row["case"]: row for row in rows}


def test_every_case_of_the_script_is_judged_here(results: dict[str, dict[str, Any]]) -> None:
    assert set(results) == {*KERNELS, *PLANTED, *(f"write-{d}" for d in WRITES)}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_agrees_with_the_reference(results: dict[str, dict[str, Any]], name: str) -> None:
    row = results[name]
    assert row["kernel"] == KERNELS[name]
    assert row["error"] <= row["bound"]  # NaN, left where an element was not written, fails too
    assert row["mean_error"] <= row["mean_bound"]
    if "lse_error" in row:
        assert row["same_infinities"]
        assert row["lse_error"] <= row["lse_bound"]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_out_of_bounds(results: dict[str, dict[str, Any]], name: str) -> None:
    assert results[name]["error"] > results[name]["bound"]


@pytest.mark.parametrize("name", WRITES)
def test_cache_write_stores_what_torch_would(results: dict[str, dict[str, Any]], name: str) -> None:
    assert results[f"write-{name}"] == {"case": f"write-{name}", "kernel": "triton_cache_write", "differ": 0}


def test_float32_scores_are_not_one_long_sum() -> None:
    """Summed as a GPU sums: one chain of 64 multiply-adds has a mean error of 2e-6 here, chains of sixteen under 1e-7."""
    script = Path(__file__).with_name("float32_cases.py")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "decode-large-scores"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    (row,) = [json.loads(line) for line in run.stdout.splitlines()]
    assert row["case"] == "paged-decode-large-scores-float32-h4/2-d64-page16"
    assert row["kernel"] == DECODE
    assert row["reason"] == ""
    assert row["mean_error"] < 5e-7


def test_on_the_cpu_without_the_interpreter_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnkit.backends import registry
    from attnkit.errors import UnsupportedError
    from attnkit.spec import PagedAttention, Softmax

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cache = torch.zeros(1, 16, 1, 64)
    one = torch.ones(1, dtype=torch.int32)
    call = PagedAttention(
        query=torch.zeros(1, 1, 64),
        key_cache=cache,
        value_cache=cache,
        block_table=torch.zeros(1, 1, dtype=torch.int32),
        seq_lens=one,
        query_start_loc=torch.tensor([0, 1], dtype=torch.int32),
        max_query_len=1,
        max_seq_len=1,
        softmax=Softmax(0.125),
    )
    with pytest.raises(UnsupportedError, match="only in the interpreter"):
        registry.get("TRITON_ATTN").run(call)
