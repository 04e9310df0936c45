"""FlashInfer's wrappers, played by plain loops over the arguments they get: page tables, layouts, masks, scales, base-2 sums.

The stand-ins know nothing of attnkit's calls. They do what FlashInfer 0.6.13 documents, and what its kernels leave in rows that
see no key: something in the output, -5e4 in the log-sum-exp.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

from attnkit.backends import flashinfer  # noqa: E402
from attnkit.backends.base import Capability  # noqa: E402
from attnkit.hardware.device import Device  # noqa: E402
from attnkit.selftest.cases import Case, cases  # noqa: E402
from attnkit.selftest.reference import reference  # noqa: E402
from attnkit.selftest.tensors import build  # noqa: E402
from attnkit.spec import Softmax, VarlenAttention  # noqa: E402

H100 = Device("nvidia", "gpu", "H100", "sm_90")
GARBAGE, NO_KEY = 7.0, -5e4


def rows(query, key, value, plan, k_scale: float = 1.0, v_scale: float = 1.0):
    """One sequence in FlashInfer's terms: query [new, heads, d] and its keys and values, packed."""
    new, heads, total = query.shape[0], query.shape[1], key.shape[0]
    group = heads // plan["num_kv_heads"]
    key, value = (x.double().repeat_interleave(group, dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), key) * plan["sm_scale"] * k_scale
    if plan["logits_soft_cap"]:
        scores = plan["logits_soft_cap"] * torch.tanh(scores / plan["logits_soft_cap"])
    at = torch.arange(total - new, total)[:, None]
    seen = torch.arange(total)[None] <= at if plan["causal"] else torch.ones(new, total, dtype=torch.bool)
    if plan["window_left"] >= 0:
        seen = seen & (torch.arange(total)[None] >= at - plan["window_left"])
    scores = scores.masked_fill(~seen, -math.inf)
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value) * v_scale
    lse = scores.logsumexp(-1).transpose(0, 1) / math.log(2.0)
    blind = ~seen.any(-1)
    out[blind], lse[blind] = GARBAGE, NO_KEY
    return out.to(query.dtype), lse.float()


class Wrapper:
    """What the wrappers share."""

    def __init__(self, workspace, layout: str = "NHD", **options) -> None:
        assert layout == "NHD" and workspace.dtype == torch.uint8 and not workspace.any()
        self.options = options

    def plan(self, **arguments) -> None:
        assert arguments["q_data_type"] in (torch.float16, torch.bfloat16)
        self.planned = arguments

    def of_pages(self, cache, start: int, end: int, last: int):
        pages = self.planned[self.indices][start:end].long()
        return cache[pages].flatten(0, 1)[: (end - start - 1) * self.planned["page_size"] + last]

    def over_pages(self, query, caches, starts, indptr, last, k_scale, v_scale):
        assert caches[0].dtype == self.planned["kv_data_type"] and caches[0].shape[1] == self.planned["page_size"]
        parts = [
            rows(
                query[starts[i] : starts[i + 1]],
                *(self.of_pages(cache, indptr[i], indptr[i + 1], last[i]) for cache in caches),
                self.planned,
                k_scale,
                v_scale,
            )
            for i in range(len(last))
        ]
        return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


class BatchPrefillWithPagedKVCacheWrapper(Wrapper):
    indices = "paged_kv_indices"

    def run(self, query, caches, *, return_lse, k_scale=1.0, v_scale=1.0):
        assert self.options["backend"] == ("fa2" if caches[0].element_size() == 1 else "auto") and return_lse
        starts, indptr = self.planned["qo_indptr"].tolist(), self.planned["paged_kv_indptr"].tolist()
        assert query.shape[0] == starts[-1]
        return self.over_pages(query, caches, starts, indptr, self.planned["paged_kv_last_page_len"].tolist(), k_scale, v_scale)


class BatchDecodeWithPagedKVCacheWrapper(Wrapper):
    indices = "indices"

    def run(self, query, caches, *, return_lse, k_scale=1.0, v_scale=1.0):
        assert self.options["use_tensor_cores"] and return_lse
        self.planned["causal"] = False  # it has no such argument: one token, at the end
        indptr = self.planned["indptr"].tolist()
        starts = list(range(query.shape[0] + 1))
        return self.over_pages(query, caches, starts, indptr, self.planned["last_page_len"].tolist(), k_scale, v_scale)


class BatchPrefillWithRaggedKVCacheWrapper(Wrapper):
    def run(self, query, key, value, *, return_lse):
        assert return_lse
        starts, ends = self.planned["qo_indptr"].tolist(), self.planned["kv_indptr"].tolist()
        parts = [
            rows(
                query[starts[i] : starts[i + 1]],
                *(x[ends[i] : ends[i + 1]] for x in (key, value)),
                self.planned,
            )
            for i in range(len(starts) - 1)
        ]
        return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


class BatchMLAPagedAttentionWrapper(Wrapper):
    indices = "kv_indices"

    def run(self, q_latent, q_rope, latent, rope, *, return_lse):
        plan = self.planned
        assert return_lse and q_latent.is_contiguous() and q_rope.is_contiguous()
        assert (plan["head_dim_ckv"], plan["head_dim_kpe"]) == (q_latent.shape[-1], q_rope.shape[-1])
        starts, indptr, lens = (plan[name].tolist() for name in ("qo_indptr", "kv_indptr", "kv_len_arr"))
        shared = {**plan, "num_kv_heads": 1, "logits_soft_cap": None, "window_left": -1}
        parts = []
        for i, length in enumerate(lens):
            last = length - (indptr[i + 1] - indptr[i] - 1) * plan["page_size"]
            c, pe = (self.of_pages(cache, indptr[i], indptr[i + 1], last)[:, None] for cache in (latent, rope))
            query = torch.cat((q_latent, q_rope), -1)[starts[i] : starts[i + 1]]
            parts.append(rows(query, torch.cat((c, pe), -1), c, shared))
        return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch):
    package, mla = ModuleType("flashinfer"), ModuleType("flashinfer.mla")
    for wrapper in (
        BatchPrefillWithPagedKVCacheWrapper,
        BatchDecodeWithPagedKVCacheWrapper,
        BatchPrefillWithRaggedKVCacheWrapper,
    ):
        setattr(package, wrapper.__name__, wrapper)
    mla.BatchMLAPagedAttentionWrapper = BatchMLAPagedAttentionWrapper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashinfer", package)
    monkeypatch.setitem(sys.modules, "flashinfer.mla", mla)
    monkeypatch.setattr(flashinfer, "_WORKSPACE_BYTES", 1024)
    flashinfer._workspace.cache_clear()
    yield
    flashinfer._workspace.cache_clear()


def answer(call):
    if call.op == "mla_decode":
        found = flashinfer._mla_wrapper(call)
        return found.out, found.lse
    return (flashinfer._ragged if call.op == "varlen" else flashinfer._paged)(call)[:2]


def claimed(capability: Capability) -> list[Case]:
    """The standard level's cases in one dtype, but for the long ones."""
    return [
        case
        for case in cases("standard", capability, H100, None)
        if case.dtype == "float16" and max(total for _, total in case.seqs) < 300 and case.content != "equal"
        if not case.edge and not case.far
    ]


@pytest.mark.parametrize(
    "case",
    [*claimed(flashinfer._PAGED), *claimed(flashinfer._MLA_WRAPPER)],
    ids=lambda case: f"{case.op}-{case.name}",
)
def test_the_standard_levels_cases_arrive_as_they_were_asked(case: Case) -> None:
    call = build(case)
    out, lse = answer(call)
    expected = reference(call)
    torch.testing.assert_close(out.double(), expected.out, atol=2e-3, rtol=2e-3)
    if case.lse:
        torch.testing.assert_close(lse.double(), expected.lse, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_rows_that_see_no_key_are_zero_with_minus_infinity(causal: bool) -> None:
    queries, keys = (torch.tensor(starts, dtype=torch.int32) for starts in ([0, 5, 8, 12], [0, 3, 3, 9]))
    generator = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(n, heads, 64, generator=generator).half() for n, heads in ((12, 4), (9, 2), (9, 2)))
    call = VarlenAttention(query, key, value, queries, keys, 5, 6, Softmax(0.125, causal=causal), return_lse=True)
    out, lse, kernel = flashinfer._ragged(call)
    expected = reference(call)
    assert flashinfer._rows_without_keys(call) == ([0, 1, 5, 6, 7] if causal else [5, 6, 7])
    assert kernel == "flashinfer.ragged" and expected.lse is not None
    torch.testing.assert_close(out.double(), expected.out, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse.double(), expected.lse, atol=1e-4, rtol=1e-5)


def test_the_kernels_that_ran_are_named() -> None:
    mixed = next(case for case in claimed(flashinfer._PAGED) if (case.op, case.name) == ("paged", "mixed"))
    decode = next(case for case in claimed(flashinfer._PAGED) if (case.op, case.name) == ("paged", "decode"))
    assert flashinfer._paged(build(mixed))[2] == "flashinfer.prefill+decode"
    assert flashinfer._paged(build(decode))[2] == "flashinfer.decode"
