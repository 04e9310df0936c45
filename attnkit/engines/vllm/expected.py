"""What boot asks of a vLLM that is about to serve: which implementation to validate, and which name its log must say.

Imports nothing of vLLM or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnkit.backends.registry import canonical
from attnkit.engines.vllm.driver import PREFIX
from attnkit.engines.vllm.plugin import SLOTS, VARIABLE


@dataclass(frozen=True)
class Expected:
    """What will compute attention in the engine.

    Args:
        test: what `vllm_driver.validate_engine_backend` takes: the implementation that vLLM will build, driven through vLLM's
            own interface ("vllm:CPU_ATTN").
        log: the name that `vllm_log.assert_chosen` must find.
    """

    test: str
    log: str


def expected(
    now: str | None, platform: str, environment: Mapping[str, str], *, mla: bool = False, amx: bool = False
) -> Expected | None:
    """What a vLLM started with `environment` will run.

    Args:
        now: `vllm_names.Resolution.now`: what this version of vLLM runs for the backend that was chosen.
        platform: vLLM's word: cpu, cuda, rocm, xpu.
        mla: the layer is multi-head latent attention, which has backends of its own; on CPU the plugin has a place there, too.
        amx: the CPU has AMX tiles ("amx_tile" among its features).

    Returns:
        None where it is not known.

    Raises:
        UsageError: the plugin's variable names no backend.
    """
    ours = environment.get(VARIABLE, "").strip()
    place = SLOTS.get(platform)
    if mla and platform == "cpu":
        place = now = "AMX_MLA" if amx else "CPU_MLA"
    elif mla:
        place = None  # the plugin refuses MLA layers there
    if ours and place:
        return Expected(PREFIX + place, canonical(ours))
    return None if now is None else Expected(PREFIX + now, now)
