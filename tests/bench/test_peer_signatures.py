"""What the peers are called with, bound to the signatures of the very packages that travel to the GPU machine.

Nothing of the packages runs here: `prepare` and one run of every peer on every kind of workload it takes, on small CPU tensors,
with stand-ins that have the published signatures (attnkit/contracts). vLLM's wheel is 250 MB, so its part runs only where the
wheel lies in .cache/contracts already (`attnkit contracts`, or pip download).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attnkit.bench import workloads
from attnkit.bench.peers import PEERS, Peer, composed, flash_attn_4, flashinfer, flashmla, vllm_fa3, vllm_triton
from attnkit.bench.workloads import Shape
from attnkit.spec import Call
from tools.contracts.fetch import fetch
from tools.contracts.package import Package
from tools.contracts.stand_in import ContractError, Recorder, Returns, standing_in

GQA = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64}
MAKE: dict[str, Callable[[], Call]] = {
    "decode": lambda: workloads.paged_call(Shape("", (1,) * 3, (40,) * 3, **GQA), torch.bfloat16, "cpu"),
    "prefill": lambda: workloads.varlen_call(Shape("", (20,) * 2, (20,) * 2, **GQA), torch.bfloat16, "cpu"),
    "paged": lambda: workloads.paged_call(Shape("", (8,) * 2, (40,) * 2, **GQA), torch.bfloat16, "cpu"),
    "mixed": lambda: workloads.paged_call(Shape("", (8, 8, 1, 1), (40, 40, 33, 33), **GQA), torch.bfloat16, "cpu"),
    "mla": lambda: workloads.mla_call(2, 70, torch.bfloat16, device="cpu", heads=16),
    "fp8": lambda: workloads.fp8_call(Shape("", (1,) * 3, (40,) * 3, **GQA), torch.bfloat16, "cpu"),
    "tree": lambda: workloads.tree_call(2, 8, 32, torch.bfloat16, "cpu"),
    "dual_chunk": lambda: workloads.dual_chunk_call(Shape("", (4,), (100,), **GQA), 40, 8, torch.bfloat16, "cpu"),
    "differential": lambda: workloads.differential_call(
        Shape("", (2, 2), (40, 30), num_heads=8, num_kv_heads=4, head_dim=32), torch.bfloat16, "cpu"
    ),
}


def _tokens(arguments: Any) -> torch.Tensor:
    query = arguments["q"] if "q" in arguments else arguments["q_nope"]
    return torch.zeros(query.shape, dtype=torch.bfloat16)


def _fa3(arguments: Any) -> Any:
    query = arguments["q"]
    out = torch.zeros(*query.shape[:2], arguments["v"].shape[-1], dtype=torch.bfloat16)
    return (out, torch.zeros(query.shape[1], query.shape[0])) if arguments.get("return_softmax_lse") else out


VLLM: Returns = {
    "flash_attn_varlen_func": _fa3,
    "get_scheduler_metadata": lambda a: torch.zeros(8, dtype=torch.int32),
    "get_mla_metadata": lambda a: (object(), None),
    "flash_mla_with_kvcache": lambda a: (torch.zeros(*a["q"].shape[:3], a["head_dim_v"]), None),
}
FLASHINFER: Returns = {
    f"{wrapper}.run": _tokens
    for wrapper in (
        "BatchPrefillWithRaggedKVCacheWrapper",
        "BatchPrefillWithPagedKVCacheWrapper",
        "BatchDecodeWithPagedKVCacheWrapper",
        "BatchMLAPagedAttentionWrapper",
    )
}
FA4: Returns = {"flash_attn_varlen_func": lambda a: (_tokens(a), None)}


def _bind(peers: list[Peer], package: Package, returns: Returns) -> list[str]:
    """Names of the functions called, of all peers on all their groups."""
    called: list[str] = []
    for peer in peers:
        for group in peer.groups:
            recorder = Recorder(package, returns)
            with standing_in(recorder):
                out, kernel = peer.prepare(MAKE[group]())()
            assert recorder.calls, f"{peer.name} on {group} calls nothing of {package.name}"
            assert out.is_floating_point() and kernel
            called += [call.function for call in recorder.calls]
    return called


def _of(*modules: Any) -> list[Peer]:
    return [peer for peer in PEERS if type(peer).__module__ in {module.__name__ for module in modules}]


@pytest.mark.slow
def test_flashinfer_takes_what_we_pass(repo_root: Path) -> None:
    wheel = fetch("flashinfer-python", "0.6.13", repo_root / ".cache" / "contracts")
    called = _bind(_of(flashinfer), Package(wheel, ("flashinfer",)), FLASHINFER)
    assert set(FLASHINFER) <= set(called)


@pytest.mark.slow
def test_flash_attention_4_takes_what_we_pass(repo_root: Path) -> None:
    wheel = fetch("flash-attn-4", "4.0.0b36", repo_root / ".cache" / "contracts")
    assert "flash_attn_varlen_func" in _bind(_of(flash_attn_4), Package(wheel, ("flash_attn",)), FA4)


@pytest.mark.slow
def test_vllm_takes_what_we_pass(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = sorted((repo_root / ".cache" / "contracts").glob("vllm-0.25.0-*.whl"))
    if not wheels:
        pytest.skip("vLLM 0.25.0's wheel (250 MB) is not in .cache/contracts")
    monkeypatch.setattr(vllm_triton, "_splits", lambda length, device: 4)  # asks the card
    peers = [peer for peer in _of(vllm_fa3, flashmla, vllm_triton, composed) if peer.package == "vllm"]
    package = Package(wheels[0], ("vllm",))
    assert b"\n    FP8_PER_TENSOR = 1 " in package.files["vllm/v1/kv_cache_interface.py"]
    assert (
        b"ideal_splits = triton.next_power_of_2(max(1, max_seq_len // _MIN_WORK_PER_SPLIT))"
        in (package.files["vllm/v1/attention/backends/mla/triton_mla.py"])
    )
    called = _bind(peers, package, VLLM)
    assert set(VLLM) <= set(called)
    assert {"unified_attention", "decode_attention_fwd", "context_attention_fwd", "merge_attn_states"} <= set(called)


def test_a_parameter_that_a_package_lacks_is_found(tmp_path: Path) -> None:
    import zipfile

    wheel = tmp_path / "flash_attn_4-9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("flash_attn/__init__.py", "")
        archive.writestr("flash_attn/cute/__init__.py", "")
        archive.writestr("flash_attn/cute/interface.py", "def flash_attn_varlen_func(q, k, v, causal=False): ...\n")
    with pytest.raises(ContractError, match="cu_seqlens_q"):
        _bind([flash_attn_4.Fa4()], Package(wheel, ("flash_attn",)), FA4)
