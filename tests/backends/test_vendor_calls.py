"""What of the vendors' backends runs without their hardware: the conversions around the libraries' calls.

The libraries' own kernels are not run here; `attnkit selftest` does that on a card.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from attnkit.backends import flash_attn, flashinfer, ipex, mla, rocm, xformers  # noqa: E402
from attnkit.backends.registry import get  # noqa: E402
from attnkit.backends.torch_device import by_sequence, device_of, heads_first_lse, prefix_sum  # noqa: E402
from attnkit.errors import UnsupportedError  # noqa: E402
from attnkit.hardware.device import Device  # noqa: E402
from attnkit.selftest.reference import reference  # noqa: E402
from attnkit.spec import AttentionSpec, MlaDecode, PagedAttention, Softmax, VarlenAttention  # noqa: E402


def paged(query_lens: list[int], seq_lens: list[int], block_size: int = 16, **softmax) -> PagedAttention:
    """A batch over a permuted cache whose unused slots hold NaN."""
    generator = torch.Generator().manual_seed(3)
    pages = [-(-n // block_size) for n in seq_lens]
    order = torch.randperm(sum(pages) + 2, generator=generator).tolist()
    table = torch.zeros(len(seq_lens), max(pages), dtype=torch.int32)
    key, value = (torch.full((sum(pages) + 2, block_size, 2, 32), float("nan")) for _ in range(2))
    for i, n in enumerate(seq_lens):
        for j in range(pages[i]):
            block = table[i, j] = order.pop()
            used = min(block_size, n - j * block_size)
            key[block, :used] = torch.randn(used, 2, 32, generator=generator)
            value[block, :used] = torch.randn(used, 2, 32, generator=generator)
    return PagedAttention(
        query=torch.randn(sum(query_lens), 4, 32, generator=generator),
        key_cache=key,
        value_cache=value,
        block_table=table,
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        query_start_loc=prefix_sum(torch.tensor(query_lens)),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
        softmax=Softmax(32**-0.5, **softmax),
    )


@pytest.mark.parametrize("softmax", [{}, {"window": (7, 0)}, {"causal": False}, {"causal": False, "window": (3, 2)}])
def test_torch_xpus_path_computes_attention(softmax) -> None:
    call = paged([1, 5, 0, 20], [33, 9, 4, 20], **softmax)
    result = ipex._torch_xpu(call)
    expected = reference(call).out
    assert result.kernel == "torch.scaled_dot_product_attention(xpu)"
    torch.testing.assert_close(result.out.double(), expected.double(), atol=2e-6, rtol=0)


def test_torch_xpus_path_takes_packed_sequences() -> None:
    starts = torch.tensor([0, 4, 11], dtype=torch.int32)
    query, key, value = (torch.randn(11, heads, 32) for heads in (4, 2, 2))
    call = VarlenAttention(query, key, value, starts, starts, 7, 7, Softmax(0.2, causal=False))
    torch.testing.assert_close(ipex._torch_xpu(call).out.double(), reference(call).out.double(), atol=2e-6, rtol=0)


def test_the_device_of_a_cpu_tensor() -> None:
    found = device_of(torch.zeros(1))
    assert (found.vendor, found.kind) == ("cpu", "cpu") and found.arch


@pytest.mark.parametrize("name", ["FLASH_ATTN", "XFORMERS", "FLASHINFER", "ROCM_FLASH", "ROCM_AITER_FA"])
def test_a_call_outside_the_capability_is_refused_before_the_library_is_looked_for(name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"{name} cannot run this call: .*not on cpu"):
        get(name).run(paged([1], [5]))


@pytest.mark.parametrize("name", ["FLASHMLA", "CUTLASS_MLA", "FLASH_ATTN_MLA", "FLASHINFER_MLA", "ROCM_AITER_MLA"])
def test_mla_backends_refuse_the_cpu_and_paged_attention(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name} cannot run this call"):
        get(name).run(paged([1], [5]))


def mla_call(num_tokens: int, max_query_len: int) -> MlaDecode:
    return MlaDecode(
        query=torch.randn(num_tokens, 16, 576),
        kv_cache=torch.randn(3, 64, 576),
        block_table=torch.tensor([[2], [0]], dtype=torch.int32),
        seq_lens=torch.tensor([10, 64], dtype=torch.int32),
        query_start_loc=torch.tensor([0, num_tokens // 2, num_tokens], dtype=torch.int32),
        max_query_len=max_query_len,
        max_seq_len=64,
        kv_lora_rank=512,
        softmax_scale=0.07,
    )


def test_queries_by_sequence_need_equal_lengths() -> None:
    call = mla_call(4, 2)
    assert by_sequence(call).shape == (2, 2, 16, 576)
    assert torch.equal(by_sequence(call)[1, 0], call.query[2])
    with pytest.raises(UnsupportedError, match="2 new tokens in each of 2 sequences, not 3"):
        by_sequence(mla_call(3, 2))


@pytest.mark.parametrize(("block_size", "width"), [(64, 2), (16, 8), (128, 1)])
def test_cutlass_gets_whole_tiles_of_128_tokens(block_size: int, width: int) -> None:
    call = mla_call(2, 1)
    call = MlaDecode(**{**vars(call), "kv_cache": torch.randn(3, block_size, 576)})
    table = mla._padded_table(call)
    assert table.shape == (2, width) and torch.equal(table[:, :1], call.block_table)


def test_log_sum_exp_is_turned_and_an_empty_row_is_minus_infinity() -> None:
    lse = heads_first_lse(torch.tensor([[1.0, float("inf")], [2.0, 3.0]]))
    assert lse.tolist() == [[1.0, 2.0], [float("-inf"), 3.0]]


def test_prefix_sums() -> None:
    starts = prefix_sum(torch.tensor([3, 0, 2], dtype=torch.int32))
    assert starts.tolist() == [0, 3, 3, 5] and starts.dtype == torch.int32


def test_flashinfers_page_table() -> None:
    call = paged([1, 2, 3], [17, 32, 5])
    indptr, indices, last = flashinfer._pages(call, 16, [0, 2], [17, 32, 5])
    assert indptr.tolist() == [0, 2, 3] and last.tolist() == [1, 5]
    assert indices.tolist() == [*call.block_table[0].tolist(), call.block_table[2, 0].item()]


def test_xformers_rows_of_the_sequences_in_use() -> None:
    assert xformers._rows([(0, 2), (3, 5)], "cpu").tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("softmax", "window"),
    [
        (Softmax(1.0), (-1, -1)),
        (Softmax(1.0, window=(7, 0)), (7, 0)),
        (Softmax(1.0, window=(7, 4)), (7, 0)),
        (Softmax(1.0, causal=False, window=(7, 4)), (7, 4)),
        (Softmax(1.0, causal=False), (-1, -1)),
    ],
)
def test_flash_attentions_window(softmax: Softmax, window: tuple[int, int]) -> None:
    assert flash_attn._window(softmax) == window


H100 = Device("nvidia", "gpu", "H100", "sm_90")
MI300X = Device("amd", "gpu", "MI300X", "gfx942")


@pytest.mark.parametrize(
    ("capability", "device"),
    [(flash_attn._FA2, H100), (rocm._FLASH, MI300X), (rocm._AITER, MI300X)],
    ids=["fa2", "rocm", "aiter"],
)
def test_alibi_is_refused_without_a_causal_mask_where_it_means_distance(capability, device) -> None:
    both = AttentionSpec(block_size=256, features=frozenset({"alibi", "non_causal"}))
    assert [r.message for r in capability.reject(both, device)] == ["cannot honour alibi with non_causal"]
    assert capability.reject(AttentionSpec(block_size=256, features=frozenset({"alibi"})), device) == ()


@pytest.mark.parametrize(
    "capability", [xformers._XFORMERS, xformers._TORCH, flashinfer._PAGED], ids=["xformers", "torch", "fi"]
)
def test_a_window_without_a_causal_mask_is_refused_where_it_only_slides_under_one(capability) -> None:
    both = AttentionSpec(features=frozenset({"window", "non_causal"}))
    assert [r.code for r in capability.reject(both, H100)] == ["feature"]
