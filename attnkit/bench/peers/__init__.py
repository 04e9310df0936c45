"""Peers: one file a family; the order here is the order in which they run on a workload."""

from __future__ import annotations

from attnkit.bench.peers import composed, flash_attn_4, flashinfer, flashmla, ours, torch_sdpa, vllm_fa3, vllm_triton
from attnkit.bench.peers.base import Peer, Run, Unsupported

OURS: tuple[Peer, ...] = (ours.Triton(),)

PEERS: tuple[Peer, ...] = (
    vllm_fa3.Fa3(),
    flashinfer.Decode(),
    flashinfer.Ragged(),
    flashinfer.Paged(),
    flashinfer.Split(),
    flashinfer.Mla(),
    flashmla.FlashMla(),
    torch_sdpa.Cudnn(),
    torch_sdpa.Flash(),
    composed.ComposedFa3(),
    composed.ComposedOurs(),
    flash_attn_4.Fa4(),
    flash_attn_4.Fa4Page128(),
    vllm_triton.Unified(),
    vllm_triton.GroupedDecode(),
    vllm_triton.Prefill(),
    vllm_triton.Mla(),
    torch_sdpa.CudnnContiguous(),
)

ON_CPU: tuple[Peer, ...] = (torch_sdpa.Math(),)
"""Stand-ins that run without a GPU, so that the rest of the benchmark can be tested there."""

__all__ = ["ON_CPU", "OURS", "PEERS", "Peer", "Run", "Unsupported"]
