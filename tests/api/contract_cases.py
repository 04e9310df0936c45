"""Kinds of calls that once came out wrong, by name: `problems(backend, provider)` runs those that a provider claims.

As a script, `contract_cases.py PROVIDER BACKEND …`: a JSON object with the problem of each case ("" where it is right), and
"refused" where the provider does not claim it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from attnkit import api
from attnkit.errors import UnsupportedError
from attnkit.selftest.baseline import baselines
from attnkit.selftest.reference import reference
from attnkit.selftest.tolerance import judge
from attnkit.spec import AttentionOutput, PagedAttention, Softmax, TreeAttention
from tools.fuzz.build import build
from tools.fuzz.calls import problem
from tools.fuzz.draws import Draw
from tools.kernels.interpreter import lean

PAGED = Draw(kv_heads=2, group=5, seqs=((1, 40), (3, 18), (7, 7), (0, 9)), lse=True)
FEATURES = Draw(kv_heads=2, group=2, seqs=((1, 33), (4, 20)), alibi=True, sinks=True, lse=True)
MORE = Draw(group=2, lse=True, out="inside")
MANY = Draw(op="dual_chunk", head_dim=32, head_dim_v=32, lse=True, seqs=((5, 3), (1, 70), (2, 0)))
PACKED = Draw(op="varlen", block_size=1, lse=True)

CASES: dict[str, Draw] = {
    "views": replace(PAGED, views=True),
    "views-slopes-sinks": replace(FEATURES, views=True),
    "views-sinks": replace(FEATURES, alibi=False, views=True),
    "views-decodes": replace(PAGED, seqs=((1, 90), (1, 17), (1, 0)), views=True),
    "views-packed": replace(PACKED, views=True, kv_heads=2, seqs=((3, 5), (2, 40))),
    "views-mla": Draw(
        op="mla_decode", dtype="float16", head_dim=576, head_dim_v=512, group=4, views=True, seqs=((1, 33), (2, 17))
    ),
    "views-tree": Draw(op="tree", views=True, seqs=((8, 30), (3, 20))),
    "views-dual": replace(MANY, views=True, group=3),
    "views-differential": Draw(op="differential", kv_heads=2, group=2, views=True, seqs=((1, 33), (4, 20))),
    "fused-queries": replace(PAGED, query="fused"),
    "queries-heads-outside": replace(PAGED, query="turned", out="turned"),
    "caches-side-by-side": replace(PAGED, caches="stacked"),
    "caches-heads-outside": replace(PAGED, caches="turned"),
    "padded-queries": replace(PAGED, padding=3),
    "padded-queries-packed": replace(PACKED, padding=3, seqs=((3, 5), (2, 40))),
    "shared-blocks": replace(PAGED, shared=True, seqs=((1, 40), (3, 48), (20, 47))),
    "more-queries-2": replace(MORE, seqs=((2, 1),)),
    "more-queries-17": replace(MORE, seqs=((17, 8), (1, 4))),
    "more-queries-tile": replace(MORE, seqs=((64, 10),)),
    "more-queries-tiles": replace(MORE, seqs=((128, 1), (128, 60))),
    "more-queries-window": replace(MORE, seqs=((70, 10), (3, 1)), window=(4, 0)),
    "more-queries-window-ahead": replace(MORE, seqs=((70, 10), (3, 1)), causal=False, window=(4, 2)),
    "more-queries-all-keys": replace(MORE, seqs=((70, 10), (3, 1)), causal=False),
    "more-queries-packed": replace(PACKED, seqs=((128, 64), (1, 1), (3, 0))),
    "more-queries-packed-half": replace(PACKED, dtype="float16", seqs=((17, 8), (2, 1), (5, 9))),
    "more-queries-dual": MANY,
    "more-queries-dual-half": replace(MANY, dtype="float16", group=4),
    "more-queries-mla": Draw(
        op="mla_decode", dtype="float16", head_dim=576, head_dim_v=512, lse=True, seqs=((3, 1), (2, 0), (1, 9))
    ),
    "more-queries-tree": Draw(op="tree", lse=True, seqs=((3, 1), (3, 0), (8, 9))),
    "more-queries-differential": Draw(op="differential", kv_heads=2, seqs=((3, 1), (2, 0), (4, 9))),
    "no-keys": replace(MORE, seqs=((3, 0), (1, 0))),
    "no-keys-packed": replace(PACKED, seqs=((3, 0), (1, 0))),
    "no-keys-sinks": replace(MORE, seqs=((1, 0), (1, 20)), sinks=True),
    "no-keys-sinks-prefill": replace(MORE, seqs=((3, 0), (2, 0)), sinks=True),
    "window-of-2^31": replace(PAGED, causal=False, window=(-1, (1 << 31) - 1)),
    "window-past-2^32": replace(PAGED, window=((1 << 32) + 3, 0)),
    "window-of-maxsize": replace(PAGED, window=(sys.maxsize, 0)),
    "window-of-2^30": replace(PAGED, causal=False, window=((1 << 30) - 1, (1 << 30) - 1)),
    "tree-window": Draw(op="tree", seqs=((8, 40), (3, 3)), window=(5, 0)),
    "tree-window-ahead": Draw(op="tree", seqs=((8, 40),), window=(5, 1)),
    "tree-mods": Draw(op="tree", seqs=((8, 40),), mods=True),
    "tree-alibi-sinks": Draw(op="tree", seqs=((1, 20), (4, 9)), alibi=True, sinks=True, lse=True),
    "fnuz-e4m3": replace(PAGED, cache="float8_e4m3fnuz"),
    "fnuz-e5m2": replace(PAGED, cache="float8_e5m2fnuz"),
}


def tree_in_a_window(backend: str, provider: str | None, device: str = "cpu") -> str:
    """60 equal keys, 3 nodes, a window of 8: no node sees the values, which lie before position 40."""
    query, key, value = torch.ones(3, 1, 16), torch.ones(4, 16, 1, 16), torch.ones(4, 16, 1, 16)
    value.view(64, 16)[40:] = 0.0
    table, lens, starts = (torch.tensor(x, dtype=torch.int32) for x in ([[0, 1, 2, 3]], [60], [0, 3]))
    tensors = (x.to(device) for x in (query, key, value, table, lens, starts))
    batch = PagedAttention(*tensors, 3, 60, Softmax(0.25, window=(8, 0)))
    out = ran(TreeAttention(batch, torch.ones(3, 3).tril().bool().to(device)), backend, provider).out
    return "" if not out.any() else f"came out as {out[:, 0, 0].tolist()}"


def capped_in_float32(backend: str, provider: str | None, device: str = "cpu") -> str:
    """A softcap far above the scores: tanh near 0, by the self-test's own rule."""
    for softcap in (30.0, 50.0):
        call = build(Draw(group=2, seqs=((1, 97), (5, 41)), softcap=softcap, lse=True), device).call
        wrong = judge(ran(call, backend, provider), reference(call), baselines(call), call.spec()).reason
        if wrong:
            return f"softcap {softcap}: {wrong}"
    return ""


SPECIAL = {"tree-in-a-window": tree_in_a_window, "softcap-float32": capped_in_float32}


def ran(call, backend: str, provider: str | None):  # type: ignore[no-untyped-def]
    """The checked call, on one provider."""
    from attnkit.backends import registry

    api.check(call)
    return registry.get(backend).run(call, provider)


def composed_dual_chunk(backend: str, provider: str | None, device: str = "cpu") -> str:
    """Three attentions over a copy, with a padded row, planned once and run again after the lengths have changed."""
    if backend != "DUAL_CHUNK_FLASH_ATTN":
        raise UnsupportedError("one backend's own way")
    from attnkit.kernels.triton.dual_chunk.plan import plan
    from attnkit.kernels.triton.launch import run_all

    float8 = Draw(op="dual_chunk", dtype="float16", cache="float8_e4m3fn", head_dim=32, head_dim_v=32, lse=True)
    call = build(replace(float8, seqs=((1, 96), (60, 130), (1, 63), (1, 0), (9, 5))), device).call
    out, lse, launches, name = plan(call, composed=True)
    assert name.startswith("triton_dual_chunk_composed"), name
    for lengths in ((0, 64, 1, 0, 3), (96, 40, 2, 0, 0)):
        call.batch.seq_lens.copy_(torch.tensor(lengths, dtype=torch.int32))
        out.fill_(torch.nan)
        run_all(launches)
        wrong = judge(AttentionOutput(out, lse, name), reference(call), baselines(call), call.spec()).reason
        if wrong or device == "cpu":
            return f"lengths {lengths}: {wrong}" if wrong else ""
    return ""


SPECIAL["composed-dual-chunk"] = composed_dual_chunk


def problems(backend: str, provider: str | None, *names: str, device: str = "cpu") -> dict[str, str]:
    """What is wrong with each case of these names (none: all); "refused" where the provider does not claim it."""
    found = {}
    for name, case in {**CASES, **SPECIAL}.items():
        if names and name not in names:
            continue
        try:
            found[name] = (
                problem(case, backend, provider, device) if isinstance(case, Draw) else case(backend, provider, device)
            )
        except UnsupportedError:
            found[name] = "refused"
    return found


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        lean()
    print(json.dumps({name: problems(name, sys.argv[1]) for name in sys.argv[2:]}))
