"""A plugin of vLLM that takes the place of CPU_ATTN in the processes that serve, and in no other."""

import os


def register() -> None:
    if "ATTNKIT_CENSUS_DIR" not in os.environ:  # the census and the self-test, which come first, see vLLM's own
        return
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CPU_ATTN, "swapped.Swapped")
