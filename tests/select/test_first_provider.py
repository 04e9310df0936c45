"""Which provider serves a device where no call decides."""

from __future__ import annotations

import pytest

from attnkit.backends import installed
from attnkit.backends.registry import get
from attnkit.select.node import find_node


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "lookup", lambda names: dict.fromkeys(names, "2.8.3"))


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize(
    ("backend", "arch", "provider"),
    [
        ("FLASH_ATTN", "sm_90", "vllm_flash_attn-fa3"),
        ("FLASH_ATTN", "sm_80", "vllm_flash_attn-fa2"),
        ("FLASH_ATTN", "sm_75", "vllm_flash_attn-fa3"),  # none is made for it: the one that its reasons are asked of
        ("FLASHINFER_MLA", "sm_100", "flashinfer-trtllm"),
        ("TRITON_ATTN", "gfx942", "attnkit"),
    ],
)
def test_it_is_made_for_the_architecture(backend: str, arch: str, provider: str) -> None:
    found = installed.first_provider(get(backend), find_node(arch=arch).device)
    assert found is not None and found.name == provider


def test_nothing_installed_still_names_the_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "lookup", dict.fromkeys)
    found = installed.first_provider(get("FLASH_ATTN"), find_node(arch="sm_80").device)
    assert found is not None and found.name == "vllm_flash_attn-fa2"


def test_only_providers_with_the_operation_count() -> None:
    device = find_node(arch="x86_64").device
    assert installed.first_provider(get("TORCH_SDPA"), device, "tree").name == "torch"  # type: ignore[union-attr]
    assert installed.first_provider(get("PALLAS"), find_node(arch="sm_90").device) is None
