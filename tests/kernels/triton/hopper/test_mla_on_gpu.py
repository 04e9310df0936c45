"""The sm_90 MLA decode against the portable kernel, where such a card is; the self-test holds both to float64."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("torch", reason="torch is not installed here")
pytest.importorskip("triton", reason="Triton is not installed here")

import torch

from attnkit.kernels.triton.hopper import mla_plan as hopper_mla
from attnkit.kernels.triton.mla import plan as mla_plan
from attnkit.kernels.triton.tile_sizes import Tile
from attnkit.spec import MlaDecode

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="needs a card of sm_90; the last self-test on one is in docs/reports/h100",
    ),
]

PORTABLE = Tile(64, 64, 8, 2)
SEQ_LENS = (1, 63, 64, 65, 128, 129, 1000, 2048)
"""None, one and several tiles; odd and even numbers of them; full and begun ones."""


def call_of(
    heads: int, block_size: int, query_len: int = 1, seq_lens: tuple[int, ...] = SEQ_LENS, dtype: torch.dtype = torch.bfloat16
) -> MlaDecode:
    """A batch whose unused slots hold NaN, its pages in a random order."""
    generator = torch.Generator("cuda").manual_seed(0)
    seq_lens = tuple(max(length, query_len) for length in seq_lens)
    pages = [-(-length // block_size) for length in seq_lens]
    order = torch.randperm(sum(pages) + 1, generator=generator, device="cuda")[: sum(pages)].to(torch.int32)
    cache = torch.randn(sum(pages) + 1, block_size, 576, generator=generator, device="cuda", dtype=torch.float32).to(dtype)
    table = torch.zeros(len(seq_lens), max(pages), dtype=torch.int32, device="cuda")
    for seq, (length, count, start) in enumerate(zip(seq_lens, pages, itertools.accumulate([0, *pages]), strict=False)):
        table[seq, :count] = order[start : start + count]
        if slot := length % block_size:
            cache[int(table[seq, count - 1]), slot:] = float("nan")
    tokens = len(seq_lens) * query_len
    return MlaDecode(
        query=torch.randn(tokens, heads, 576, generator=generator, device="cuda", dtype=torch.float32).to(dtype),
        kv_cache=cache,
        block_table=table,
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device="cuda"),
        query_start_loc=torch.arange(0, tokens + 1, query_len, dtype=torch.int32, device="cuda"),
        max_query_len=query_len,
        max_seq_len=max(seq_lens),
        kv_lora_rank=512,
        softmax_scale=192**-0.5,
        return_lse=True,
        out=torch.full((tokens, heads, 512), float("nan"), dtype=dtype, device="cuda"),
    )


def agree(call: MlaDecode, splits: int | None = None) -> None:
    assert hopper_mla.supports("sm_90", call)
    out, lse, name = mla_plan.run(call, splits=splits)
    ours = out.clone()
    expected, expected_lse, other = mla_plan.run(call, tile=PORTABLE)
    assert name.startswith("gluon_hopper_mla_decode")
    assert other.startswith("triton_mla_decode")
    assert torch.isfinite(ours).all(), "something was not written, or a NaN came through"
    assert (ours - expected).float().norm() / expected.float().norm() < 6e-3
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-3)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize("splits", [None, 1, 2, 8])
def test_block_sizes_and_splits(block_size: int, splits: int | None) -> None:
    agree(call_of(128, block_size), splits)


@pytest.mark.parametrize("heads", [8, 16, 40, 64, 128])
@pytest.mark.parametrize("query_len", [1, 2, 5])
def test_heads_and_tokens(heads: int, query_len: int) -> None:
    agree(call_of(heads, 64, query_len))


@pytest.mark.parametrize("splits", [1, 4])
def test_float16(splits: int) -> None:
    agree(call_of(128, 64, dtype=torch.float16), splits)


def test_the_same_answer_every_time() -> None:
    call = call_of(128, 64)
    first = mla_plan.run(call)[0].clone()
    for _ in range(20):
        assert torch.equal(mla_plan.run(call)[0], first)


def test_what_it_does_not_take_goes_to_the_portable_kernel() -> None:
    call = call_of(128, 64)
    wide = torch.empty(*call.query.shape[:2], 640, dtype=call.query.dtype, device="cuda")
    wide[..., :576] = call.query
    from dataclasses import replace

    out, _, name = mla_plan.run(replace(call, query=wide[..., :576]))
    assert name.startswith("triton_mla_decode")
    assert torch.isfinite(out).all()
