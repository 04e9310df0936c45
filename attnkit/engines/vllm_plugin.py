"""The path of vLLM's entry point, which installed wheels name."""

from attnkit.engines.vllm.plugin import register

__all__ = ["register"]
