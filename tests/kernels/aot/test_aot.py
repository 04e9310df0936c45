"""Kernels compiled ahead: built without a GPU, counted, found again by a fresh process, and every loss noticed."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed here")

from triton import knobs

from attnkit.errors import UsageError
from attnkit.kernels.aot import variants
from attnkit.kernels.aot.build import build
from attnkit.kernels.aot.manifest import KernelsError, load
from attnkit.kernels.aot.plan import list_kernels
from attnkit.kernels.aot.use import why_unused
from attnkit.kernels.aot.verify import verify
from attnkit.kernels.turing import hook

TARGETS = ("sm_75", "sm_90")


def one_call():
    """A decode of a short sequence: few variants."""
    call = next(variants.calls(variants.geometry("group4-d64"), "float16"))
    return replace(call, max_seq_len=64)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small kernel directory, moved after it was built."""
    there = tmp_path_factory.mktemp("build") / "kernels"
    manifest = build(TARGETS, there, calls=[one_call()])
    moved = tmp_path_factory.mktemp("installed") / "kernels"
    shutil.move(there, moved)
    return moved, manifest


@pytest.fixture
def directory(built, tmp_path):
    """A copy to break."""
    return shutil.copytree(built[0], tmp_path / "kernels")


def test_what_is_built_is_what_is_listed(built):
    root, manifest = built
    listed = list_kernels(TARGETS, calls=[one_call()])
    assert [(v.target, v.name) for v in listed] == [(k.target, k.name) for k in manifest.kernels]
    assert {v.kernel for v in listed} == {"paged_decode", "warp_decode", "merge_splits", "cache_write"}
    assert verify(root, TARGETS, calls=[one_call()]) == manifest
    assert not hook.enabled(), "build() leaves Turing's hook behind"


def test_code_is_for_its_target(built):
    root, manifest = built
    for kernel in manifest.kernels:
        facts = json.loads((root / kernel.key / f"{kernel.kernel}.json").read_text())
        assert f"sm_{facts['target']['arch']}" == kernel.target
        assert (root / kernel.key / kernel.binary).read_bytes()[:4] == b"\x7fELF"
    assert any("launcher" in name or "cuda_utils" in name for name in manifest.launchers)


def test_a_fresh_process_compiles_nothing(built, tmp_path):
    """The moved, read-only directory serves a process with an empty cache of its own; without it everything is compiled."""
    program = """
import json, sys
from attnkit.kernels.aot import variants
from attnkit.kernels.aot.use import count_kernels, use_precompiled
from attnkit.kernels.triton.targets import compiling_for
from attnkit.kernels.turing import hook
from dataclasses import replace
directory, target = sys.argv[1:]
if directory:
    use_precompiled(directory)
if target == "sm_75":
    hook.enable()
call = replace(next(variants.calls(variants.geometry("group4-d64"), "float16")), max_seq_len=64)
with count_kernels() as count, compiling_for(target):
    for launch in variants.variants(target, [call]).values():
        launch.warmup()
json.dump({"precompiled": count.precompiled, "cached": count.cached, "jit": count.jit_compiles}, sys.stdout)
"""
    root, manifest = built
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    for target in TARGETS:
        expected = len({k.key for k in manifest.kernels if k.target == target})
        for directory in (str(root), "") if target == "sm_75" else (str(root),):
            environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / f"{target}{bool(directory)}")}
            done = subprocess.run(
                [sys.executable, "-c", program, directory, target], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[-2000:]
            found = json.loads(done.stdout)
            assert found == (
                {"precompiled": expected, "cached": 0, "jit": 0}
                if directory
                else {"precompiled": 0, "cached": 0, "jit": expected}
            )
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*")}, "the directory was written to"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "; it is for sm_75, sm_90"),
        ({"triton": "3.1.0"}, "; it was made with Triton 3.1.0 instead of "),
        ({"python": ".cpython-38.so"}, "; it was made with Python .cpython-38.so instead of "),
    ],
)
def test_an_unused_kernel_directory_says_what_it_was_made_with(built, changed, words, monkeypatch):
    made = replace(built[1], **changed)
    monkeypatch.setattr("attnkit.kernels.aot.use.load", lambda path: made)
    text = why_unused("DIR", 12)
    assert text.startswith("none of the 12 kernels that the self-test needed is in DIR" + words)


def test_an_unknown_target_falls_back_to_the_ordinary_cache(built, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNKIT_KERNELS", str(built[0]))
    from attnkit.kernels.aot_cache import BakedCacheManager

    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path)
        manager = BakedCacheManager("NOTTHERE")
        stored = manager.put("text", "x.json", binary=False)
    assert Path(stored).read_text() == "text"
    assert tmp_path in Path(stored).parents


def test_a_missing_kernel_is_noticed(directory):
    kernel = load(directory).kernels[0]
    shutil.rmtree(directory / kernel.key)
    with pytest.raises(KernelsError, match=rf"{kernel.target} {kernel.name}: .* is missing") as error:
        verify(directory, planned=False)
    assert error.value.exit_code == 1


def test_an_empty_kernel_is_noticed(directory):
    kernel = load(directory).kernels[1]
    (directory / kernel.key / kernel.binary).write_bytes(b"")
    with pytest.raises(KernelsError, match="is empty"):
        verify(directory, planned=False)


def test_an_altered_kernel_is_noticed(directory):
    kernel = load(directory).kernels[2]
    path = directory / kernel.key / kernel.binary
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(KernelsError, match="was altered"):
        verify(directory, planned=False)


def test_a_missing_launcher_is_noticed(directory):
    name = next(iter(load(directory).launchers))
    (directory / name).unlink()
    with pytest.raises(KernelsError, match=r"launcher: .* is missing"):
        verify(directory, planned=False)


def test_a_kernel_nobody_listed_is_missed(directory):
    """Dropping a kernel from the manifest as well does not help: the planners know what must be there."""
    path = directory / "manifest.json"
    data = json.loads(path.read_text())
    gone = data["kernels"].pop(0)
    path.write_text(json.dumps(data))
    with pytest.raises(KernelsError, match=rf"{gone['target']} {gone['name']} is missing from the kernel directory"):
        verify(directory, calls=[one_call()])


def test_a_target_that_was_not_built_is_noticed(directory):
    with pytest.raises(KernelsError, match="target sm_80 was not built"):
        verify(directory, ["sm_75", "sm_80"], planned=False)


def test_another_triton_is_noticed(directory):
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"triton": "', '"triton": "0.'))
    with pytest.raises(KernelsError, match="built with Triton 0"):
        verify(directory, calls=[one_call()])


def test_wrong_use_is_explained(tmp_path):
    with pytest.raises(UsageError, match="unknown target 'sm_99'"):
        list_kernels(["sm_99"])
    with pytest.raises(UsageError, match="unknown geometry 'group4-d129'"):
        list_kernels(["sm_90"], geometries=["group4-d129"])
    with pytest.raises(UsageError, match=r"manifest\.json: no such file"):
        verify(tmp_path)
    (tmp_path / "something").write_text("else")
    with pytest.raises(UsageError, match="is not a kernel directory"):
        build(["sm_90"], tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema": 7}')
    with pytest.raises(UsageError, match="field schema is 7"):
        load(tmp_path)


def test_default_list_covers_every_target():
    """Planning alone, nothing compiled: every target gets every kernel of serving."""
    from attnkit.kernels.triton.targets import TARGETS as ALL

    listed = list_kernels(list(ALL))
    for target in ALL:
        kernels = {v.kernel for v in listed if v.target == target}
        prefill = "hopper_prefill" if target == "sm_90" else "paged_prefill"
        decode = "warp_decode" if target == "sm_90" else "paged_decode"
        assert {prefill, decode, "merge_splits", "cache_write"} <= kernels, target
    by_target = {t: len([v for v in listed if v.target == t]) for t in ALL}
    assert by_target["sm_75"] < by_target["sm_90"] < by_target["gfx942"], "one dtype; two; two and large caches"


def test_mla_is_planned_where_asked():
    for target, decode in (("sm_80", "mla_decode_split"), ("sm_90", "hopper_mla_decode")):
        assert {v.kernel for v in list_kernels([target], geometries=["mla-16"])} == {decode, "merge_splits"}
