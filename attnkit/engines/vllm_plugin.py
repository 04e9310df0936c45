"""attnkit's backends inside vLLM: the entry point of the group `vllm.general_plugins`.

vLLM calls `register` in every process it starts (API server, engine core, workers). Environment variables are the only channel
it leaves to a plugin:

    ATTNKIT_VLLM_BACKEND=NAME   attention is computed by attnkit's backend NAME; unset: vLLM is left alone
    ATTNKIT_VLLM_TURING=1       on sm_75, tensor cores for vLLM's own Triton kernels; implied by the variable above

Where the backend goes depends on what the platform lets be replaced: CPU takes its CPU_ATTN whatever is asked, so that is
overridden; CUDA and ROCm take `--attention-backend CUSTOM`; XPU takes FLASH_ATTN. See `vllm_backend` for the classes.

Nothing is imported here before it is needed: every vLLM process pays for it.
"""

from __future__ import annotations

import os

VARIABLE = "ATTNKIT_VLLM_BACKEND"
TURING_VARIABLE = "ATTNKIT_VLLM_TURING"
PLACES = {"cpu": "CPU_ATTN", "cuda": "CUSTOM", "rocm": "CUSTOM", "xpu": "FLASH_ATTN"}
"""The name in vLLM's registry under which attnkit's backend goes, by vLLM's word for the platform."""
CLASSES = {"CPU_ATTN": "InCpuAttn", "CUSTOM": "AsCustom", "FLASH_ATTN": "InFlashAttn"}
"""Class of `vllm_backend` by place."""


def register() -> None:
    """Put the backend that the environment names into vLLM's registry. Again is the same; unset does nothing.

    Raises:
        UsageError: the variable names no backend of attnkit, or this vLLM platform has no place for one. It must not pass
            silently: the user would be served by another backend than the one asked for.
    """
    name = os.environ.get(VARIABLE, "").strip()
    if name or os.environ.get(TURING_VARIABLE) == "1":
        _enable_turing()
    if not name:
        return
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from attnkit.backends.registry import canonical

    canonical(name)
    place = place_here()
    register_backend(AttentionBackendEnum[place], f"attnkit.engines.vllm_backend.{CLASSES[place]}")


def platform_here() -> str:
    """vLLM's word for the platform of this process: cpu, cuda, rocm, xpu, tpu."""
    from vllm.platforms import current_platform

    return str(current_platform._enum.name).lower()


def place_here() -> str:
    """The name under which attnkit's backend goes on this platform.

    Raises:
        UsageError: vLLM has no such place here.
    """
    from attnkit.errors import UsageError

    platform = platform_here()
    try:
        return PLACES[platform]
    except KeyError:
        known = ", ".join(PLACES)
        raise UsageError(f"{VARIABLE}: vLLM on {platform} lets no attention backend be replaced; it can on {known}") from None


def _enable_turing() -> None:
    """On sm_75, bring the tensor cores back to every Triton kernel of this process. CUDA is not initialised."""
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return
    capability = current_platform.get_device_capability()
    if capability is not None and capability.to_int() == 75:
        from attnkit.kernels import turing

        turing.enable()
