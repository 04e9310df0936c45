"""The contract of a call on a GPU: every case of contract_cases.py on every provider there, and what only a GPU can show."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("torch", reason="torch is not installed here")

import torch

from attnkit import api
from attnkit.backends import registry
from attnkit.errors import UnsupportedError, UsageError
from attnkit.spec import PagedAttention, Softmax, VarlenAttention
from tools.fuzz.calls import fuzz, problem, providers
from tools.fuzz.draws import Draw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HERE = list(providers("cuda", ())) if torch.cuda.is_available() else []
EACH = pytest.mark.parametrize(("backend", "provider"), [pytest.param(b, p, id=f"{b.name}-{p.name}") for b, p in HERE])
DECODERS = ("TRITON_ATTN", "TORCH_SDPA", "XFORMERS", "FLASH_ATTN")


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    spec = spec_from_file_location("contract_cases", Path(__file__).with_name("contract_cases.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@EACH
def test_cases(cases: ModuleType, backend: object, provider: object) -> None:
    found = cases.problems(backend.name, provider.name, device="cuda")  # type: ignore[attr-defined]
    assert not {name: problem for name, problem in found.items() if problem not in ("", "refused")}


@EACH
def test_random_calls(backend: object, provider: object) -> None:
    number = 12 if backend.name == "FLEX_ATTENTION" else 150  # type: ignore[attr-defined]
    assert not fuzz(backend, provider, "cuda", number, seed=17, alike=10).wrong  # type: ignore[arg-type]


PREFILLS = {
    "tile": ((64, 10),),
    "tiles": ((128, 1), (128, 60)),
    "long": ((2048, 1000), (300, 0), (5, 9)),
    "none": ((300, 0), (64, 0)),
    "decodes": ((1, 5), (130, 4), (1, 0), (1, 300)),
}


@pytest.mark.parametrize("seqs", PREFILLS.values(), ids=PREFILLS)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("op", ["paged", "varlen"])
@pytest.mark.parametrize("window", [(-1, -1), (40, 0)])
def test_prefill_rows_without_a_key(op: str, head_dim: int, seqs: tuple[tuple[int, int], ...], window: tuple[int, int]) -> None:
    size = 1 if op == "varlen" else 16
    draw = Draw(
        op=op,  # type: ignore[arg-type]
        dtype="bfloat16",
        kv_heads=2,
        group=4,
        head_dim=head_dim,
        head_dim_v=head_dim,
        block_size=size,
        seqs=seqs,
        window=window,
        lse=True,
        out="inside",
        views=True,
    )
    assert problem(draw, "TRITON_ATTN", None, "cuda") == ""


@pytest.mark.parametrize("backend", DECODERS)
def test_more_decodes_than_a_grid_holds(backend: str) -> None:
    number = 66_000
    query = torch.randn(number, 1, 64, device="cuda", dtype=torch.float16)
    cache = torch.randn(3, 16, 1, 64, device="cuda", dtype=torch.float16)
    table = (torch.arange(number, dtype=torch.int32, device="cuda") % 3)[:, None]
    starts = torch.arange(number + 1, dtype=torch.int32, device="cuda")
    lens = torch.full((number,), 16, dtype=torch.int32, device="cuda")
    call = PagedAttention(query, cache, cache, table, lens, starts, 1, 16, Softmax(0.125))
    try:
        out = api.run(call, backend).out
    except UnsupportedError as refused:
        assert str(refused)
        return
    keys = cache.float().squeeze(2)[table[:, 0].long()]
    p = torch.softmax(0.125 * torch.einsum("nhd,nkd->nhk", query.float(), keys), -1)
    torch.testing.assert_close(out.float(), torch.einsum("nhk,nkd->nhd", p, keys), rtol=0, atol=4e-3)


def test_packed_sequences_without_any_key() -> None:
    starts = torch.tensor([0, 200, 264], dtype=torch.int32, device="cuda")
    none = torch.zeros(0, 2, 128, dtype=torch.bfloat16, device="cuda")
    query = torch.randn(264, 8, 128, dtype=torch.bfloat16, device="cuda")
    out = torch.full_like(query, torch.nan)
    call = VarlenAttention(query, none, none, starts, torch.zeros_like(starts), 200, 0, Softmax(0.1), return_lse=True, out=out)
    result = api.run(call, "TRITON_ATTN")
    assert not out.any() and bool(torch.isneginf(result.lse).all())


@pytest.mark.parametrize("op", ["paged", "tree"])
@pytest.mark.parametrize(("dtype", "head_dim"), [("float32", 192), ("float32", 64), ("bfloat16", 128), ("float16", 80)])
def test_flex_attention_runs_or_says_why_not(op: str, dtype: str, head_dim: int) -> None:
    for seqs in (((1, 50), (1, 17)), ((3, 50), (8, 9))):
        draw = Draw(
            op=op,  # type: ignore[arg-type]
            dtype=dtype,  # type: ignore[arg-type]
            kv_heads=2,
            group=2,
            head_dim=head_dim,
            head_dim_v=head_dim,
            seqs=seqs,
            lse=True,
        )
        try:
            assert problem(draw, "FLEX_ATTENTION", None, "cuda") == ""
        except UnsupportedError as refused:
            assert "cannot compile" in str(refused)


def test_tensors_of_two_devices_are_refused() -> None:
    registry.get("TRITON_ATTN")
    draw = Draw()
    from tools.fuzz.build import build

    call = build(draw, "cuda").call
    with pytest.raises(UsageError, match="seq_lens is on cpu, query on cuda:0"):
        api.run(call.with_batch(seq_lens=call.batch.seq_lens.cpu()), "TRITON_ATTN")
