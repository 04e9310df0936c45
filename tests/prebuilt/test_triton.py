"""An incomplete kernel directory fails the build; a complete one holds what a boot on that architecture launches.

The directories are small ones of the same code that images/Dockerfile runs (`attnkit kernels build` and `verify`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("triton", reason="Triton is not installed here")

from attnkit.cli import main
from attnkit.kernels.aot import variants
from attnkit.kernels.aot.build import build
from attnkit.kernels.aot.manifest import load
from attnkit.kernels.aot.plan import list_kernels
from attnkit.kernels.aot.use import count_kernels
from attnkit.prebuilt import triton as prebuilt_triton

TARGETS = ("sm_75", "sm_90")
LEVEL = "quick"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What compiled kernels are kept in between builds."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, kept: Path) -> Path:
    """Every kernel of a quick self-test, compiled by two processes."""
    directory = tmp_path_factory.mktemp("image") / "kernels"
    build(TARGETS, directory, geometries=(), boot=prebuilt_triton.boot_calls(LEVEL), jobs=2, cache=kept)
    return directory


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(built, tmp_path / "kernels"))


def _verify(directory: Path, *options: str) -> Result:
    """The command of the Dockerfile's last step."""
    return CliRunner().invoke(main, ["kernels", "verify", "--dir", str(directory), *options], catch_exceptions=False)


def _edit(directory: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    path = directory / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def _whole(directory: Path) -> None:
    """Make the directory one of given kernels only, so that `verify` asks for no more than it lists."""
    _edit(directory, lambda data: data.update(level=""))


def test_a_complete_kernel_directory_is_counted_by_target(copy: Path) -> None:
    _whole(copy)
    done = _verify(copy, "--target", ",".join(TARGETS), "--json")
    assert done.exit_code == 0, done.stderr
    counts = json.loads(done.stdout)["kernels"]
    listed = list_kernels(TARGETS, geometries=(), boot=prebuilt_triton.boot_calls(LEVEL))
    assert counts == {code: len([v for v in listed if v.target == code]) for code in ("sm_75", "sm_75-scalar", "sm_90")}
    assert all(counts.values())


@pytest.mark.parametrize("damage", ["removed", "emptied"])
def test_one_kernel_less_fails_the_build(copy: Path, damage: str) -> None:
    _whole(copy)
    kernel = load(copy).kernels[-1]
    if damage == "removed":
        shutil.rmtree(copy / kernel.key)
    else:
        (copy / kernel.key / kernel.binary).write_bytes(b"")
    done = _verify(copy)
    assert done.exit_code == 1
    assert f"{kernel.target} {kernel.name}: {kernel.binary} is {'missing' if damage == 'removed' else 'empty'}" in done.stderr


def test_a_kernel_directory_made_for_less_fails_the_build(copy: Path) -> None:
    """Everything it lists is there, but not all that a boot launches."""
    _edit(copy, lambda data: data.update(level=prebuilt_triton.LEVEL))
    done = _verify(copy, "--target", "sm_90")
    assert done.exit_code == 1
    assert "is missing from the kernel directory" in done.stderr
    _edit(copy, lambda data: data.update(level=LEVEL))
    assert "are of level quick, not standard" in _verify(copy).stderr


def test_a_target_too_few_fails_the_build(copy: Path) -> None:
    done = _verify(copy, "--target", "sm_75,sm_80")
    assert done.exit_code == 1
    assert "target sm_80 was not built" in done.stderr


def test_a_second_build_compiles_nothing_and_comes_to_the_same_files(built: Path, kept: Path, tmp_path: Path) -> None:
    with count_kernels() as count:
        build(TARGETS, tmp_path / "again", geometries=(), boot=prebuilt_triton.boot_calls(LEVEL), cache=kept)
    assert count.jit_compiles == 0
    assert count.cached > 0
    files = {path.relative_to(built): path.read_bytes() for path in built.rglob("*") if path.is_file()}
    again = {
        path.relative_to(tmp_path / "again"): path.read_bytes() for path in (tmp_path / "again").rglob("*") if path.is_file()
    }
    assert files.keys() == again.keys()
    assert [name for name, data in files.items() if data != again[name]] == []


def test_a_kept_kernel_that_was_altered_is_compiled_again(built: Path, kept: Path, tmp_path: Path) -> None:
    kernel = load(built).kernels[0]
    folder = Path(shutil.copytree(kept, tmp_path / "kept"))
    (folder / kernel.key / kernel.binary).write_bytes(b"not a kernel")
    build(["sm_75"], tmp_path / "again", geometries=(), boot=prebuilt_triton.boot_calls(LEVEL), cache=folder, launchers=False)
    assert (tmp_path / "again" / kernel.key / kernel.binary).read_bytes() == (built / kernel.key / kernel.binary).read_bytes()


def test_nothing_of_the_building_machine_is_in_it(built: Path, kept: Path) -> None:
    named = [path.name for path in built.rglob("*.json") if str(kept) in path.read_text() or str(built) in path.read_text()]
    assert named == []
    assert not list(built.rglob("*.source"))


LOAD = """
import sys
from attnkit.kernels.aot.use import use_precompiled
use_precompiled(sys.argv[1])
from triton.backends.nvidia import driver
from triton.runtime import build
found = []
build._load_module_from_path = lambda name, path: found.append(path) or sys.exit(path)
driver.CudaUtils()
"""


def test_tritons_c_module_is_found_on_a_node_without_a_compiler(tmp_path: Path) -> None:
    """Triton's own search comes to the precompiled module, though no driver was where it was built and no compiler is here."""
    call = next(variants.calls(variants.geometry("group4-d64"), "float16"))
    environment = {k: v for k, v in os.environ.items() if k not in ("ATTNKIT_KERNELS", "TRITON_CACHE_MANAGER", "CC")}
    environment |= {"TRITON_LIBCUDA_PATH": str(tmp_path / "driver"), "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_LIBCUDA_PATH", environment["TRITON_LIBCUDA_PATH"])
        manifest = build(["sm_90"], tmp_path / "kernels", calls=[replace(call, max_seq_len=16)])
    assert not (tmp_path / "driver").exists(), "the stand-in of the driver stays behind"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "kernels")],
        env={**environment, "CC": str(tmp_path / "no-compiler")},
        capture_output=True,
        text=True,
        check=False,
    )
    path = Path(done.stderr.strip().splitlines()[-1])
    assert str(path.relative_to(tmp_path / "kernels")) in manifest.launchers


ASK = """
import json, os, sys
from contextlib import nullcontext
import torch
from attnkit.backends import torch_device
from attnkit.backends.registry import get
from attnkit.hardware.device import Device
from attnkit.kernels.aot import variants
from attnkit.kernels.aot.use import count_kernels, use_precompiled
from attnkit.kernels.triton import launch
from attnkit.kernels.triton.targets import compiling_for
from attnkit.selftest.tensors import build
from attnkit.selftest.cases import cases
from attnkit.prebuilt.needs import needs

level, directory, *cards = sys.argv[1:]
for card in cards:
    if os.fork():  # a process each, in which nothing was launched before
        assert os.wait()[1] == 0, card
        continue
    backend_name, arch, units = card.split("/")
    device = Device(vendor="nvidia", kind="gpu", name="absent", arch=arch, source="given")
    # The card that is not here: its name and size, and a launch that looks up or compiles and stops there.
    launch._target = lambda kind, index: launch.Target(arch, int(units))
    torch_device.device_of = lambda tensor: device
    asked = set()

    def run(self):
        asked.add(variants.variant_name(self))
        if directory:
            self.warmup()

    launch.Launch.run = run
    backend = get(backend_name)
    capability = next(p.capability for p in backend.providers if p.name == "attnkit")
    if directory:
        use_precompiled(directory)
    with count_kernels() as count, compiling_for(arch) if directory else nullcontext():
        for need in needs(arch):
            if not capability.reject(need, device):
                for case in cases(level, capability, device, need):
                    backend.run(build(case, contents=False), "attnkit")
    found = {"precompiled": count.precompiled, "cached": count.cached, "jit": count.jit_compiles}
    print(json.dumps({"asked": sorted(asked), **found}))
    break
"""

Card = tuple[str, str, int]


def _ask(level: str, directory: str, cache: Path, *cards: Card) -> dict[Card, dict[str, Any]]:
    """What each (backend, architecture, multiprocessors) launches in its self-test, by its own code, in a fresh process."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("ATTNKIT_KERNELS", "TRITON_CACHE_MANAGER", "TRITON_INTERPRET")
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK, level, directory, *("/".join(map(str, card)) for card in cards)],
        env={**environment, "TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(cards, map(json.loads, done.stdout.splitlines()), strict=True))


SERVED = (
    ("TRITON_ATTN", "sm_90", 132),
    ("TRITON_MLA", "sm_90", 132),
    ("TURING_ATTN", "sm_75", 68),
    ("TRITON_ATTN", "sm_75", 40),
)
"""An H100, an RTX 2080 Ti, a T4."""


@pytest.fixture(scope="module")
def served(built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Card, dict[str, Any]]:
    """By card: what its quick self-test finds in the directory."""
    return _ask(LEVEL, str(built), tmp_path_factory.mktemp("cache"), *SERVED)


@pytest.mark.parametrize("card", SERVED)
def test_a_boot_finds_every_kernel_under_tritons_own_key(served: dict[Card, dict[str, Any]], card: Card) -> None:
    """Every kernel comes from the directory, nothing is compiled; without it all are."""
    found = served[card]
    assert (found["jit"], found["cached"]) == (0, 0)
    assert found["precompiled"] == len(found["asked"])
    assert found["precompiled"]


CARDS = (
    ("TRITON_ATTN", "sm_80", 108),
    ("TRITON_MLA", "sm_100", 148),
    ("TRITON_ATTN", "sm_120", 170),
    ("TURING_ATTN", "sm_75", 30),
    ("TRITON_ATTN", "sm_75", 68),
)


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> dict[Card, set[str]]:
    """By card: what the backend's own code launches in a standard self-test, planned alone."""
    found = _ask(prebuilt_triton.LEVEL, "", tmp_path_factory.mktemp("cache"), *CARDS)
    return {card: set(one["asked"]) for card, one in found.items()}


@pytest.mark.parametrize("card", CARDS)
def test_the_list_covers_the_level_that_profiles_ask_for(standard: dict[Card, set[str]], card: Card) -> None:
    """On cards of several sizes."""
    backend, arch, _ = card
    code = "sm_75-scalar" if arch == "sm_75" and backend != "TURING_ATTN" else arch
    listed = {variant.name for variant in prebuilt_triton.TritonKernels((arch,)).list() if variant.target == code}
    assert standard[card]
    assert standard[card] <= listed
