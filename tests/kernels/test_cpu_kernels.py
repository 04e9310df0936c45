"""Our CPU kernels, compiled here and now, on every instruction set of this processor, against the float64 reference."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attnkit.backends.base import Rejected
from attnkit.backends.registry import get
from attnkit.hardware.device import Device
from attnkit.spec import AttentionSpec

CPU = Device(vendor="cpu", kind="cpu", name="CPU", arch="x86_64")

PROGRAM = """
import sys
import torch
from attnkit.backends.registry import get
from attnkit.hardware.device import Device
from attnkit.selftest import run_selftest

torch.set_num_threads(2)
cpu = Device(vendor="cpu", kind="cpu", name="CPU", arch="x86_64")
verdict = run_selftest(get("TORCH_SDPA"), cpu, None, level="quick", provider="attnkit-cpu")
wrong = [(case.case, case.reason) for case in verdict.cases if case.outcome != "pass"]
kernels = {case.kernel for case in verdict.cases}
assert verdict.outcome == "pass" and not wrong, wrong
assert kernels == {f"attnkit_cpu_{sys.argv[1]}", f"attnkit_cpu_{sys.argv[1]}_varlen"}, kernels
"""


@pytest.fixture(scope="module")
def bake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the library, compiled by the command that images and users run."""
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        pytest.skip("the CPU kernels are compiled here, which needs a C++ compiler: apt-get install g++")
    folder = tmp_path_factory.mktemp("kernels")
    command = [sys.executable, "-m", "attnkit.cli", "kernels", "build", "--target", "cpu", "--dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "portable" in done.stdout
    return folder


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512bf16"])
def test_right_on_every_instruction_set(bake: Path, isa: str) -> None:
    from attnkit.kernels.cpu import library

    sets = library.instruction_sets(bake / library.file_name())
    if not sets.get(isa):
        pytest.skip(f"this processor has no {isa}")
    environment = {**os.environ, "ATTNKIT_KERNELS": str(bake), "ATTNKIT_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", PROGRAM, isa], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_not_compiled_is_a_reason_and_the_next_provider_is_taken() -> None:
    backend, spec = get("TORCH_SDPA"), AttentionSpec()
    taken = backend.evaluate(spec, CPU, {"torch": "2.13.0", "attnkit-cpu-kernels": None})
    assert not isinstance(taken, Rejected) and taken.provider == "torch"
    taken = backend.evaluate(spec, CPU, {"torch": "2.13.0", "attnkit-cpu-kernels": "0.1.0"})
    assert not isinstance(taken, Rejected) and taken.provider == "attnkit-cpu"
    refused = backend.evaluate(AttentionSpec(features=frozenset({"softcap"})), CPU, {"torch": "2.13.0"})
    assert isinstance(refused, Rejected) and any(
        "attnkit kernels build --target cpu" in reason.message for reason in refused.reasons
    )


def test_a_library_of_other_sources_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnkit.kernels.cpu import library

    (tmp_path / library.file_name().replace(library.digest(), "0" * 16)).write_bytes(b"stale")
    monkeypatch.setenv("ATTNKIT_KERNELS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = library.find()
    assert found is None or tmp_path not in found.parents
