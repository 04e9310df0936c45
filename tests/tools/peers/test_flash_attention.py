"""FlashAttention's interface over attnkit.api: the right numbers, and a refusal is a skip with its reason."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed here")

import torch
from torch import Tensor

from tools.peers import flash_attention as shim

TESTS = """
import torch
from flash_attn_interface import flash_attn_func, flash_attn_with_kvcache

def test_right():
    x = torch.randn(2, 3, 4, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(*[x.transpose(1, 2)] * 3).transpose(1, 2)
    torch.testing.assert_close(flash_attn_func(x, x, x), expected)

def test_refused():
    x = torch.randn(1, 3, 4, 16)
    flash_attn_with_kvcache(x, x, x, k=x, v=x)

def test_wrong():
    assert flash_attn_func(*[torch.ones(1, 1, 1, 16)] * 3).sum() == 0
"""


def dense(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> tuple[Tensor, Tensor]:
    """One sequence [tokens, heads, width], in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    s = torch.einsum("nhd,khd->hnk", q, k) / math.sqrt(q.shape[2])
    if causal:
        far = torch.arange(k.shape[0])[None] > torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0]
        s = s.masked_fill(far, -math.inf)
    lse = torch.logsumexp(s, -1) if s.shape[-1] else s.new_full(s.shape[:2], -math.inf)
    p = torch.exp(s - lse.nan_to_num(neginf=0.0)[..., None])
    return torch.einsum("hnk,khd->nhd", p, v), lse.T


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim, "backend", "TORCH_SDPA")


@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_of_which_some_rows_are_not_used(causal: bool) -> None:
    q, k, v = torch.randn(12, 4, 16), torch.randn(20, 2, 16), torch.randn(20, 2, 40)
    starts, keys = (torch.tensor(x, dtype=torch.int32) for x in ([0, 7, 12], [0, 3, 20]))
    used, used_keys = torch.tensor([5, 5]), torch.tensor([3, 11])
    out, lse = shim.flash_attn_varlen_func(
        q, k, v, starts, keys, 7, 17, seqused_q=used, seqused_k=used_keys, causal=causal, return_softmax_lse=True
    )
    for rows, cols in ((slice(0, 5), slice(0, 3)), (slice(7, 12), slice(3, 14))):
        right, right_lse = dense(q[rows], k[cols], v[cols], causal)
        torch.testing.assert_close(out[rows].double(), right, rtol=0, atol=1e-5)
        torch.testing.assert_close(lse.T[rows].double(), right_lse, rtol=0, atol=1e-5)
    assert not out[5:7].any()


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_cache(paged: bool, packed: bool) -> None:
    q, cache, values = torch.randn(3, 4, 4, 16), torch.randn(6, 32, 2, 16), torch.randn(6, 32, 2, 16)
    lens = torch.tensor([32, 5, 2], dtype=torch.int32)
    where = torch.tensor([4, 0, 3], dtype=torch.int32)
    options: dict[str, Tensor] = {"page_table": where[:, None]} if paged else {"cache_batch_idx": where}
    query = q
    if packed:
        query = q.flatten(0, 1)
        options["cu_seqlens_q"] = torch.tensor([0, 4, 8, 12], dtype=torch.int32)
    out, lse = shim.flash_attn_with_kvcache(
        query, cache, values, cache_seqlens=lens, causal=True, return_softmax_lse=True, num_splits=3, **options
    )
    out = out.view(3, 4, 4, 16)
    lse = lse.T.view(3, 4, 4) if packed else lse.transpose(1, 2)
    for i, (entry, length) in enumerate(zip(where.tolist(), lens.tolist(), strict=True)):
        right, right_lse = dense(q[i], cache[entry, :length], values[entry, :length], causal=True)
        torch.testing.assert_close(out[i].double(), right, rtol=0, atol=1e-5)
        torch.testing.assert_close(lse[i].double(), right_lse, rtol=0, atol=1e-5)


def test_a_folder_of_tests_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_flash_attn.py").write_text(TESTS, encoding="utf-8")
    assert shim.main([str(tmp_path), "--backend", "TORCH_SDPA", "--", "-q", "-k", "not wrong"]) == 0
    said = capsys.readouterr().out
    assert "1 passed, 1 skipped" in said and "attnkit's calls have no k, v" in said
    report = tmp_path / "report.json"
    assert shim.main([str(tmp_path), "--backend", "TORCH_SDPA", "--json", str(report), "--", "-q"]) == 1
    counted = json.loads(report.read_text(encoding="utf-8"))
    assert (counted["passed"], counted["failed"], counted["finished"]) == (1, ["test_flash_attn.py::test_wrong"], True)
    assert counted["skipped"] == {"attnkit's calls have no k, v": 1} and "torch" in counted["versions"]
    assert "1 failed, 1 passed, 1 skipped" in capsys.readouterr().out
