"""The contract of a call: honoured with the right value, or refused with a `UsageError` that names the argument."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed here")

import torch

from attnkit import api
from attnkit.backends import registry
from attnkit.errors import UnsupportedError, UsageError
from attnkit.spec import NO_WINDOW, Call, PagedAttention, Softmax, VarlenAttention
from tools.fuzz.build import build
from tools.fuzz.draws import Draw

SCRIPT = Path(__file__).with_name("contract_cases.py")
TORCH_REFUSES = {
    "composed-dual-chunk",
    "softcap-float32",
    "tree-mods",
    "views-dual",
    "views-differential",
    "more-queries-dual",
    "more-queries-dual-half",
    "more-queries-differential",
}
FLEX = (
    "views-slopes-sinks",
    "padded-queries",
    "more-queries-17",
    "more-queries-tree",
    "no-keys-sinks",
    "no-keys-sinks-prefill",
    "window-of-2^30",
    "tree-window",
    "tree-mods",
    "fnuz-e4m3",
    "tree-in-a-window",
    "softcap-float32",
)
INTERPRETED = {
    "TRITON_ATTN": ("views", "more-queries-tiles", "no-keys-sinks", "window-past-2^32", "softcap-float32", "fnuz-e4m3"),
    "TREE_ATTN": ("views-tree", "more-queries-tree"),
    "TRITON_MLA": ("views-mla", "more-queries-mla"),
    "DUAL_CHUNK_FLASH_ATTN": ("views-dual", "more-queries-dual", "more-queries-dual-half", "composed-dual-chunk"),
    "DIFFERENTIAL_FLASH_ATTN": ("views-differential", "more-queries-differential"),
}
"""Cases that the interpreter must have computed, not refused."""


def answers(provider: str, *backends: str, **environment: str) -> dict[str, dict[str, str]]:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), provider, *backends],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, **environment},
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found: dict[str, dict[str, str]] = json.loads(run.stdout)
    return found


def wrong(cases: dict[str, str]) -> dict[str, str]:
    return {name: problem for name, problem in cases.items() if problem not in ("", "refused")}


@pytest.fixture(scope="module")
def problems() -> Callable[..., dict[str, str]]:
    spec = spec_from_file_location("contract_cases", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., dict[str, str]] = module.problems
    return found


def test_calls_through_torch(problems: Callable[..., dict[str, str]]) -> None:
    found = problems("TORCH_SDPA", "torch")
    assert not wrong(found)
    assert {name for name, problem in found.items() if problem == "refused"} == TORCH_REFUSES


def test_calls_through_flex_attention(problems: Callable[..., dict[str, str]]) -> None:
    """Half a second each, so only what its own code decides."""
    assert problems("FLEX_ATTENTION", "torch", *FLEX) == dict.fromkeys(FLEX, "")


def test_calls_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton is not installed here")
    found = answers("attnkit-interpreter", *INTERPRETED, TRITON_INTERPRET="1")
    for backend, computed in INTERPRETED.items():
        assert not wrong(found[backend]), backend
        assert all(found[backend][name] == "" for name in computed), backend


PAGED = build(Draw(kv_heads=1, group=2, seqs=((1, 20), (3, 5)))).call
FLOAT8 = build(Draw(cache="float8_e4m3fn", group=2, seqs=((1, 20),))).call
PACKED = build(Draw(op="varlen", block_size=1, group=2, seqs=((3, 5),))).call
MLA = build(Draw(op="mla_decode", dtype="float16", head_dim=576, head_dim_v=512, seqs=((1, 20),))).call
TREE = build(Draw(op="tree", seqs=((3, 20),))).call
DUAL = build(Draw(op="dual_chunk", seqs=((3, 20),))).call
DIFFERENTIAL = build(Draw(op="differential", kv_heads=2, seqs=((3, 20),))).call


def like(call: Call, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
    """The call with one of its batch's tensors changed."""
    return call.with_batch(**{name: change(getattr(call.batch, name))})


def entry(at: int, value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x.view(-1)[at] = value
        return x

    return change


REFUSED: dict[str, tuple[Call, str]] = {
    "caches of two float8 formats": (
        like(FLOAT8, "value_cache", lambda x: x.to(torch.float8_e5m2)),
        "value_cache is float8_e5m2",
    ),
    "a float8 and a float16 cache": (like(FLOAT8, "value_cache", lambda x: x.half()), "value_cache is float16"),
    "a cache unlike the query": (like(PAGED, "key_cache", lambda x: x.bfloat16()), "key_cache is bfloat16; it must be float32"),
    "an MLA cache unlike the query": (like(MLA, "kv_cache", lambda x: x.float()), "kv_cache is float32"),
    "packed keys unlike values": (like(PACKED, "key", lambda x: x.half()), "key is float16; it must be float32"),
    "packed values unlike keys": (like(PACKED, "value", lambda x: x.half()), "value is float16; it must be float32"),
    "key starts of 64 bits": (like(PACKED, "key_start_loc", lambda x: x.long()), "key_start_loc must be int32, not int64"),
    "a softcap of infinity": (PAGED.with_softmax(softcap=math.inf), "softcap must be a finite number, 0 for none, not inf"),
    "a softcap below zero": (PAGED.with_softmax(softcap=-1.0), "softcap must be"),
    "a softcap that is no number": (PAGED.with_softmax(softcap=math.nan), "softcap must be"),
    "a scale of infinity": (PAGED.with_softmax(softmax_scale=math.inf), "softmax_scale must be a finite number"),
    "a window below -1": (PAGED.with_softmax(window=(-2, 0)), r"window \(-2, 0\) must be two integers"),
    "a window in fractions": (PAGED.with_softmax(window=(8.5, 0)), "window"),
    "a window without an end": (PAGED.with_softmax(window=(math.inf, 0)), "window"),
    "a window of one side": (PAGED.with_softmax(window=(8,)), "window"),
    "a scale a column": (
        FLOAT8.with_batch(k_scale=torch.ones(64)),
        r"k_scale must be a finite number above 0.*a tensor \[64\]",
    ),
    "a value scale a head": (FLOAT8.with_batch(v_scale=torch.ones(1)), r"v_scale must be .*a tensor \[1\]"),
    "a scale of zero": (FLOAT8.with_batch(k_scale=0.0), "k_scale must be a finite number above 0, not 0.0"),
    "a scale without a float8 cache": (PAGED.with_batch(v_scale=2.0), "a v_scale of 2.0 needs a float8 cache"),
    "an MLA scale that is no number": (MLA.with_batch(kv_scale=math.nan), "kv_scale must be"),
    "slopes that are integers": (
        PAGED.with_softmax(alibi_slopes=torch.ones(2, dtype=torch.int32)),
        "alibi_slopes must be float32",
    ),
    "sinks of another length": (PAGED.with_softmax(sinks=torch.ones(3)), r"sinks \[3\] must be \[2\]"),
    "sinks elsewhere": (PAGED.with_softmax(sinks=torch.ones(2, device="meta")), "sinks is on meta, query on cpu"),
    "a tree elsewhere": (replace(TREE, tree_mask=TREE.tree_mask.to("meta")), "tree_mask is on meta"),
    "cosines elsewhere": (replace(DUAL, rope_cos=DUAL.rope_cos.to("meta")), "rope_cos is on meta"),
    "a norm elsewhere": (replace(DIFFERENTIAL, norm_weight=torch.ones(128, device="meta")), "norm_weight is on meta"),
    "a norm of one head": (replace(DIFFERENTIAL, norm_weight=torch.ones(64)), r"norm_weight \[64\] must be \[128\]"),
    "a trained length of zero": (replace(DUAL, original_max_position=0), "original_max_position"),
    "an out that overlaps itself": (
        PAGED.with_batch(out=torch.zeros(1, 2, 64).expand(4, 2, 64)),
        "out has a stride of 0",
    ),
    "an out over the query": (PAGED.with_batch(out=PAGED.batch.query), "out lies where query does"),
    "a block that is not there": (
        like(PAGED, "block_table", entry(0, 99)),
        r"block_table\[0, 0\] is 99; the cache has \d+ blocks",
    ),
    "a block below zero": (like(PAGED, "block_table", entry(0, -1)), r"block_table\[0, 0\] is -1"),
    "a length below zero": (like(PAGED, "seq_lens", entry(0, -1)), "seq_lens holds -1"),
    "a length over the longest": (like(PAGED, "seq_lens", entry(0, 21)), "seq_lens holds 21"),
    "starts that go down": (like(PAGED, "query_start_loc", entry(1, -1)), "query_start_loc has a sequence of -1 tokens"),
    "starts past the queries": (like(PAGED, "query_start_loc", entry(2, 9)), "query_start_loc ends with 9; query has 4 tokens"),
    "starts that begin late": (like(PAGED, "query_start_loc", entry(0, 1)), "query_start_loc starts with 1"),
    "a sequence over the longest": (
        PAGED.with_batch(max_query_len=2),
        "sequence of 3 tokens; lengths lie in 0..2, max_query_len",
    ),
    "keys past the last": (like(PACKED, "key_start_loc", entry(1, 9)), "key_start_loc ends with 9; key has 5 tokens"),
    "a longest that is a tensor": (PAGED.with_batch(max_seq_len=torch.tensor(20)), "max_seq_len must be a Python int"),
    "blocks of no token": (
        like(like(PAGED, "key_cache", lambda x: x[:, :0]), "value_cache", lambda x: x[:, :0]),
        "blocks of no token",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_backend_could_compute_is_refused_by_name(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises(UsageError, match=words):
        api.run(call, "TORCH_SDPA")


def test_what_is_never_read_may_be_anything() -> None:
    """Table entries past a sequence's end, and those of a sequence without new tokens."""
    call = build(Draw(seqs=((1, 20), (0, 5), (2, 0)))).call
    table = torch.full((3, 4), -7, dtype=torch.int32)
    table[0, :2] = call.batch.block_table[0, :2]
    assert isinstance(call, PagedAttention)
    wide = replace(call, block_table=table)
    assert torch.equal(api.run(wide, "TORCH_SDPA").out, api.run(call, "TORCH_SDPA").out)


@pytest.mark.parametrize("side", [1 << 30, (1 << 31) - 1, (1 << 32) + 3, sys.maxsize])
def test_a_window_longer_than_any_sequence_is_none(side: int) -> None:
    assert Softmax(1.0, window=(side, side)).window == NO_WINDOW
    assert Softmax(1.0, window=(4, side)).window == (4, -1)
    assert Softmax(1.0, window=((1 << 30) - 1, 0)).window == ((1 << 30) - 1, 0)


def test_a_batch_beyond_a_grid() -> None:
    """More decodes than CUDA has programs in one direction of a grid."""
    number = 66_000
    query = torch.randn(number, 1, 16)
    cache = torch.randn(3, 16, 1, 16)
    table = (torch.arange(number, dtype=torch.int32) % 3)[:, None]
    starts = torch.arange(number + 1, dtype=torch.int32)
    lens = torch.full((number,), 16, dtype=torch.int32)
    call = PagedAttention(query, cache, cache, table, lens, starts, 1, 16, Softmax(0.25))
    keys = cache.squeeze(2)[table[:, 0].long()]
    p = torch.softmax(0.25 * torch.einsum("nhd,nkd->nhk", query, keys), -1)
    torch.testing.assert_close(api.run(call, "TORCH_SDPA").out, torch.einsum("nhk,nkd->nhd", p, keys), rtol=0, atol=1e-5)
    with pytest.raises(UnsupportedError, match="66000 queries by 1056000 keys of the batch take 259 GiB"):
        api.run(call, "FLEX_ATTENTION")


def test_a_launch_beyond_a_grid_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed here")
    from attnkit.kernels.triton import launch
    from attnkit.kernels.triton.paged.plan import plan_paged

    call = build(Draw(seqs=((1, 20),) * 7)).call
    assert isinstance(call, PagedAttention)
    (whole,) = plan_paged(call, splits=1)[2]
    monkeypatch.setattr(launch, "GRID_Z", 3)
    parts = plan_paged(call, splits=1)[2]
    assert [part.grid[2] for part in parts] == [3, 3, 1]
    for name in ("seq_lens", "query_start_loc", "table"):
        firsts = [part.args[name].data_ptr() - whole.args[name].data_ptr() for part in parts]
        assert firsts == [at * whole.args[name].stride(0) * 4 for at in (0, 3, 6)]


def test_packing_leaves_out_queries_that_no_key_precedes() -> None:
    from attnkit.backends import xformers

    starts, keys = (torch.tensor(x, dtype=torch.int32) for x in ([0, 2, 19, 19, 20], [0, 1, 9, 12, 12]))
    some = torch.zeros(20, 1, 16)
    call = VarlenAttention(some, some[:12], some[:12], starts, keys, 17, 8, Softmax(1.0))
    assert list(xformers._parts(call, keys)) == [([(1, 2), (11, 19)], [(0, 1), (1, 9)])]
    free = replace(call, softmax=Softmax(1.0, causal=False))
    assert list(xformers._parts(free, keys)) == [([(0, 2), (2, 19)], [(0, 1), (1, 9)])]


def test_new_keys_go_into_a_view_of_a_cache() -> None:
    both = torch.zeros(3, 2, 4, 1, 8)
    slots = torch.tensor([[5, 9], [-1, 9], [2, 9]])[:, 0]
    new = torch.randn(3, 1, 8)
    api.write_kv_cache(new, 2 * new, both[:, 0], both[:, 1], slots)
    flat = both.transpose(1, 2).reshape(12, 2, 8)
    assert torch.equal(flat[[5, 2]], torch.stack((new, 2 * new), 2)[[0, 2], 0])
    assert flat.any(-1).any(-1).sum() == 2
    with pytest.raises(UsageError, match="slot_mapping holds 12; the caches have slots 0 to 11"):
        api.write_kv_cache(new, new, both[:, 0], both[:, 1], slots + 7)
    with pytest.raises(UsageError, match=r"k_scale must be a finite number above 0, of the whole cache, not a tensor \[8\]"):
        api.write_kv_cache(new, new, both[:, 0], both[:, 1], slots, torch.ones(8))


def test_a_format_that_only_another_provider_reads_goes_there() -> None:
    """The C++ kernels, first where they are compiled, read no fnuz cache; torch does."""
    backend = registry.get("TORCH_SDPA")
    call = build(Draw(cache="float8_e4m3fnuz")).call
    installed = dict.fromkeys(backend.requirements, "99")
    from attnkit.backends.torch_device import device_of

    assert backend.require(call, device_of(call.batch.query), None, installed).name == "torch"
    assert backend.require(FLOAT8, device_of(call.batch.query), None, installed).name == "attnkit-cpu"
    with pytest.raises(UnsupportedError, match="in the fnuz format"):
        backend.run(call, "attnkit-cpu")


def test_a_library_that_takes_no_strides_gets_none() -> None:
    from attnkit.backends.torch_device import with_contiguous_indices

    call = build(Draw(views=True, alibi=True, sinks=True, group=2, seqs=((1, 20), (2, 5)))).call
    plain = with_contiguous_indices(call)
    for name in ("block_table", "seq_lens", "query_start_loc"):
        given, found = getattr(call.batch, name), getattr(plain.batch, name)
        assert not given.is_contiguous() and found.is_contiguous() and torch.equal(given, found)
    assert plain.batch.softmax.sinks.is_contiguous() and plain.batch.softmax.alibi_slopes.is_contiguous()
    assert with_contiguous_indices(plain) is plain
