"""The benchmark's bookkeeping, on a CPU: rows, ratios, failures, limits, and what is left of a run that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from attnkit.bench import GROUPS, judging, run, workloads
from attnkit.bench.judging import Judge
from attnkit.bench.peers import ON_CPU, OURS, PEERS, Run, Unsupported, torch_sdpa
from attnkit.bench.results import Row, load, ratios
from attnkit.bench.work import ROTATE_BYTES, WORKS, Work, chosen
from attnkit.bench.workloads import Shape
from attnkit.selftest.baseline import baselines
from attnkit.selftest.reference import reference
from attnkit.spec import Call

TINY = Path(__file__).with_name("tiny_run.py")
SHAPE = Shape("decode tiny", (1, 1), (40, 40), num_heads=8, num_kv_heads=2, head_dim=32)


def tiny(name: str = "decode tiny", make: Callable[[torch.dtype, str], Call] | None = None) -> Work:
    return Work("decode", name, 1e6, ROTATE_BYTES, make or (lambda d, v: workloads.paged_call(SHAPE, d, v)))


def options(tmp_path: Path, **more: Any) -> run.Options:
    return run.Options(tmp_path, device="cpu", dtype="float32", **more)


class Fails(torch_sdpa.Math):
    name: ClassVar[str] = "fails when it runs"

    def prepare(self, call: Call) -> Run:
        def run() -> tuple[torch.Tensor, str]:
            raise RuntimeError("no kernel image is available\nsecond line")

        return run


class Wrong(torch_sdpa.Math):
    name: ClassVar[str] = "scales by 2 % too much"

    def prepare(self, call: Call) -> Run:
        right = super().prepare(call)
        return lambda: (right()[0] * 1.02, "wrong")


class WritesNothing(torch_sdpa.Math):
    name: ClassVar[str] = "writes nothing"

    def prepare(self, call: Call) -> Run:
        out = call.batch.out
        assert out is not None
        return lambda: (out, "nothing")


class Writes(torch_sdpa.Math):
    name: ClassVar[str] = "writes into the call's output"

    def prepare(self, call: Call) -> Run:
        right, out = super().prepare(call), call.batch.out
        assert out is not None
        return lambda: (out.copy_(right()[0]), "copy")


class Absent(torch_sdpa.Math):
    name: ClassVar[str] = "not installed"
    modules: ClassVar[tuple[str, ...]] = ("a_package_that_nobody_has",)


class Elsewhere(torch_sdpa.Math):
    name: ClassVar[str] = "another layout"
    comparable: ClassVar[bool] = False


def row(implementation: str, micros: float | None, **more: Any) -> Row:
    return Row("decode", more.pop("workload", "a"), implementation, micros=micros, **more)


def test_a_ratio_is_the_best_peer_over_our_best() -> None:
    rows = [
        row("attnkit", 12.0, right=True),
        row("attnkit sm_90", 10.0, right=True),
        row("slow", 30.0, right=True),
        row("fast", 9.0, right=True),
        row("another layout", 1.0, right=True, comparable=False),
        row("failed", None),
    ]
    (found,) = ratios(rows)
    assert (found.ours, found.peer, found.ratio) == ("attnkit sm_90", "fast", 0.9)


def test_a_peer_outside_the_strict_bounds_still_counts_and_ours_does_not() -> None:
    assert ratios([row("attnkit", 5.0, right=False), row("peer", 9.0, right=True)]) == []
    (found,) = ratios([row("attnkit", 5.0, right=True), row("peer", 9.0, right=False)])
    assert found.ratio == 1.8


def test_workloads_without_both_sides_have_no_ratio() -> None:
    assert ratios([row("attnkit", 5.0, right=True), row("peer", 9.0, right=True, workload="b")]) == []


def test_every_failure_is_a_row_and_the_others_still_run(tmp_path: Path) -> None:
    report = run.main(options(tmp_path), [tiny()], everyone=[Fails(), Wrong(), Absent(), Elsewhere(), *ON_CPU])
    found = {row.implementation: row for row in report.rows}
    assert len(found) == len(report.rows) == 5
    assert found["fails when it runs"].micros is None
    assert found["fails when it runs"].note == "RuntimeError: no kernel image is available"
    wrong = found["scales by 2 % too much"]
    assert wrong.micros is None and wrong.right is False and wrong.note.startswith("WRONG eagerly: relative error 2.00e-02")
    assert "a_package_that_nobody_has" in found["not installed"].note
    math = found["torch SDPA math"]
    assert math.micros and math.right and math.kernel == "sdpa.math" and math.error is not None and math.error < 1e-6
    assert found["another layout"].micros and not found["another layout"].comparable


def test_nobody_is_judged_by_what_another_wrote(tmp_path: Path) -> None:
    report = run.main(options(tmp_path), [tiny()], everyone=[Writes(), WritesNothing()])
    wrote, nothing = report.rows
    assert wrote.right and wrote.micros
    assert nothing.right is False and nothing.micros is None and nothing.note.startswith("WRONG eagerly: relative error nan")


def test_inputs_that_cannot_be_made_cost_one_workload(tmp_path: Path) -> None:
    def none(dtype: torch.dtype, device: str) -> Call:
        raise torch.OutOfMemoryError("CUDA out of memory")

    report = run.main(options(tmp_path), [tiny("too large", none), tiny()], everyone=list(ON_CPU))
    assert [(row.workload, row.micros is None) for row in report.rows] == [("too large", True), ("decode tiny", False)]
    assert report.rows[0].note == "no inputs: OutOfMemoryError: CUDA out of memory"


def test_past_the_limit_workloads_are_listed_as_not_run(tmp_path: Path) -> None:
    report = run.main(options(tmp_path, limit_seconds=0.0), [tiny()], everyone=list(ON_CPU))
    assert [row.note.partition(":")[0] for row in report.rows] == ["not run"]
    assert load(tmp_path / run.FILE)[1] == report.rows


def test_the_report_reads_back_and_holds_what_it_was_taken_with(tmp_path: Path) -> None:
    report = run.main(options(tmp_path, command="attnkit bench decode"), [tiny()], everyone=[*ON_CPU, Elsewhere()])
    document, rows = load(tmp_path / run.FILE)
    assert rows == report.rows
    assert (document["kind"], document["complete"], document["command"]) == ("bench", True, "attnkit bench decode")
    assert document["torch"] == torch.__version__ and document["device"] == "CPU"


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    return {**os.environ, "TRITON_INTERPRET": "1"}


@pytest.mark.slow
def test_a_whole_run_in_the_interpreter(tmp_path: Path, interpreted: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, str(TINY), str(tmp_path)], env=interpreted, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document, rows = load(tmp_path / run.FILE)
    assert document["complete"]
    ours = {row.group: row for row in rows if row.ours}
    assert set(ours) == set(GROUPS) - {"mixed"}
    assert all(row.right and row.micros for row in ours.values()), [row.note for row in ours.values()]
    assert ours["tree"].kernel.startswith("triton_tree:") and ours["dual_chunk"].kernel.startswith("triton_dual_chunk")
    composed = {row.group for row in rows if row.implementation.startswith("composed") and row.right and row.micros}
    assert composed == {"tree", "dual_chunk", "differential"}
    assert {r["workload"] for r in document["ratios"]} == {"decode", "prefill", "tree", "dual_chunk", "differential"}
    assert "ratio (above 1: ours is faster)" in done.stdout


@pytest.mark.slow
def test_a_killed_run_keeps_its_rows(tmp_path: Path, interpreted: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, str(TINY), str(tmp_path), "paged"], env=interpreted, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    document = json.loads((tmp_path / run.FILE).read_text())
    assert document["complete"] is False
    assert {row["workload"] for row in document["rows"]} == {"decode", "prefill"}
    assert {r["workload"] for r in document["ratios"]} == {"decode", "prefill"}


@pytest.mark.parametrize("make", [workloads.paged_call, workloads.varlen_call, workloads.fp8_call])
def test_the_judge_sees_a_row_of_another_token(make: Callable[..., Call]) -> None:
    shape = Shape(
        "", (4, 4), (40, 40) if make is not workloads.varlen_call else (4, 4), num_heads=8, num_kv_heads=2, head_dim=32
    )
    call = make(shape, torch.float32, "cpu")
    judge = Judge(call)
    exact = reference(call).out.float()
    assert judge(exact).reason == ""
    shifted = exact.roll(1, dims=0)
    assert "over the bound" in judge(shifted).reason and judge(shifted).error > 0.1
    unseen = next(row for row in range(exact.shape[0]) if row not in [token for _, token, _ in judging.sampled_rows(call)])
    exact[unseen, 0, 0] = float("nan")
    assert "was not written) in 1 elements" in judge(exact).reason


def test_work_is_named_once_and_runs_the_important_first() -> None:
    names = [work.name for work in WORKS]
    assert len(names) == len(set(names))
    assert {work.group for work in WORKS} == set(GROUPS)
    order = [work.rank for work in chosen(GROUPS)]
    assert order == sorted(order)
    assert {work.group for work in chosen(GROUPS) if work.rank == 0} == set(GROUPS)
    assert [w.name for w in chosen(["decode"], "ctx32768")] == [f"decode B{b} ctx32768" for b in (1, 16, 64, 256)]


def test_every_group_has_peers_and_names_are_unique() -> None:
    names = [peer.name for peer in (*OURS, *PEERS, *ON_CPU)]
    assert len(names) == len(set(names))
    for group in GROUPS:
        assert any(group in peer.groups and peer.comparable for peer in PEERS), group


def test_a_peer_says_why_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no tree"):
        torch_sdpa.Math().prepare(workloads.tree_call(1, 4, 16, torch.float32, "cpu"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: workloads.paged_call(
            Shape("", (3, 1), (50, 40), num_heads=8, num_kv_heads=2, head_dim=32), torch.bfloat16, "cpu"
        ),
        lambda: workloads.varlen_call(
            Shape("", (9, 5), (9, 5), num_heads=8, num_kv_heads=8, head_dim=32), torch.bfloat16, "cpu"
        ),
        lambda: workloads.fp8_call(
            Shape("", (1, 1), (50, 40), num_heads=8, num_kv_heads=2, head_dim=32), torch.bfloat16, "cpu"
        ),
        lambda: workloads.mla_call(2, 70, torch.bfloat16, device="cpu", heads=16),
        lambda: workloads.tree_call(2, 8, 32, torch.bfloat16, "cpu"),
    ],
    ids=["paged", "varlen", "fp8", "mla", "tree"],
)
def test_the_formulas_on_a_gpu_are_those_of_the_reference(make: Callable[[], Call]) -> None:
    call = make()
    rows = judging.sampled_rows(call)
    heads, small = judging.cut(call, rows)
    assert judging.is_plain(call)
    same_heads, exact, eager = judging.on_device(call, rows)
    assert torch.equal(heads, same_heads)
    torch.testing.assert_close(exact, reference(small).out, rtol=1e-12, atol=1e-12)
    (base,) = baselines(small)
    eps = torch.finfo(torch.bfloat16).eps
    assert (eager.double() - base.out.double()).abs().max() <= 2 * eps * exact.abs().max()


def test_the_read_ceiling_reads_every_word(interpreted: dict[str, str]) -> None:
    code = (
        "import torch; from attnkit.bench.ceilings import read_all\n"
        "data, sums = torch.arange(512, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)\n"
        "read_all[(2,)](data, sums, 4, 64); assert torch.equal(sums, data.view(2, -1).sum(1).int()), sums"
    )
    done = subprocess.run([sys.executable, "-c", code], env=interpreted, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
