"""TORCH_SDPA, FLEX_ATTENTION and NO_ATTENTION through the public functions, and which kernel ran."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnkit import api
from attnkit.backends.torch_common import read_cache
from attnkit.errors import UnsupportedError, UsageError
from attnkit.selftest.cases import Case
from attnkit.selftest.reference import reference
from attnkit.selftest.tensors import build

CASE = Case("backend", "", "paged", "float32", 8, 2, 64, 64, 16, ((1, 70), (19, 60), (0, 0), (1, 1)))


def _close(result, call):
    torch.testing.assert_close(result.out.double(), reference(call).out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "kernel"), [("torch", "scaled_dot_product_attention"), ("flex", "flex_attention(eager)")])
@pytest.mark.parametrize("seqs", [CASE.seqs, ((1, 129), (1, 64), (1, 5))], ids=["mixed", "decode"])
def test_kernel_and_numbers(backend, kernel, seqs):
    call = build(replace(CASE, seqs=seqs))
    result = api.run(call, backend)
    assert result.kernel == kernel and result.out is call.out
    _close(result, call)


@pytest.mark.parametrize("changes", [{"alibi": True}, {"sinks": True, "lse": True}, {"window": (9, 0)}])
@pytest.mark.parametrize("new", [1, 16, 17], ids=["decode", "folded", "not-folded"])
def test_sdpa_folding_query_heads_changes_nothing(new, changes):
    call = build(replace(CASE, seqs=((new, 80), (new, 50)), **changes))
    result = api.run(call, "TORCH_SDPA")
    _close(result, call)
    if call.return_lse:
        torch.testing.assert_close(result.lse.double(), reference(call).lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "flex"])
def test_heads_before_tokens_in_memory_change_nothing(backend):
    call = build(CASE)
    turned = (cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in (call.key_cache, call.value_cache))
    key, value = turned
    assert torch.equal(
        api.run(replace(call, key_cache=key, value_cache=value, out=None), backend).out, api.run(call, backend).out
    )


def test_only_the_rows_that_are_read_are_copied():
    """A cache of a terabyte of addresses, one block of memory: whoever copies it whole does not get far."""
    block = torch.randn(1, 2, 16, 64).transpose(1, 2)
    cache = block.expand(1 << 27, -1, -1, -1)
    assert torch.equal(read_cache(cache, torch.tensor([5, 16 * 1000 + 3]), 1.0, torch.float32), block[0, [5, 3]])


def test_without_a_name_the_choice_is_made():
    call = build(CASE)
    assert api.choose(call) == "TORCH_SDPA"
    assert api.run(call).kernel == "scaled_dot_product_attention"


def test_a_named_backend_is_never_replaced():
    with pytest.raises(UnsupportedError, match="softcap"):
        api.run(build(replace(CASE, softcap=5.0)), "TORCH_SDPA")


def test_no_attention_returns_zeros():
    result = api.run(build(CASE), "NO_ATTENTION")
    assert result.kernel == "no_attention" and not result.out.any()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("query", torch.zeros(21, 7, 64), "query heads, 7, is not a multiple of the number of key heads, 2"),
        ("query", torch.zeros(21, 8, 32), r"num_kv_heads, 32\], as query \[21, 8, 32\]"),
        ("seq_lens", torch.ones(3, dtype=torch.int32), r"seq_lens \[3\] must be \[4\]"),
        ("block_table", torch.zeros(4, 9, dtype=torch.int64), "block_table must be int32, not int64"),
        ("max_seq_len", 9999, "max_seq_len 9999 is more than"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_shapes(field, value, words):
    with pytest.raises(UsageError, match=words):
        api.run(replace(build(CASE), out=None, **{field: value}), "TORCH_SDPA")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_written_keys_are_read_back(dtype):
    scale = 1.0 if dtype == torch.float32 else 0.25
    key, value = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    caches = [torch.zeros(4, 16, 2, 8).to(dtype) for _ in range(2)]
    api.write_kv_cache(key, value, *caches, torch.tensor([17, -1, 3]), scale, scale)
    for cache, new in zip(caches, (key, value), strict=True):
        flat = cache.float().flatten(0, 1) * scale
        torch.testing.assert_close(flat[[17, 3]], new[[0, 2]], rtol=0.07, atol=0.01)
        assert flat.any(-1).any(-1).sum() == 2
