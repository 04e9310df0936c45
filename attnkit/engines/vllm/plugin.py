"""attnkit's backends inside vLLM: the entry point of the group `vllm.general_plugins`.

vLLM calls `register` in every process it starts (API server, engine core, workers). Environment variables are the only channel
it leaves to a plugin:

    ATTNKIT_VLLM_BACKEND=NAME   attention is computed by attnkit's backend NAME; unset: vLLM is left alone
    ATTNKIT_VLLM_TURING=1       on sm_75, tensor cores for vLLM's own Triton kernels; implied by the variable above
    ATTNKIT_CENSUS_DIR=DIR      set by boot: the workers write down which layers they built (`serving_census`)

Where the backend goes depends on what the platform lets be replaced: CPU takes its CPU_ATTN (for MLA layers CPU_MLA or
AMX_MLA) whatever is asked, so these are overridden; CUDA and ROCm take `--attention-backend CUSTOM`; XPU takes FLASH_ATTN. See
`vllm_backend` and `vllm_backend_mla` for the classes. A layer for which vLLM would take anything else is refused: with the
variable set, nothing but attnkit's backend computes attention.

Nothing is imported here before it is needed: every vLLM process pays for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnkit.backends.base import Backend

VARIABLE = "ATTNKIT_VLLM_BACKEND"
TURING_VARIABLE = "ATTNKIT_VLLM_TURING"
CENSUS_VARIABLE = "ATTNKIT_CENSUS_DIR"
SLOTS = {"cpu": "CPU_ATTN", "cuda": "CUSTOM", "rocm": "CUSTOM", "xpu": "FLASH_ATTN"}
"""The name in vLLM's registry under which attnkit's backend goes, by vLLM's word for the platform."""
MLA_SLOTS = {"cpu": ("CPU_MLA", "AMX_MLA")}
"""The same for layers of multi-head latent attention: one for CPUs without AMX, one for those with it."""
CLASSES = {
    "CPU_ATTN": "backend.InCpuAttn",
    "CUSTOM": "backend.AsCustom",
    "FLASH_ATTN": "backend.InFlashAttn",
    "CPU_MLA": "backend_mla.InCpuMla",
    "AMX_MLA": "backend_mla.InAmxMla",
}
"""Class by slot."""
PACKAGE = "attnkit.engines.vllm."

_ASKED_OPS = {"paged", "varlen", "mla_decode"}
_NEVER_ASKED = {
    "tree": "the tree of a speculative batch",
    "dual_chunk": "keys without their rotary embedding",
    "differential": "the lambdas and the paired heads",
}
"""What vLLM's layers would have to hand over for an operation that they do not ask for."""


def register() -> None:
    """Put the backend that the environment names into vLLM's registry. Again is the same; unset does nothing.

    Raises:
        UsageError: the variable names no backend of attnkit, or this vLLM platform has no slot for one. It must not pass
            silently: the user would be served by another backend than the one asked for.
        UnsupportedError: vLLM's layers never ask for what the backend computes.
    """
    if directory := os.environ.get(CENSUS_VARIABLE):
        from attnkit.engines.vllm import serving_census

        serving_census.install(directory)
    name = os.environ.get(VARIABLE, "").strip()
    if name or os.environ.get(TURING_VARIABLE) == "1":
        _enable_turing()
    if not name:
        return
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from attnkit.backends.registry import get
    from attnkit.errors import UnsupportedError

    backend = get(name)
    if needs := lacking(backend):
        raise UnsupportedError(f"{VARIABLE}={backend.name}: vLLM's attention layers do not hand over {needs}")
    for slot in (slot_here(), *MLA_SLOTS.get(platform_here(), ())):
        if slot in AttentionBackendEnum.__members__:
            register_backend(AttentionBackendEnum[slot], PACKAGE + CLASSES[slot])
    _guard()


def lacking(backend: Backend) -> str:
    """What vLLM's layers would have to hand over for `backend` to compute anything; "" where they ask for what it computes."""
    ops = {op for provider in backend.providers for op in provider.capability.ops}
    return "" if ops & _ASKED_OPS else " and ".join(_NEVER_ASKED[op] for op in sorted(ops))


def platform_here() -> str:
    """vLLM's word for the platform of this process: cpu, cuda, rocm, xpu, tpu."""
    from vllm.platforms import current_platform

    return str(current_platform._enum.name).lower()


def slot_here() -> str:
    """The name under which attnkit's backend goes on this platform.

    Raises:
        UsageError: vLLM has no such slot here.
    """
    from attnkit.errors import UsageError

    platform = platform_here()
    try:
        return SLOTS[platform]
    except KeyError:
        known = ", ".join(SLOTS)
        raise UsageError(f"{VARIABLE}: vLLM on {platform} lets no attention backend be replaced; it can on {known}") from None


def _guard() -> None:
    """Refuse every layer for which this platform chooses a backend that is not attnkit's, and models that cannot come so far.

    vLLM asks the platform once for every kind of layer. Without this, an MLA layer where there is no place for one, or CUDA
    without `--attention-backend CUSTOM`, would be computed by vLLM without a word.
    """
    from vllm.platforms import current_platform

    platform: Any = type(current_platform)
    choose, check = platform.get_attn_backend_cls, platform.check_and_update_config
    if getattr(choose, "attnkit", False):
        return

    def guarded(cls: Any, *args: Any, **named: Any) -> str:
        path = str(choose(*args, **named))
        if not path.startswith(PACKAGE):
            raise _not_ours(path)
        return path

    def checked(cls: Any, vllm_config: Any) -> None:
        check(vllm_config)
        _refuse_dual_chunk(vllm_config)

    guarded.attnkit = True  # type: ignore[attr-defined]
    platform.get_attn_backend_cls = classmethod(guarded)
    platform.check_and_update_config = classmethod(checked)


def _not_ours(path: str) -> Exception:
    from attnkit.errors import UnsupportedError

    platform, slot = platform_here(), slot_here()
    taken = ", ".join((slot, *MLA_SLOTS.get(platform, ())))
    how = f", which needs --attention-backend {slot}" if platform in ("cuda", "rocm") else ""
    return UnsupportedError(
        f"{_set_to()}: vLLM would run {path} for a layer of this model; on {platform} attnkit takes the place of {taken}{how}"
    )


def _refuse_dual_chunk(vllm_config: Any) -> None:
    """Qwen2.5-1M's attention: vLLM would fail later, for want of a CUDA device or over the layer's arguments."""
    from attnkit.errors import UnsupportedError

    model = getattr(vllm_config, "model_config", None)
    if model is not None and getattr(model.hf_text_config, "dual_chunk_attention_config", None):
        raise UnsupportedError(
            f"{_set_to()}: this model asks for dual chunk attention. vLLM rotates its keys before attention gets them (and "
            "builds that rotation on CUDA alone); attnkit's DUAL_CHUNK_FLASH_ATTN takes keys without it. Without the entry "
            "dual_chunk_attention_config in its config.json the model is served with plain attention, for its original length"
        )


def _set_to() -> str:
    return f"{VARIABLE}={os.environ[VARIABLE].strip()}"


def _enable_turing() -> None:
    """On sm_75, bring the tensor cores back to every Triton kernel of this process. CUDA is not initialised."""
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return
    capability = current_platform.get_device_capability()
    if capability is not None and capability.to_int() == 75:
        from attnkit.kernels.turing import hook

        hook.enable()
