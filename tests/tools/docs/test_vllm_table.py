"""docs/reference/vllm-names.md says nothing that the versions' own enums and switches contradict."""

from __future__ import annotations

from functools import cache
from importlib import resources

import pytest
import yaml

from attnkit.engines.vllm.names import resolve, versions
from tools.docs.vllm_table import cell, markdown

FACTS = yaml.safe_load(resources.files("attnkit").joinpath("data/vllm-names.yaml").read_text(encoding="utf-8"))["versions"]


@cache
def rows(section: str) -> dict[str, dict[str, str]]:
    """A table of the page: backend, head, cell."""
    lines = [line for line in markdown().partition(section)[2].partition("\n## ")[0].splitlines() if line.startswith("|")]
    heads, _, *body = ([part.strip() for part in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in body}


def test_every_switch_names_what_the_version_has_and_is_one_that_it_reads() -> None:
    table = rows("## On CUDA, by version")
    assert len(table) == 21
    kinds = set()
    for cells in table.values():
        for version, text in cells.items():
            kind, _, name = text.partition(" ")
            facts = FACTS[version]
            if kind in ("flag", "env"):
                assert name in facts["names"], (version, text)
                kinds.add(kind)
            if kind == "flag":
                assert facts["cli_attention_backend"], (version, text)
            if kind == "env":
                assert facts["env_VLLM_ATTENTION_BACKEND"] in ("honoured", "deprecated"), (version, text)
            if not name and kind != "–":
                assert kind in facts["names"], (version, text)
    assert kinds == {"flag", "env"}


def test_a_column_holds_up_to_the_next_one() -> None:
    table, last = rows("## On CUDA, by version"), ""
    for version in versions():
        last = version if version in table["FLASH_ATTN"] else last
        for name, cells in table.items():
            assert cell(resolve(name, version, "cuda")) == cells[last], (name, version)


@pytest.mark.parametrize(
    ("backend", "platform", "text"),
    [
        ("TORCH_SDPA", "cpu", "own CPU_ATTN"),
        ("TRITON_MLA", "cpu", "CPU_MLA"),
        ("FLASH_ATTN", "cpu", "CPU_ATTN"),
        ("TORCH_SDPA", "cuda", "–"),
        ("XFORMERS", "cuda", "TRITON_ATTN"),
        ("ROCM_FLASH", "rocm", "flag ROCM_ATTN"),
        ("ROCM_FLASH", "cuda", "–"),
        ("DIFFERENTIAL_FLASH_ATTN", "cuda", "–"),
        ("PALLAS", "tpu", "own FLASH_ATTN"),
    ],
)
def test_the_newest_version_by_platform(backend: str, platform: str, text: str) -> None:
    assert rows("## In vLLM 0.33.0, by platform")[backend][platform] == text


def test_mla_on_cpu_is_what_the_processor_decides() -> None:
    assert resolve("CPU_MLA", "0.32.0", "cpu").ok and resolve("AMX_MLA", "0.32.0", "cpu").ok
    assert "has AMX" in resolve("AMX_MLA", "0.32.0", "cpu").note
    assert resolve("FLASHMLA", "0.25.0", "cpu").now == "CPU_ATTN", "no CPU_MLA yet"
