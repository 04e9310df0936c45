"""Every kernel compiles for every architecture it claims, with matrix instructions, within the shared memory of that card.

No GPU is needed. "short" compiles what a node serves with; "long" (marked slow) every kernel, dtype and head size: one
architecture of each kind always, those like it on demand (docs/reference/backends.md has the report of all).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed here")

from attnkit.backends.triton_common import GPU_ARCHS
from attnkit.kernels.triton import tile_sizes
from attnkit.kernels.triton.targets import TARGETS

TENSOR_CORES = [arch for arch in TARGETS if arch != "sm_75"]
"""Stock Triton, which TRITON_ATTN runs on sm_75, has no matrix instruction for it. All other backends of ours get it from
attnkit.kernels.turing.hook: tests/kernels/turing."""

KINDS = {"sm_75", "sm_80", "sm_90", "gfx942", "gfx1100"}
"""One each of those that compile alike, and not sm_100, which takes twice as long as any: of it the serving kernels."""

DUAL_PARTS = {"dual_chunk_segments", "dual_chunk_queries", "dual_chunk_gather", "dual_chunk_join"}
PLAIN = {"merge_splits", "cache_write", "differential_combine", "differential_spread", *DUAL_PARTS}
"""Kernels that multiply no matrices."""


def compile_group(group: str, cache: Path, *archs: str) -> list[dict]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(cache)}
    script = Path(__file__).with_name("compile_cases.py")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), group, *archs],
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
        env=environment,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def judge(rows: list[dict], arch: str) -> None:
    for row in rows:
        assert row["shared"] <= row["limit"], row
        if row["kernel"] not in PLAIN and arch in TENSOR_CORES:
            assert row["matrix"] > 0, row


def test_every_claimed_architecture_is_compiled_for() -> None:
    for vendor in ("nvidia", "amd"):
        for pattern in GPU_ARCHS[vendor]:
            assert any(fnmatchcase(arch, pattern) for arch in TARGETS), pattern


@pytest.fixture(scope="module")
def served(compiled: Path) -> list[dict]:
    """The "short" group of every architecture, out of one process."""
    return compile_group("short", compiled, *TENSOR_CORES)


@pytest.mark.parametrize("arch", TENSOR_CORES)
def test_serving_kernels(arch: str, served: list[dict]) -> None:
    rows = [row for row in served if row["arch"] == arch]
    prefill = "hopper_prefill" if arch == "sm_90" else "paged_prefill"
    decode = "warp_decode" if arch == "sm_90" else "paged_decode"
    assert [row["kernel"] for row in rows] == [prefill, decode, "merge_splits"]
    judge(rows, arch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch", [arch if arch in KINDS else pytest.param(arch, marks=pytest.mark.on_demand) for arch in TARGETS]
)
def test_every_kernel(arch: str, compiled: Path) -> None:
    rows = compile_group("long", compiled, arch)
    others = {"mla_decode_split", "dual_chunk_attention", *PLAIN} if arch in TENSOR_CORES else {"merge_splits", "cache_write"}
    hopper = {"hopper_prefill", "hopper_mla_decode", "warp_decode"} if arch == "sm_90" else set()
    assert {row["kernel"] for row in rows} == {"paged_prefill", "paged_decode", *others, *hopper}
    judge(rows, arch)


@pytest.mark.parametrize("op", ["prefill", "decode", "mla", "dual_chunk", "tree", "dual_chunk_decode"])
def test_every_family_has_a_tile_for_every_width(op: tile_sizes.Op) -> None:
    for arch in (*TARGETS, "sm_75-scalar", "xe-hpc", "gfx1030"):
        if op == "mla" and arch == "sm_75-scalar":
            continue
        for width in (512,) if op == "mla" else (16, 64, 128, 256):
            for size in (2,) if op == "mla" else (2, 4):
                tile = tile_sizes.tile(op, arch, width, size)
                assert tile.block_m >= 16
                assert tile.block_n >= 16


def test_splits_fill_the_device_and_never_shred_a_short_sequence() -> None:
    assert tile_sizes.decode_splits(8, 132, "sm_90", 32768, 64) >= 16
    assert tile_sizes.decode_splits(8, 132, "sm_90", 128, 64) == 1
    assert tile_sizes.decode_splits(4096, 132, "sm_90", 32768, 64) == 1


def test_large_tiles_are_split_until_every_multiprocessor_has_one() -> None:
    assert tile_sizes.decode_splits(16, 132, "sm_90", 4160, 64, per_unit=1) == 8
    assert tile_sizes.decode_splits(128, 132, "sm_90", 4160, 64, per_unit=1) == 1
    assert tile_sizes.decode_splits(16, 132, "sm_90", 100, 64, per_unit=1) == 1
