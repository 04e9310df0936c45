"""What the standard level asks of whoever claims it, hole by hole: each of these was once asked by no case."""

from __future__ import annotations

import itertools
import platform
from dataclasses import replace
from functools import cache

import pytest

from attnkit.backends import registry
from attnkit.hardware.device import Device
from attnkit.selftest.cases import cases
from attnkit.selftest.tensors import build
from attnkit.spec import FEATURES, NO_WINDOW

CPU = Device("cpu", "cpu", "CPU", platform.machine())
OWN = (
    "TRITON_ATTN",
    "TRITON_MLA",
    "TREE_ATTN",
    "DUAL_CHUNK_FLASH_ATTN",
    "DIFFERENTIAL_FLASH_ATTN",
    "TORCH_SDPA",
    "FLEX_ATTENTION",
)


def capability(backend):
    return next(p.capability for p in registry.get(backend).providers if "cpu" in p.capability.archs)


@cache
def standard(backend, op=None):
    return [case for case in cases("standard", capability(backend), CPU, None) if op in (None, case.op)]


@pytest.mark.parametrize("backend", OWN)
def test_every_claimed_value_is_asked_in_every_dtype_and_beside_every_other(backend):
    claimed = capability(backend)
    for op, dtype in itertools.product(claimed.ops, claimed.dtypes):
        mine = [case for case in standard(backend, op) if case.dtype == dtype]
        assert len(mine) >= 30, (op, dtype)
        for name in ("kv_cache_dtype", "block_size"):
            values = {getattr(case, name) for case in mine}
            asked = {(case.content, getattr(case, name)) for case in mine if case.content in ("random", "sharp")}
            assert asked >= set(itertools.product(("random", "sharp"), values)), (op, dtype, name)
        if op != "varlen":
            assert {case.kv_cache_dtype for case in mine} == claimed.kv_cache_dtypes
        features = frozenset().union(*(case.features() for case in mine))
        has = {
            "mla_decode": {"lse"},
            "dual_chunk": {"lse"},
            "tree": claimed.features - {"non_causal", "window", "score_mod", "mask_mod"},
        }
        assert features >= has.get(op, claimed.features) & claimed.features & set(FEATURES), (op, dtype)


def test_an_engines_own_mla_decode_may_refuse_several_new_tokens():
    """vLLM's AMX_MLA takes one token a sequence; longer ones are its prefill's."""
    own = replace(capability("TRITON_MLA"), of_engine=True)
    for level in ("quick", "standard"):
        several = [case for case in cases(level, own, CPU, None) if max(new for new, _ in case.seqs) > 1]
        assert several and all(case.edge for case in several)
    assert any(not case.edge for case in standard("TRITON_MLA") if max(new for new, _ in case.seqs) > 1), "ours must take them"


def ratios(found):
    return {case.heads // case.kv_heads for case in found}


@pytest.mark.parametrize("backend", ["TRITON_ATTN", "TREE_ATTN", "DUAL_CHUNK_FLASH_ATTN", "DIFFERENTIAL_FLASH_ATTN"])
def test_ratios_that_are_no_powers_of_two(backend):
    assert ratios(standard(backend)) >= {1, 2, 5, 7, 8}


@pytest.mark.parametrize("op", ["paged", "mla_decode", "differential", "dual_chunk"])
def test_rows_without_a_key_and_a_few_new_tokens(op):
    backend = {"paged": "TRITON_ATTN", "mla_decode": "TRITON_MLA", "differential": "DIFFERENTIAL_FLASH_ATTN"}.get(
        op, "DUAL_CHUNK_FLASH_ATTN"
    )
    for dtype in capability(backend).dtypes:
        asked = {seq for case in standard(backend, op) if case.dtype == dtype for seq in case.seqs}
        assert (1, 0) in asked
        assert {new for new, total in asked if total > new} >= {1, 2, 4}
        lengths = {total for new, total in asked if new == 1}
        assert lengths >= {16, 48, 64, 128} | {49, 65, 129} | {47, 63, 127} if op == "paged" else lengths >= {48, 49}


def test_several_trees():
    trees = {case.tree for case in standard("TREE_ATTN", "tree")}
    assert {len(tree) for tree in trees} >= {1, 3, 8, 16, 17, 33}


def test_keys_unlike_queries_in_number():
    for dtype in ("float16", "bfloat16", "float32"):
        cross = [
            case for case in standard("TRITON_ATTN", "varlen") if case.dtype == dtype and any(n != t for n, t in case.seqs)
        ]
        assert {case.causal for case in cross} == {True, False}
        assert any(new > total for case in cross for new, total in case.seqs)


def test_unlike_scales_that_are_no_powers_of_two():
    case = next(c for c in standard("TRITON_ATTN", "paged") if c.kv_cache_dtype == "fp8_e4m3")
    call = build(case)
    assert call.k_scale != call.v_scale
    assert all(scale.hex().split("p")[0].rstrip("0") != "0x1." for scale in (call.k_scale, call.v_scale))


def test_features_together_over_a_split_context():
    every = [case for case in standard("TRITON_ATTN", "paged") if case.name.endswith("-split")]
    for one, other in itertools.combinations(("alibi", "sinks", "lse"), 2):
        paged = [case for case in standard("TRITON_ATTN", "paged") if getattr(case, one) and getattr(case, other)]
        assert paged, (one, other)
    assert any(case.sinks for case in every) and any(case.window != NO_WINDOW for case in every) and any(c.lse for c in every)
    for backend, op in (("TRITON_ATTN", "paged"), ("TRITON_MLA", "mla_decode"), ("DUAL_CHUNK_FLASH_ATTN", "dual_chunk")):
        assert any(c.lse and len(c.seqs) <= 2 and c.seqs[0][1] >= 300 and c.seqs[0][0] == 1 for c in standard(backend, op)), (
            backend
        )


def test_distances_head_sizes_offsets_and_the_composed_way():
    assert any(case.alibi and max(t for _, t in case.seqs) > 2048 for case in standard("TRITON_ATTN", "paged"))
    assert any(case.head_dim % 16 for case in standard("TRITON_ATTN", "paged"))
    for backend, op in (("TRITON_ATTN", "paged"), ("TRITON_MLA", "mla_decode"), ("TREE_ATTN", "tree")):
        assert any(case.far for case in standard(backend, op))
    long = [
        case
        for case in standard("DUAL_CHUNK_FLASH_ATTN")
        if max(new for new, _ in case.seqs) >= 128 and case.dtype != "float32"
    ]
    assert {case.lse for case in long} == {True, False} and len({case.chunk for case in long}) > 2


def test_offsets_of_a_far_case_are_past_two_to_the_31(monkeypatch):
    """Without its memory: the cache is a stand-in of as many elements that takes none."""
    import torch

    from attnkit.selftest import tensors

    monkeypatch.setattr(tensors, "FAR", 1 << 16)
    case = next(c for c in standard("TRITON_ATTN", "paged") if c.far)
    call = build(case)
    used = call.block_table[:, 0].min().item() * call.key_cache[0].numel()
    assert used > 1 << 16 and call.key_cache.numel() > used
    assert torch.isfinite(call.key_cache[call.block_table[0, 0].item(), 0]).all()
