"""Profiles: every shipped one is right, a wrong one is refused with file, line and field, a box finds its node type."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from attnkit import profiles
from attnkit.errors import UsageError
from attnkit.hardware import detect
from attnkit.hardware.device import Detection, Device
from attnkit.profiles.files import family_names
from attnkit.selftest.results import LEVELS

REPO = Path(__file__).parents[2]
FAMILIES = {
    *("gtx-16", "quadro-rtx", "a30", "a800", "a10", "a40", "rtx-a6000", "jetson-orin", "l4", "l40s", "rtx-6000-ada"),
    *("gh200", "h20", "h800", "b100", "b300", "gb200", "gb300", "dgx-spark", "jetson-thor", "rtx-pro-6000"),
    *("mi300a", "mi308x", "mi325x", "mi355x", "mi210", "radeon-pro-w7000", "rx-7600", "rx-9070", "strix-halo"),
    *("arc-b580", "intel-flex", "graviton", "granite-rapids"),
}
NODE_TYPES = [
    *(
        "rtx-2080-ti",
        "t4",
        "rtx-3080",
        "rtx-4090",
        "a100",
        "h100",
        "h200",
        "b200",
        "rtx-5090",
        "mi300x",
        "mi250x",
        "rx-7900-xtx",
    ),
    *("intel-xeon", "intel-arc", "intel-max", "tpu-v5e", "tpu-v6e", "cpu"),
]
WORKLOADS = ["text", "multimodal", "long-context", "mla", "speculative-tree", "research", "debug"]


def test_the_shipped_profiles_are_all_there_and_load() -> None:
    assert set(profiles.node_names()) == {*NODE_TYPES, *FAMILIES}
    assert set(profiles.workload_names()) == set(WORKLOADS)
    assert [p.name for p in profiles.all_nodes()] == sorted({*NODE_TYPES, *FAMILIES})
    assert profiles.family_names() == FAMILIES
    for name in WORKLOADS:
        assert profiles.load_workload(name).name == name


@pytest.mark.parametrize("name", NODE_TYPES)
def test_a_profile_that_states_a_dtype_tells_the_engine(name: str) -> None:
    profile = profiles.load_node(name)
    args = profile.engine.args
    stated = args[args.index("--dtype") + 1] if "--dtype" in args else "auto"
    assert stated == profile.dtype


def test_the_words_for_levels_are_the_self_tests() -> None:
    assert set(profiles.ProfileLevel.__args__) == set(LEVELS)


def test_the_schema_file_is_fresh() -> None:
    assert json.loads((REPO / "profiles" / "schema.json").read_text()) == profiles.schema()


@pytest.mark.parametrize("tree", NODE_TYPES)
def test_the_made_tree_of_a_node_type_is_recognised(tree: str) -> None:
    folder = REPO / "tests" / "data" / "trees" / tree
    found = profiles.match_node(detect(folder))
    assert found.node == tree, found
    assert found.candidates[0].fits and found.candidates[0].node == tree


def box(*devices: Device) -> Detection:
    return Detection(devices=devices, probes=())


EPYC = Device("cpu", "cpu", "AMD EPYC 7763", "x86_64", features=("avx2",))


def test_an_accelerator_nobody_described_is_a_clear_no() -> None:
    found = profiles.match_node(box(Device("nvidia", "gpu", "NVIDIA Z900", "sm_89", pci_id="10de:fffe"), EPYC))
    assert found.node is None and found.device.name == "NVIDIA Z900"
    assert "no node type describes NVIDIA Z900 (sm_89, 10de:fffe)" in found.why
    assert {c.node: c.why for c in found.candidates}["rtx-4090"] == "neither the PCI id nor the name matches"


def test_the_name_decides_where_the_pci_id_is_unknown() -> None:
    found = profiles.match_node(box(Device("nvidia", "gpu", "NVIDIA GeForce RTX 3090", "sm_86", pci_id="10de:2204"), EPYC))
    assert found.node == "rtx-3080" and "name matches" in found.why


def test_the_pci_id_is_enough_where_the_name_is_missing() -> None:
    found = profiles.match_node(box(Device("amd", "gpu", "unknown", "gfx942", pci_id="1002:74a1"), EPYC))
    assert found.node == "mi300x" and "PCI id" in found.why


@pytest.mark.parametrize(
    ("name", "features", "node"),
    [
        ("Intel(R) Xeon(R) Platinum 8480+", ("avx512f", "amx_tile"), "intel-xeon"),
        ("Intel(R) Xeon(R) E5-2690 v4", ("avx2",), "cpu"),
        ("AMD EPYC 9554", ("avx512f",), "cpu"),
    ],
)
def test_a_xeon_needs_the_instructions_that_ipex_wants(name, features, node) -> None:
    assert profiles.match_node(box(Device("cpu", "cpu", name, "x86_64", features=features))).node == node


def test_an_empty_box_is_refused() -> None:
    with pytest.raises(UsageError, match="no device was detected"):
        profiles.match_node(box())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(profiles.profile_dir(), tmp_path / "profiles")
    monkeypatch.setenv("ATTNKIT_PROFILES", str(tmp_path / "profiles"))
    return tmp_path / "profiles"


def broken(folder: Path, old: str, new: str, name: str = "a100") -> str:
    """The error of a profile after a change to its text."""
    path = folder / "nodes" / f"{name}.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UsageError) as caught:
        profiles.load_node(name)
    return str(caught.value).replace(str(path), "")


@pytest.mark.parametrize(
    ("old", "new", "at", "words"),
    [
        ("platform: cuda", "platfrom: cuda", "platfrom", ["unknown field 'platfrom'", "Did you mean platform", "backends"]),
        ("cuda-ampere", "cuda-amper", "platform:", ["platform: 'cuda-amper'", "Did you mean cuda-ampere", "rocm"]),
        ("FLASHINFER", "FLASHINFR", "backends:", ["backends.1", "unknown backend 'FLASHINFR'", "Did you mean FLASHINFER"]),
        ("dtype: auto\n", "dtype: flaot16\n", "flaot16", ["dtype: 'flaot16'", "Did you mean float16", "bfloat16"]),
        ("block_size: 16", "block_size: sixteen", "sixteen", ["block_size: 'sixteen'", "integer"]),
        ("block_size: 16", "block_size: 0", "block_size", ["block_size: 0", "greater than or equal to 1"]),
        ("  args: []", "  args: [--max-num-seqs, 8]", "args:", ["engine.args.1: 8", "string"]),
        ("  vendor: nvidia", "  vendro: nvidia", "vendro", ["unknown field 'match.vendro'", "Did you mean vendor", "arch"]),
        ("  vendor: nvidia", "  vendor: nvidai", "nvidai", ["match.vendor: 'nvidai'", "Did you mean nvidia?"]),
        ("10de:20b0", "10DE:20B0", "10DE", ["match.pci_ids.0"]),
        ("name: '\\bA100\\b'", "name: 'A100('", "A100(", ["match.name", "is not a regular expression"]),
        ("level: standard", "level: standard\nlevel: quick", "quick", ["'level' is given twice", "first in line"]),
        ("title: A100\n", "", "name: a100", ["field 'title' is missing"]),
        ("backends: [", "backends: [[", None, ["not YAML"]),
        ("name: a100", "name: a101", "name: a101", ["'a101' is not the file's name 'a100'"]),
        ("engine:\n", "workloads: {txt: {}}\nengine:\n", "txt", ["unknown workload 'txt'", "Did you mean text?"]),
        ("engine:\n", "workloads: {text: {dtpye: auto}}\nengine:\n", "dtpye", ["workloads.text.dtpye", "Did you mean dtype"]),
    ],
)
def test_a_wrong_profile_is_refused_with_line_and_field(folder: Path, old, new, at, words) -> None:
    message = broken(folder, old, new)
    if at is not None:
        lines = (folder / "nodes" / "a100.yaml").read_text().splitlines()
        number = next(i for i, text in enumerate(lines, 1) if at in text)
        # A misspelt field that must be there is two errors: it is unknown, and the right one is missing.
        assert any(text.startswith(f":{number}: ") for text in message.splitlines()), message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("text", ["", "- a list", "just words"])
def test_what_is_not_a_mapping(folder: Path, text: str) -> None:
    (folder / "nodes" / "cpu.yaml").write_text(text)
    with pytest.raises(UsageError, match="is not a mapping"):
        profiles.load_node("cpu")


def test_unknown_names_and_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown node type 'h10'.*Did you mean h100"):
        profiles.load_node("h10")
    with pytest.raises(UsageError, match=r"unknown workload 'txt'.*text"):
        profiles.load_workload("txt")
    with pytest.raises(UsageError, match="unknown node type"):
        profiles.load_node("../nodes/cpu")
    assert profiles.load_node("H100").name == "h100"
    monkeypatch.setenv("ATTNKIT_PROFILES", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"ATTNKIT_PROFILES: \S+nowhere is not a folder: give folders with nodes/NAME.yaml"):
        profiles.load_node("cpu")


def overlay(folder: Path, kind: str, name: str, **changes: object) -> Path:
    """A profile in a folder of one's own: the built-in one called cpu or text, with changes."""
    built_in = profiles.profile_dir() / kind / ("cpu.yaml" if kind == "nodes" else "text.yaml")
    path = folder / kind / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(yaml.safe_load(built_in.read_text()) | {"name": name, **changes}))
    return path


def test_profiles_of_ones_own_add_to_the_built_in_ones_and_replace_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    match = {"vendor": "nvidia", "arch": ["sm_89"], "name": "X1"}
    overlay(first, "nodes", "x1", match=match, platform="cuda-ampere", workloads={"chat": {"level": "quick"}})
    overlay(first, "nodes", "gh200", match=match | {"name": "X2"}, platform="cuda-ampere")
    overlay(first, "nodes", "cpu", block_size=64)
    overlay(second, "nodes", "cpu", block_size=128)
    overlay(second, "workloads", "chat")
    monkeypatch.setenv("ATTNKIT_PROFILES", os.pathsep.join(map(str, (first, second))))
    assert set(profiles.node_names()) == {*NODE_TYPES, *family_names(), "gh200", "x1"}
    assert set(profiles.workload_names()) == {*WORKLOADS, "chat"}
    assert profiles.match_node(box(Device("nvidia", "gpu", "NVIDIA X1", "sm_89"), EPYC)).node == "x1"
    assert profiles.load_node("gh200").match.name == "X2"  # a built-in one that has no file of its own
    assert profiles.load_node("cpu").block_size == 64
    assert profiles.node_file("cpu") == first / "nodes" / "cpu.yaml"
    assert profiles.workload_file("chat") == second / "workloads" / "chat.yaml"
    assert profiles.node_file("a100") == profiles.profile_dir() / "nodes" / "a100.yaml"


def test_an_error_in_a_profile_of_ones_own_names_its_file_and_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = overlay(tmp_path, "nodes", "l4", platform="cuda")
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if text.startswith("platform"))
    monkeypatch.setenv("ATTNKIT_PROFILES", str(tmp_path))
    with pytest.raises(UsageError, match=re.escape(f"{path}:{line}: platform: 'cuda' is not allowed.")):
        profiles.all_nodes()


def test_a_node_type_of_a_family_is_what_its_family_sets() -> None:
    l4, h20 = profiles.load_node("L4"), profiles.load_node("h20")
    assert (l4.name, l4.platform, l4.backends[0], l4.match.arch) == ("l4", "cuda-ampere", "FLASH_ATTN", ["sm_89"])
    assert h20.backends == profiles.load_node("h100").backends
    assert profiles.load_node("mi325x").engine.env == {"VLLM_ROCM_USE_AITER": "1"}
    assert profiles.load_node("gtx-16").engine.args == ["--dtype", "float16"]
    assert profiles.node_file("l4") == profiles.profile_dir() / "families.yaml"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("vendor: nvidia", "vendor: nvidai"), ["vendor", "Did you mean nvidia"]),
        (("platform: cuda-turing", "platfrom: cuda-turing"), ["unknown field", "platfrom"]),
        (("name: '\\bA30X?\\b'", "name: 'A30('"), ["is not a regular expression"]),
        (("a800: ", "a30: "), ["is given twice"]),
        (("a10: ", "a800: "), ["node type 'a800' is in two families"]),
    ],
)
def test_a_wrong_families_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: tuple[str, str], words: list[str]
) -> None:
    text = (profiles.profile_dir() / "families.yaml").read_text()
    assert change[0] in text
    (tmp_path / "nodes").mkdir()
    (tmp_path / "families.yaml").write_text(text.replace(*change, 1))
    monkeypatch.setenv("ATTNKIT_PROFILES", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        profiles.node_names()
    assert str(tmp_path / "families.yaml") in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_spellings_in_a_profile_become_canonical(folder: Path) -> None:
    path = folder / "nodes" / "a100.yaml"
    path.write_text(re.sub(r"backends: .*", "backends: [flash_attn, triton]", path.read_text()))
    assert profiles.load_node("a100").backends == ["FLASH_ATTN", "TRITON_ATTN"]


def test_a_workload_changes_what_it_states_and_a_node_has_the_last_word(folder: Path) -> None:
    plain = profiles.effective(profiles.load_node("h100"), None)
    assert plain.order == ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "TORCH_SDPA") and plain.order_source == "profile h100"
    debug = profiles.effective(profiles.load_node("t4"), profiles.load_workload("debug"))
    assert (debug.order, debug.order_source, debug.level) == (("TORCH_SDPA",), "workload debug", "quick")
    assert debug.dtype == "float16" and debug.engine_args == ("--dtype", "float16", "--enforce-eager")
    path = folder / "nodes" / "cpu.yaml"
    path.write_text(path.read_text() + "workloads:\n  debug: {backends: [FLEX_ATTENTION], block_size: 32}\n")
    both = profiles.effective(profiles.load_node("cpu"), profiles.load_workload("debug"))
    assert both.order == ("FLEX_ATTENTION",) and both.block_size == 32 and both.level == "quick"
    assert both.order_source == "profile cpu, workload debug"
    assert profiles.effective(None, None).order is None
