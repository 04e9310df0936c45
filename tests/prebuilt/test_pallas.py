"""A TPU image's kernels: modules lowered without a TPU, counted, refused where one is damaged, found by the backend."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("jax", reason="PALLAS needs jax")

import jax.export

from attnkit import prebuilt
from attnkit.backends.pallas import CAPABILITY, signature
from attnkit.errors import UsageError
from attnkit.kernels.aot.manifest import KernelsError
from attnkit.kernels.pallas import ahead
from attnkit.prebuilt import needs
from attnkit.prebuilt import pallas as prebuilt_pallas
from attnkit.select.node import find_node
from attnkit.selftest.cases import cases
from attnkit.selftest.tensors import build as build_call
from attnkit.spec import PagedAttention

TARGETS = ("tpu-v5e", "tpu-v6e")


@pytest.fixture(scope="module")
def wanted() -> tuple[ahead.Signature, ...]:
    """Of the first calls of the boot's self-test on a v5e, and of one with slopes and one with sinks."""
    every = prebuilt_pallas.signatures(["tpu-v5e"])
    chosen = [*every[:2], next(s for s in every if s.alibi), next(s for s in every if s.sinks)]
    return tuple(dict.fromkeys(chosen))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, wanted: tuple[ahead.Signature, ...]) -> Path:
    """Modules of these."""
    directory = tmp_path_factory.mktemp("image") / "kernels"
    ahead.build(wanted, TARGETS, directory, level=needs.LEVEL)
    return directory


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(built, tmp_path / "kernels"))


def test_a_tpu_that_no_node_type_has_is_refused() -> None:
    assert isinstance(prebuilt.for_targets(["tpu-v5e", "tpu-v6e"]), prebuilt_pallas.PallasKernels)
    assert not isinstance(prebuilt.for_targets(["sm_90"]), prebuilt_pallas.PallasKernels)
    with pytest.raises(UsageError, match=r"unknown target 'tpu-v9'.*Known: tpu-v5e, tpu-v6e"):
        prebuilt.for_targets(["tpu-v9"])
    with pytest.raises(UsageError, match="TPU and GPU targets cannot share one kernel directory"):
        prebuilt.for_targets(["tpu-v5e", "sm_90"])


def test_a_complete_kernel_directory_is_counted_by_target(built: Path, wanted: tuple[ahead.Signature, ...]) -> None:
    found = ahead.verify(built, TARGETS, wanted, needs.LEVEL)
    assert found.counts() == dict.fromkeys(TARGETS, len(wanted))
    assert all(module.kernels == 1 for module in found.kernels)
    assert ahead.is_here(built)


def test_the_same_signatures_give_the_same_bytes(built: Path, wanted: tuple[ahead.Signature, ...], tmp_path: Path) -> None:
    again = ahead.build(wanted, TARGETS, tmp_path / "again", level=needs.LEVEL)
    assert again == ahead.read(built)


@pytest.mark.parametrize("damage", ["removed", "emptied", "altered", "listed without a kernel"])
def test_a_module_that_is_not_whole_fails_the_build(copy: Path, wanted: tuple[ahead.Signature, ...], damage: str) -> None:
    module = ahead.read(copy).kernels[-1]
    path = copy / module.name
    if damage == "removed":
        path.unlink()
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "altered":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    else:
        data = json.loads((copy / ahead.MANIFEST).read_text())
        data["kernels"][-1]["kernels"] = 0
        (copy / ahead.MANIFEST).write_text(json.dumps(data))
    words = {"removed": "is missing", "emptied": "is empty", "altered": "was altered"}.get(damage, "no kernel in it")
    with pytest.raises(KernelsError, match=f"{module.name} .*{words}"):
        ahead.verify(copy, TARGETS, wanted, needs.LEVEL)


def test_a_call_that_is_not_covered_fails_the_build(built: Path, wanted: tuple[ahead.Signature, ...]) -> None:
    other = replace(wanted[0], max_query_len=wanted[0].max_query_len + 1)
    with pytest.raises(KernelsError, match=rf"{other.name} is missing from the kernel directory"):
        ahead.verify(built, TARGETS, (*wanted, other), needs.LEVEL)
    with pytest.raises(KernelsError, match=r"target tpu-v4 was not built"):
        ahead.verify(built, ["tpu-v4"], wanted, needs.LEVEL)


def test_another_jax_fails_the_build_and_is_not_loaded(
    copy: Path, wanted: tuple[ahead.Signature, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads((copy / ahead.MANIFEST).read_text())
    (copy / ahead.MANIFEST).write_text(json.dumps({**data, "jax": "0.0.1"}))
    with pytest.raises(KernelsError, match=rf"made by JAX 0\.0\.1; installed is {jax.__version__}"):
        ahead.verify(copy, TARGETS, wanted, needs.LEVEL)
    monkeypatch.setenv(ahead.VARIABLE, str(copy))
    assert ahead.load(wanted[0]) is None


def test_the_command_refuses_what_a_boot_would_miss(built: Path) -> None:
    """This directory has four of the calls that a boot makes."""
    command = [sys.executable, "-m", "attnkit.cli", "kernels", "verify", "--dir", str(built), "--target", "tpu-v5e"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=built)
    assert done.returncode == 1
    assert "is missing from the kernel directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_tpus_and_gpus_are_not_compiled_together() -> None:
    command = [sys.executable, "-m", "attnkit.cli", "kernels", "build", "--dir", "x", "--target", "tpu-v5e,sm_90"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "TPU and GPU targets cannot share one kernel directory: tpu-v5e, sm_90" in done.stderr


def test_the_backend_finds_the_module_of_its_call(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would on a TPU: by the call's shapes; what it finds is our kernel, lowered for TPUs and for nothing else."""
    monkeypatch.setenv(ahead.VARIABLE, str(built))
    device = find_node(arch="tpu-v5e").device
    case = cases(needs.LEVEL, CAPABILITY, device, needs.needs("tpu-v5e")[0])[0]
    call = build_call(case)
    assert isinstance(call, PagedAttention)
    lowered = ahead.load(signature(call))
    assert lowered is not None
    arrays = (call.query, call.key_cache, call.value_cache, call.block_table, call.seq_lens, call.query_start_loc)
    given = (*(jax.dlpack.from_dlpack(array) for array in arrays), None, None)
    text = jax.export.export(jax.jit(lowered), platforms=["tpu"])(*given).mlir_module()
    assert ahead.CUSTOM_CALL in text
    assert "attnkit_paged_attention" in text
    with pytest.raises(ValueError, match=r"lowered for platforms|cpu"):
        lowered(*given)


def test_a_call_of_other_shapes_has_no_module(
    built: Path, wanted: tuple[ahead.Signature, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ahead.VARIABLE, str(built))
    assert ahead.load(replace(wanted[0], softcap=wanted[0].softcap + 1.0)) is None
    monkeypatch.delenv(ahead.VARIABLE)
    assert ahead.load(wanted[0]) is None
