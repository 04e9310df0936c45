"""What is mutated for each family of backends, and the models whose requirements the quick level is asked with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from attnkit.spec import AttentionSpec, Op


def _need(**changes: object) -> AttentionSpec:
    return AttentionSpec(**{"num_heads": 14, "num_kv_heads": 2, "head_dim": 64, **changes})  # type: ignore[arg-type]


_MODELS = (
    _need(),
    _need(dtype="float16", num_heads=8, features=frozenset({"window", "sinks"})),
    _need(dtype="float32", num_heads=4, features=frozenset({"lse"})),
    _need(num_heads=8, num_kv_heads=4, head_dim=128, features=frozenset({"softcap", "window"})),
    _need(dtype="float16", num_heads=4, num_kv_heads=4, features=frozenset({"alibi"})),
    _need(num_heads=8, kv_cache_dtype="fp8_e4m3"),
)
"""As small models ask: Qwen2.5's 0.5B; gpt-oss's window and sinks; prefix sharing, which needs the log-sum-exp; Gemma 2's cap
and window; ALiBi's Bloom; a float8 cache. Heads of a rank, so that an interpreter can answer."""


def _of(op: Op, *needs: AttentionSpec) -> tuple[AttentionSpec, ...]:
    return tuple(replace(need, op=op, block_size=None if op == "varlen" else need.block_size) for need in needs)


_MLA = tuple(
    _need(op="mla_decode", num_heads=16, num_kv_heads=1, head_dim=576, head_dim_v=512, block_size=64, **more)
    for more in ({}, {"dtype": "float16", "features": frozenset({"lse"})}, {"kv_cache_dtype": "fp8_e4m3"})
)


@dataclass(frozen=True)
class Family:
    """One family of backends.

    Args:
        backend, provider: what is asked.
        sources: files below the package, with how many mutants by rule at most; `path::function,function` takes those alone.
        needs: the models' requirements; the quick level is asked with each that is claimed.
        patches: attributes that are set once the mutated modules are loaded, so that code for a GPU is reached here.
        longest: the longest context that is asked; an interpreter takes minutes for more.
    """

    backend: str
    provider: str
    sources: Mapping[str, int]
    needs: tuple[AttentionSpec, ...]
    patches: Mapping[str, object] = field(default_factory=dict)
    longest: int = 70000


_TRITON = "kernels/triton"
_INTERPRETER = "attnkit-interpreter"

FAMILIES: Mapping[str, Family] = {
    "TRITON_ATTN": Family(
        "TRITON_ATTN",
        _INTERPRETER,
        {
            f"{_TRITON}/tiles.py": 24,
            f"{_TRITON}/rows.py": 14,
            f"{_TRITON}/merge_splits.py": 8,
            f"{_TRITON}/paged/prefill_kernel.py": 5,
            f"{_TRITON}/paged/decode_kernel.py": 5,
            f"{_TRITON}/paged/plan.py": 8,
        },
        (*_MODELS, *_of("varlen", _MODELS[0])),
        longest=1100,
    ),
    "TRITON_MLA": Family(
        "TRITON_MLA", _INTERPRETER, {f"{_TRITON}/mla/kernel.py": 20, f"{_TRITON}/mla/plan.py": 6}, _MLA, longest=1100
    ),
    "TREE_ATTN": Family(
        "TREE_ATTN",
        _INTERPRETER,
        {f"{_TRITON}/tiles.py::visible_keys,whole_tiles,attend": 14, f"{_TRITON}/paged/plan.py::_softmax_args": 4},
        _of("tree", _MODELS[0], _need(dtype="float16", features=frozenset({"lse"})), _MODELS[5]),
        longest=1100,
    ),
    "DUAL_CHUNK_FLASH_ATTN": Family(
        "DUAL_CHUNK_FLASH_ATTN",
        _INTERPRETER,
        {f"{_TRITON}/dual_chunk/kernel.py": 18, f"{_TRITON}/dual_chunk/plan.py": 5},
        _of("dual_chunk", _MODELS[0], _need(dtype="float16", num_heads=4, features=frozenset({"lse"})), _MODELS[5]),
        longest=1100,
    ),
    "DUAL_CHUNK_FLASH_ATTN, composed": Family(
        "DUAL_CHUNK_FLASH_ATTN",
        _INTERPRETER,
        {f"{_TRITON}/dual_chunk/composed_kernels.py": 20, f"{_TRITON}/dual_chunk/composed_plan.py": 5},
        _of("dual_chunk", _MODELS[0], _need(dtype="float16", num_heads=4, features=frozenset({"lse"}))),
        {"attnkit.kernels.triton.dual_chunk.composed_plan.ARCHS": ("sm_90", "interpreter")},
        longest=1100,
    ),
    "DIFFERENTIAL_FLASH_ATTN": Family(
        "DIFFERENTIAL_FLASH_ATTN",
        _INTERPRETER,
        {f"{_TRITON}/differential.py": 20},
        _of(
            "differential",
            _need(num_heads=8, num_kv_heads=2),
            _need(dtype="float16", num_heads=4, features=frozenset({"window"})),
            _need(num_heads=4, kv_cache_dtype="fp8_e4m3"),
        ),
        longest=1100,
    ),
    "TORCH_SDPA, C++": Family(
        "TORCH_SDPA",
        "attnkit-cpu",
        {
            "kernels/cpu/attention.cpp": 26,
            "kernels/cpu/few_rows.h": 12,
            "kernels/cpu/dispatch.cpp": 12,
            "kernels/cpu/launch.py": 6,
        },
        (*_MODELS, _MLA[0], *_of("varlen", _MODELS[0])),
    ),
    "TORCH_SDPA": Family(
        "TORCH_SDPA",
        "torch",
        {"backends/torch_sdpa.py": 22, "backends/torch_common.py": 14},
        (_MODELS[0], *_MODELS[1:3], *_MODELS[4:], _MLA[0], *_of("varlen", _MODELS[0]), *_of("tree", _MODELS[0])),
        longest=4000,
    ),
    "FLEX_ATTENTION": Family(
        "FLEX_ATTENTION",
        "torch",
        {"backends/flex_attention.py": 20},
        (*_MODELS, *_of("varlen", _MODELS[0]), *_of("tree", _MODELS[0])),
        longest=1100,
    ),
}
"""By name. XFORMERS (through torch, too) runs on NVIDIA alone, Hopper's and Turing's kernels on their GPUs, other libraries
where they are installed: not here."""
