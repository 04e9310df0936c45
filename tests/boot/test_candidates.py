"""What boot tests before an engine serves: the engine's own implementation where it is known, else ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from attnkit.boot.candidates import Candidates, candidates
from attnkit.engines.vllm import command as vllm_command
from attnkit.engines.vllm.tower import USUAL
from attnkit.errors import NoBackendError
from attnkit.select.node import find_node
from attnkit.select.plan import Requirements, make_plan

Ask = Callable[..., Candidates]


@pytest.fixture
def ask(installed: Callable[[str], None]) -> Ask:
    """ask("sm_90", "0.25.0", explicit=…) → what is tested where that vLLM is to serve."""

    def run(arch: str, version: str, *, explicit: str | None = None, **more: Any) -> Candidates:
        installed(version)
        plan = make_plan(find_node(arch=arch), explicit=explicit)
        return candidates(plan, vllm_command.recognise(["vllm", "serve", "m"]), more.pop("environment", {}), **more)

    return run


def test_on_a_cpu_vllm_s_own_implementation_is_tested(ask: Ask) -> None:
    (only,) = ask("x86_64", "0.32.0", explicit="TORCH_SDPA").kept
    assert (only.backend, only.test, only.serves, only.by) == ("TORCH_SDPA", "vllm:CPU_ATTN", "CPU_ATTN", "vllm 0.32.0")
    assert only.expected is not None and only.expected.log == "CPU_ATTN"


def test_a_model_without_a_decoder_is_tested_in_vllms_own_layer_for_it(installed: Callable[[str], None]) -> None:
    installed("0.32.0")
    plan = make_plan(find_node(arch="x86_64"), explicit="TORCH_SDPA", requirements=Requirements("BERT", (USUAL,)))
    (only,) = candidates(plan, vllm_command.recognise(["vllm", "serve", "m"]), {}).kept
    assert (only.test, only.serves) == ("vllm:ENCODER:CPU_ATTN", "CPU_ATTN")
    plugin = {"ATTNKIT_VLLM_BACKEND": "TORCH_SDPA"}
    (only,) = candidates(plan, vllm_command.recognise(["vllm", "serve", "m"]), plugin).kept
    assert (only.test, only.serves) == ("vllm:CPU_ATTN", "TORCH_SDPA")


def test_without_the_check_ours_is_tested_and_nothing_is_said_of_vllm_s(ask: Ask) -> None:
    (only,) = ask("x86_64", "0.32.0", explicit="TORCH_SDPA", engine_check=False).kept
    assert (only.test, only.serves, only.expected) == ("TORCH_SDPA", "TORCH_SDPA", None)


def test_through_the_plugin_it_is_ours_in_vllm_s_place(ask: Ask) -> None:
    plugin = {"ATTNKIT_VLLM_BACKEND": "TORCH_SDPA"}
    (only,) = ask("x86_64", "0.32.0", explicit="TORCH_SDPA", environment=plugin).kept
    assert (only.test, only.serves, only.by) == ("vllm:CPU_ATTN", "TORCH_SDPA", "attnkit in vllm 0.32.0")


def test_on_a_gpu_the_order_of_the_profile_is_kept_and_what_vllm_has_not_is_refused(ask: Ask) -> None:
    found = ask("sm_90", "0.25.0")
    assert [c.test for c in found.kept][:3] == ["vllm:FLASH_ATTN", "vllm:FLASHINFER", "vllm:TRITON_ATTN"]
    assert all(c.test == f"vllm:{c.backend}" == f"vllm:{c.serves}" for c in found.kept)
    assert "TORCH_SDPA" in dict(found.refused)


def test_what_the_engine_silently_replaces_is_refused_with_the_way_there(ask: Ask) -> None:
    with pytest.raises(NoBackendError, match=r"FLEX_ATTENTION: vLLM .* cannot be told to use it: .* by CPU_ATTN") as error:
        ask("x86_64", "0.32.0", explicit="FLEX_ATTENTION")
    assert "ATTNKIT_VLLM_BACKEND=FLEX_ATTENTION" in str(error.value)


def test_an_engine_that_is_not_known_leaves_ours() -> None:
    plan = make_plan(find_node(arch="sm_90"))
    found = candidates(plan, None, {})
    assert [c.test for c in found.kept] == [a.backend for a in plan.decision.accepted]
    assert all(c.expected is None for c in found.kept)
