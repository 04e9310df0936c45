"""The cross-compile report: it asks what is claimed, a kernel that is not what it must be is not ok, the table follows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed here")

from attnkit.backends.registry import all_backends
from attnkit.backends.triton_common import own
from attnkit.kernels.triton import targets
from attnkit.select import evidence
from attnkit.select.node import find_node
from tools.kernels import cross_compile

REPORTS = sorted((Path(__file__).parents[3] / "docs" / "reports" / "cross-compile").glob("*.json"))
CLAIMED = {
    (backend.name, target)
    for target in targets.TARGETS
    for backend in all_backends()
    if own(backend, find_node(arch=target).device) is not None
}


def first(name: str, kernel: str, code: str = "gfx942") -> tuple:
    case = next(c for c in (*cross_compile._EVERY_DTYPE, *cross_compile._ONE_DTYPE) if c.name == name)
    found = cross_compile.launches(case, code).values()
    return next(launch for launch in found if launch.kernel.fn.__name__ == kernel), case


def test_every_claimed_target_is_asked_about_with_every_operation() -> None:
    assert {backend for backend, _ in CLAIMED} == {
        *("TRITON_ATTN", "TREE_ATTN", "TRITON_MLA", "ROCM_FLASH", "TURING_ATTN"),
        *("DUAL_CHUNK_FLASH_ATTN", "DIFFERENTIAL_FLASH_ATTN"),
    }
    for backend in all_backends():
        device = find_node(arch="gfx942").device
        capability = own(backend, device)
        if capability is not None:
            asked = {case.op for case in cross_compile.questions(capability, device)}
            assert asked == capability.ops - {"varlen"}, "varlen is paged_prefill with other strides"


def test_a_small_kernel_really_compiles() -> None:
    launch, case = first("decode", "merge_splits")
    row = cross_compile.compiled(launch, "gfx942", case)
    assert row["ok"] and row["reason"] == "" and row["matrix"] == {}
    assert row["registers"] > 0 and row["code_bytes"] > 0 and row["instructions"] > 20


def test_a_gluon_kernel_has_no_first_stage_and_is_still_judged() -> None:
    case = replace(next(c for c in cross_compile._EVERY_DTYPE if c.name == "prefill"), dtype="bfloat16")
    launch = next(
        each for each in cross_compile.launches(case, "sm_90").values() if each.kernel.fn.__name__ == "hopper_prefill"
    )
    row = cross_compile.compiled(launch, "sm_90", case)
    assert row["ok"] and sum(row["matrix"].values()) > 0, row


def test_too_much_shared_memory_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    launch, case = first("decode", "merge_splits")
    facts = replace(targets.TARGETS["gfx942"], shared_limit=1)
    monkeypatch.setitem(targets.TARGETS, "gfx942", facts)
    row = cross_compile.compiled(launch, "gfx942", case)
    assert not row["ok"] and "shared memory" in row["reason"]


def test_what_does_not_compile_is_a_row_and_not_an_end() -> None:
    launch, case = first("decode", "merge_splits")
    row = cross_compile.compiled(replace(launch, num_warps=3), "gfx942", case)
    assert not row["ok"] and row["reason"]


def rows() -> list[dict]:
    """Of every committed report."""
    return [row for path in REPORTS for row in json.loads(path.read_text(encoding="utf-8"))["kernels"]]


def test_a_committed_report_covers_what_is_claimed_on_its_targets_and_earns_no_more() -> None:
    found = rows()
    targets_seen = {row["target"] for row in found}
    assert "gfx942" in targets_seen
    claimed = {key for key in CLAIMED if key[1] in targets_seen}
    assert {(row["backend"], row["target"]) for row in found} == claimed
    earned = {key for key in claimed if all(row["ok"] for row in found if (row["backend"], row["target"]) == key)}
    assert {(e.backend, e.target) for e in evidence.load() if e.word == "compiled"} == earned


def test_gfx942_has_matrix_instructions_within_its_lds_and_no_spills() -> None:
    for row in rows():
        if row["target"] != "gfx942":
            continue
        assert row["ok"], row
        assert row["shared_bytes"] <= 64 * 1024 and row["spill_bytes"] == row["scratch_bytes"] == 0, row
        if row["kernel"] in ("paged_prefill", "paged_decode", "mla_decode_split", "dual_chunk_attention"):
            assert sum(n for name, n in row["matrix"].items() if name.startswith("v_mfma_")) > 0, row
