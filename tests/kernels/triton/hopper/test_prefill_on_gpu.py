"""The sm_90 prefill against the portable kernel, where such a card is; the self-test holds both to float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="torch is not installed here")
pytest.importorskip("triton", reason="Triton is not installed here")

import torch

from attnkit.bench.workloads import Shape, paged_call
from attnkit.kernels.triton.dual_chunk import composed_plan as composed
from attnkit.kernels.triton.dual_chunk import plan as dual_chunk
from attnkit.kernels.triton.paged import plan as paged_plan
from attnkit.kernels.triton.tile_sizes import Tile
from attnkit.spec import DualChunkAttention, PagedAttention, Softmax, VarlenAttention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="needs a card of sm_90; the last self-test on one is in docs/reports/h100",
    ),
]

PORTABLE = Tile(64, 64, 4, 2)
QUERY_LENS, SEQ_LENS = (100, 1000, 1, 257), (100, 1700, 700, 2049)


def paged(head_dim: int, **options: object) -> PagedAttention:
    """A mixed batch whose unused slots hold NaN."""
    shape = Shape("", QUERY_LENS, SEQ_LENS, head_dim=head_dim, **options)  # type: ignore[arg-type]
    call = paged_call(shape, torch.bfloat16)
    for seq, length in enumerate(SEQ_LENS):
        if slot := length % shape.block_size:
            block = int(call.block_table[seq, length // shape.block_size])
            call.key_cache[block, slot:] = call.value_cache[block, slot:] = float("nan")
    return replace(call, return_lse=True)


def agree(ours: tuple, portable: tuple, lse: float = 1e-3) -> None:
    (out, found, name), (expected, expected_lse, other) = ours, portable
    assert "gluon_hopper_prefill" in name
    assert "gluon" not in other
    assert torch.isfinite(out).all(), "something was not written, or a NaN came through"
    assert ((out - expected).float().norm() / expected.float().norm()) < 6e-3
    torch.testing.assert_close(found, expected_lse, rtol=0, atol=lse)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
def test_block_sizes(head_dim: int, block_size: int) -> None:
    call = paged(head_dim, block_size=block_size)
    call = replace(call, out=torch.full_like(call.query, float("nan")))
    agree(paged_plan.paged(call), paged_plan.paged(replace(call, out=None), prefill_tile=PORTABLE))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [(-1, -1), (255, 0), (100, 0), (64, 32)])
def test_masks(head_dim: int, causal: bool, window: tuple[int, int]) -> None:
    call = paged(head_dim)
    call = replace(call, softmax=replace(call.softmax, causal=causal, window=window))
    agree(paged_plan.paged(call), paged_plan.paged(call, prefill_tile=PORTABLE))


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 1), (24, 8), (40, 8)])
def test_groups(heads: int, kv_heads: int) -> None:
    call = paged(128, num_heads=heads, num_kv_heads=kv_heads)
    agree(paged_plan.paged(call), paged_plan.paged(call, prefill_tile=PORTABLE))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("causal", [True, False])
def test_packed_keys(head_dim: int, causal: bool) -> None:
    def starts(lengths: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device="cuda")

    def random(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, head_dim, dtype=torch.bfloat16, device="cuda")

    key, value = random(sum(SEQ_LENS) + 40, 8), random(sum(SEQ_LENS) + 40, 8)
    key[sum(SEQ_LENS) :] = value[sum(SEQ_LENS) :] = float("nan")
    call = VarlenAttention(
        query=random(sum(QUERY_LENS), 32),
        key=key,
        value=value,
        query_start_loc=starts(QUERY_LENS),
        key_start_loc=starts(SEQ_LENS),
        max_query_len=max(QUERY_LENS),
        max_seq_len=max(SEQ_LENS),
        softmax=Softmax(head_dim**-0.5, causal=causal),
        return_lse=True,
    )
    agree(paged_plan.varlen(call), paged_plan.varlen(call, prefill_tile=PORTABLE))


@pytest.mark.parametrize("at_once", [1, 3, 4])
@pytest.mark.parametrize("original", [None, 512])
def test_dual_chunk_composed_of_it(monkeypatch: pytest.MonkeyPatch, at_once: int, original: int | None) -> None:
    """Tokens in one to four chunks, sequences without a chunk before; with little room, key heads in turn."""
    call = paged(128, num_heads=28, num_kv_heads=4)
    call = replace(call, out=torch.full_like(call.query, float("nan")))
    angles = torch.outer(torch.arange(1200.0), 1e6 ** -(torch.arange(64) / 64))
    dual = DualChunkAttention(call, 640, 63, angles.cos().cuda(), angles.sin().cuda(), original)
    monkeypatch.setattr(composed, "MOST_BYTES", at_once * composed.bytes_a_head(dual))
    portable = dual_chunk.run(replace(dual, paged=replace(call, out=None)), composed=False)
    agree(dual_chunk.run(dual, composed=True), portable, lse=2e-2)
