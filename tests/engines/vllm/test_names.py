"""The resolver of vLLM's names, over every known version."""

from __future__ import annotations

import pytest

from attnkit.backends.registry import all_backends
from attnkit.engines.vllm.names import VENDORS, attnkit_name, names, resolve, versions
from attnkit.errors import UsageError

FIRST_FLAG = (0, 13)


def key(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


@pytest.mark.parametrize("version", versions())
@pytest.mark.parametrize("platform", sorted(VENDORS))
def test_a_switch_is_one_that_the_version_honours(version: str, platform: str) -> None:
    for name in dict.fromkeys([*names(version), *(b.name for b in all_backends())]):
        found = resolve(name, version, platform)
        assert found.note or found.ok
        if not found.ok or platform in ("cpu", "tpu"):
            assert found.flag is None and found.env is None
            continue
        if key(version) >= FIRST_FLAG:
            assert found.flag == ["--attention-backend", found.now] and found.env is None
        else:
            assert found.env == {"VLLM_ATTENTION_BACKEND": found.now} and found.flag is None
        assert found.now in names(version)
        assert key(version) <= (0, 10) or not str(found.now).endswith("_VLLM_V1")


@pytest.mark.parametrize(
    ("name", "version", "platform", "ok", "now"),
    [
        ("flash_attn", "0.33.0", "cuda", True, "FLASH_ATTN"),
        ("FLASH_ATTN_VLLM_V1", "0.33.0", "cuda", True, "FLASH_ATTN"),
        ("FLASH_ATTN_VLLM_V1", "0.10.2", "cuda", True, "FLASH_ATTN_VLLM_V1"),
        ("TRITON_ATTN", "0.9.0", "cuda", True, "TRITON_ATTN_VLLM_V1"),
        ("CUTLASS_MLA", "0.9.2", "cuda", True, "CUTLASS_MLA_VLLM_V1"),
        ("XFORMERS", "0.11.2", "cuda", True, "XFORMERS"),
        ("XFORMERS", "0.33.0", "cuda", False, "TRITON_ATTN"),
        ("turing", "0.33.0", "cuda", False, "TRITON_ATTN"),
        ("ROCM_FLASH", "0.33.0", "rocm", True, "ROCM_ATTN"),
        ("ROCM_FLASH", "0.10.0", "rocm", True, "ROCM_FLASH"),
        ("ROCM_FLASH", "0.33.0", "cuda", False, "ROCM_ATTN"),
        ("FLASHINFER", "0.33.0", "xpu", False, "FLASHINFER"),
        ("TRITON_MLA", "0.33.0", "xpu", True, "TRITON_MLA"),
        ("IPEX", "0.33.0", "xpu", False, "FLASH_ATTN"),
        ("TORCH_SDPA", "0.32.0", "cpu", True, "CPU_ATTN"),
        ("TORCH_SDPA", "0.10.2", "cpu", True, "TORCH_SDPA"),
        ("TORCH_SDPA", "0.33.0", "cuda", False, "TORCH_SDPA"),
        ("FLASH_ATTN", "0.32.0", "cpu", False, "CPU_ATTN"),
        ("PALLAS", "0.33.0", "tpu", True, "FLASH_ATTN"),
        ("NO_ATTENTION", "0.33.0", "cuda", False, None),
        ("TREE_ATTN", "0.20.0", "cuda", True, "TREE_ATTN"),
        ("TREE_ATTN", "0.22.0", "cuda", False, None),
        ("DUAL_CHUNK_FLASH_ATTN", "0.10.2", "cuda", True, "DUAL_CHUNK_FLASH_ATTN"),
        ("DUAL_CHUNK_FLASH_ATTN", "0.11.0", "cuda", False, None),
        ("DIFFERENTIAL_FLASH_ATTN", "0.33.0", "cuda", False, None),
        ("TURBOQUANT", "0.33.0", "cuda", True, "TURBOQUANT"),
    ],
)
def test_what_became_of_a_name(name, version, platform, ok, now) -> None:
    found = resolve(name, version, platform)
    assert (found.ok, found.now) == (ok, now), found


def test_between_known_versions_the_earlier_names_hold() -> None:
    found = resolve("FLASHINFER", "0.21.1")
    assert found.ok and "judged by the names of 0.20.0" in found.note
    assert "newer than every known version" in resolve("FLASHINFER", "1.5.0").note
    assert "judged" not in resolve("FLASHINFER", "0.33.0+cpu").note


def test_the_note_says_what_the_variable_does() -> None:
    assert "deprecated" in resolve("FLASH_ATTN", "0.14.0").note
    assert "ignored" in resolve("FLASH_ATTN", "0.15.0").note
    assert "silently" in resolve("FLASH_ATTN", "0.32.0", "cpu").note


@pytest.mark.parametrize("version", ["latest", "", "0.33.x"])
def test_not_a_version(version: str) -> None:
    with pytest.raises(UsageError, match="is not a version of vLLM"):
        resolve("FLASH_ATTN", version)


def test_wrong_names() -> None:
    with pytest.raises(UsageError, match=r"older than 0.5.5"):
        resolve("FLASH_ATTN", "0.2.0")
    with pytest.raises(UsageError, match=r"Did you mean .*FLASHINFER"):
        resolve("FLASHINFR", "0.33.0")
    with pytest.raises(UsageError, match="unknown platform 'gpu'"):
        resolve("FLASH_ATTN", "0.33.0", "gpu")


def test_from_vllms_name_back_to_ours() -> None:
    assert attnkit_name("ROCM_ATTN") == "ROCM_FLASH"
    assert attnkit_name("CUTLASS_MLA_VLLM_V1") == "CUTLASS_MLA"
    assert attnkit_name("TURBOQUANT") is None
