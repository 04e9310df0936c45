"""Our CPU kernels, compiled here and now, on every instruction set of this processor, against the float64 reference."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attnkit.backends.base import Rejected
from attnkit.backends.registry import get
from attnkit.hardware.device import Device
from attnkit.kernels.cpu.library import SUM_MARK
from attnkit.spec import AttentionSpec

CPU = Device(vendor="cpu", kind="cpu", name="CPU", arch="x86_64")

PROGRAM = """
import json, os, sys
from functools import cache
import torch
from attnkit.backends.registry import get
from attnkit.hardware.device import Device
from attnkit.kernels.cpu import library
from attnkit.selftest import run_selftest, runner

torch.set_num_threads(2)
runner._ask = cache(runner._ask)  # the questions and their right answers are the same for every instruction set
cpu = Device(vendor="cpu", kind="cpu", name="CPU", arch="x86_64")
for isa in sys.argv[1:]:
    os.environ[library.ISA_VARIABLE] = isa
    library.isa.cache_clear()
    verdict = run_selftest(get("TORCH_SDPA"), cpu, None, level="quick", provider="attnkit-cpu", seed=1)
    wrong = [(case.case, case.reason) for case in verdict.cases if case.outcome != "pass"]
    kernels = sorted({case.kernel for case in verdict.cases})
    print(json.dumps({"isa": isa, "outcome": verdict.outcome, "wrong": wrong, "kernels": kernels}))
"""

FEW_ROWS = """
import itertools
import torch
from attnkit.backends.registry import get
from attnkit.selftest.reference import reference
from attnkit.spec import PagedAttention, Softmax

torch.set_num_threads(2)
draw = torch.Generator().manual_seed(0)
LENS = (1, 7, 129, 300, 1200)  # the last one is split between threads
features = {
    "plain": {}, "window": {"window": (40, -1)}, "softcap": {"softcap": 5.0}, "non_causal": {"causal": False},
    "alibi": {"alibi_slopes": 0.3}, "sinks": {"sinks": 1.5},
}
shapes = ((1, 1), (2, 1), (3, 1), (4, 1), (1, 4))  # query heads a key head, new tokens
checked = 0
for (group, new), dim, (name, how) in itertools.product(shapes, (20, 64, 80), features.items()):
    heads, page = 2 * group, 16
    how = {k: torch.full((heads,), v) if k in ("alibi_slopes", "sinks") else v for k, v in how.items()}
    pages = [-(-n // page) for n in LENS]
    order = torch.randperm(sum(pages), generator=draw).to(torch.int32)
    table = torch.zeros(len(LENS), max(pages), dtype=torch.int32)
    for row, count in enumerate(pages):
        table[row, :count], order = order[:count], order[count:]
    news = torch.tensor([min(new, n) for n in LENS])
    key, value = (torch.randn(sum(pages), page, 2, dim, generator=draw) for _ in "kv")
    call = PagedAttention(
        torch.randn(int(news.sum()), heads, dim, generator=draw), key, value, table, torch.tensor(LENS, dtype=torch.int32),
        torch.nn.functional.pad(news.cumsum(0), (1, 0)).to(torch.int32), new, max(LENS), Softmax(dim**-0.5, **how),
        return_lse=True,
    )
    got, oracle = get("TORCH_SDPA").run(call, "attnkit-cpu"), reference(call)
    for what in ("out", "lse"):
        error = (getattr(got, what).double() - getattr(oracle, what)).abs().max().item()
        assert error < 5e-6, (group, new, dim, name, what, error)
    checked += 1
print(checked)
"""

STORE = """
import itertools
import torch
from attnkit.kernels.cpu.launch import store

torch.set_num_threads(2)
draw = torch.Generator().manual_seed(0)
checked = 0
for tokens, dtype, heads_first in itertools.product((0, 1, 5, 700), (torch.float32, torch.bfloat16), (True, False)):
    blocks, page, heads, dim, dim_v = 70, 16, 3, 40, 24
    shape = (blocks, heads, page, dim + dim_v) if heads_first else (blocks, page, heads, dim + dim_v)
    cache = torch.randn(shape, generator=draw).to(dtype)
    rows = cache.transpose(1, 2) if heads_first else cache
    key = torch.randn(tokens, heads, dim + 8, generator=draw).to(dtype)[..., :dim]
    value = torch.randn(heads, tokens, dim_v, generator=draw).to(dtype).transpose(0, 1)
    slots = torch.randperm(blocks * page, generator=draw)[:tokens]
    wanted = rows.clone()
    wanted[slots // page, slots % page] = torch.cat((key, value), dim=-1)
    if tokens > 2:  # padding
        wanted[slots[2] // page, slots[2] % page] = rows[slots[2] // page, slots[2] % page]
        slots[2] = -1
    store(key, value, rows[..., :dim], rows[..., dim:], slots)
    assert torch.equal(rows, wanted), (tokens, dtype, heads_first)
    checked += 1
print(checked)
"""

WRITE = """
import torch
from attnkit.kernels import cache

key, value, slots = torch.randn(3, 2, 8) * 1000, torch.randn(3, 2, 16), torch.tensor([17, -1, 3])
for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
    scales = (0.5, 0.25) if dtype.itemsize == 1 else (1.0, 1.0)
    both = [torch.ones(4, 2, 8, 24).to(dtype).transpose(1, 2).split((8, 16), dim=-1) for _ in range(2)]
    assert cache.write_kv_cache(key, value, *both[0], slots, *scales) == "cpu_store", dtype
    cache._has_cpu_kernels = lambda: False
    assert cache.write_kv_cache(key, value, *both[1], slots, *scales) == "torch_index_put", dtype
    cache._has_cpu_kernels = lambda: True
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(*both)), dtype
    print(dtype)
"""

OPENMP = """
import ctypes, pathlib, shutil, sys
import torch

def runtimes():
    lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if "/libgomp" in line or "/libiomp5" in line or "/libomp" in line}

[torchs] = runtimes()
other = shutil.copy(torchs, sys.argv[1] + "/libgomp-0123abcd.so.1")  # as wheels name copies of their own
ctypes.CDLL(other)
assert runtimes() == {torchs, other}
from attnkit.kernels.cpu import library
assert library.openmp() == pathlib.Path(torchs), library.openmp()
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the library, compiled by the command that images and users run."""
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        pytest.skip("the CPU kernels are compiled here, which needs a C++ compiler: apt-get install g++")
    folder = tmp_path_factory.mktemp("kernels")
    command = [sys.executable, "-m", "attnkit.cli", "kernels", "build", "--target", "cpu", "--dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "portable" in done.stdout
    return folder


@pytest.fixture(scope="module")
def quick(directory: Path) -> dict[str, dict[str, Any]]:
    """By instruction set of this processor: what a quick self-test found."""
    from attnkit.kernels.cpu import library

    sets = [name for name, there in library.instruction_sets(directory / library.file_name()).items() if there]
    found = [json.loads(line) for line in _passes(directory, PROGRAM, *sets).splitlines()]
    assert [one["isa"] for one in found] == sets
    return {one["isa"]: one for one in found}


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512bf16"])
def test_right_on_every_instruction_set(quick: dict[str, dict[str, Any]], isa: str) -> None:
    if isa not in quick:
        pytest.skip(f"this processor has no {isa}")
    assert (quick[isa]["outcome"], quick[isa]["wrong"]) == ("pass", [])
    assert quick[isa]["kernels"] == [f"attnkit_cpu_{isa}", f"attnkit_cpu_{isa}_mla", f"attnkit_cpu_{isa}_varlen"]


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_tiles_of_few_rows_with_every_feature(directory: Path, isa: str) -> None:
    from attnkit.kernels.cpu import library

    if not library.instruction_sets(directory / library.file_name()).get(isa):
        pytest.skip(f"this processor has no {isa}")
    environment = {**os.environ, "ATTNKIT_KERNELS": str(directory), "ATTNKIT_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", FEW_ROWS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["90"]


def _passes(directory: Path, program: str, *arguments: str) -> str:
    environment = {**os.environ, "ATTNKIT_KERNELS": str(directory)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LACKING = ("tree", "dual", "differential", "fnuz")
"""Of whose cases the kernels compute none: operations and formats that they do not have."""


def test_the_contract_of_a_call(directory: Path, repo_root: Path) -> None:
    script = repo_root / "tests" / "api" / "contract_cases.py"
    command = [sys.executable, "-W", "ignore", str(script), "attnkit-cpu", "TORCH_SDPA"]
    environment = {**os.environ, "ATTNKIT_KERNELS": str(directory)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["TORCH_SDPA"]
    assert not {name: problem for name, problem in found.items() if problem not in ("", "refused")}
    assert all((problem == "refused") == any(word in name for word in LACKING) for name, problem in found.items())


def test_random_calls(directory: Path, repo_root: Path) -> None:
    program = "import sys; sys.path.append(sys.argv.pop(1)); from tools.fuzz.calls import main; sys.exit(main())"
    asked = ["--backend", "TORCH_SDPA", "--provider", "attnkit-cpu", "--draws", "150"]
    said = _passes(directory, program, str(repo_root), *asked)
    assert "TORCH_SDPA/attnkit-cpu: 150 run, 0 refused, 0 wrong" in said


def test_new_keys_and_values_are_written_where_they_belong_and_nowhere_else(directory: Path) -> None:
    assert _passes(directory, STORE).split() == ["16"]


def test_the_writer_of_the_cache_takes_them_and_agrees_with_torch(directory: Path) -> None:
    assert len(_passes(directory, WRITE).split()) == 4


def test_threads_are_torchs_though_another_copy_of_openmp_is_loaded(directory: Path, tmp_path: Path) -> None:
    """Two runtimes would keep two sets of threads spinning on the same cores: sentencepiece brings one into vLLM's process."""
    _passes(directory, OPENMP, str(tmp_path))


def _verify(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attnkit.cli", "kernels", "verify", "--dir", str(directory), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [(), ("--target", "cpu")])
def test_a_complete_kernel_directory_is_counted(directory: Path, options: tuple[str, ...]) -> None:
    from attnkit.kernels.cpu import build

    done = _verify(directory, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(build.wanted())} kernels for cpu verified OK\n"


@pytest.mark.parametrize("harm", ["removed", "emptied", "of other sources", "64 bytes of its code", "cut short", "stripped"])
def test_an_incomplete_kernel_directory_is_refused(directory: Path, tmp_path: Path, harm: str) -> None:
    [library] = Path(shutil.copytree(directory, tmp_path / "kernels")).iterdir()
    if harm == "removed":
        library.unlink()
    elif harm == "emptied":
        library.write_bytes(b"")
    elif harm == "64 bytes of its code":
        data = bytearray(library.read_bytes())
        data[len(data) // 3 : len(data) // 3 + 64] = os.urandom(64)
        library.write_bytes(data)
    elif harm == "cut short":
        library.write_bytes(library.read_bytes()[:-5000])
    elif harm == "stripped":
        library.write_bytes(library.read_bytes().rpartition(SUM_MARK)[0])
    else:
        library.rename(library.with_name("attnkit-cpu-x86_64-0123456789abcdef.so"))
    done = _verify(tmp_path / "kernels", "--target", "cpu")
    assert done.returncode == 1
    said = {"64 bytes of its code": "was altered", "removed": "1 problem(s): ", "of other sources": "1 problem(s): "}
    assert said.get(harm, "has no sum") in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["list", "build", "verify"])
def test_the_target_stands_alone(tmp_path: Path, command: str) -> None:
    where = [] if command == "list" else ["--dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "attnkit.cli", "kernels", command, "--target", "cpu,sm_90", *where],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "--target cpu alone" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


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
