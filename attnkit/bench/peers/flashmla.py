"""FlashMLA's dense decode, as vLLM ships it. Its first call leaves a plan in the metadata object, which later ones reuse."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from attnkit.bench.peers.base import Peer, Run, Unsupported
from attnkit.spec import Call, MlaDecode


class FlashMla(Peer):
    """vllm.third_party.flashmla."""

    name: ClassVar[str] = "FlashMLA dense"
    package: ClassVar[str] = "vllm"
    modules: ClassVar[tuple[str, ...]] = ("vllm.third_party.flashmla.flash_mla_interface",)
    groups: ClassVar[tuple[str, ...]] = ("mla",)

    def prepare(self, call: Call) -> Run:
        """See `Peer.prepare`."""
        from vllm.third_party.flashmla.flash_mla_interface import flash_mla_with_kvcache, get_mla_metadata

        if not isinstance(call, MlaDecode):
            raise Unsupported(f"no {call.op}")
        if call.query.shape[0] != call.seq_lens.shape[0]:
            raise Unsupported("one new token a sequence here")
        metadata, _ = get_mla_metadata()
        query, cache = call.query.unsqueeze(1), call.kv_cache.unsqueeze(2)

        def run() -> tuple[Tensor, str]:
            out, _ = flash_mla_with_kvcache(
                q=query,
                k_cache=cache,
                block_table=call.block_table,
                cache_seqlens=call.seq_lens,
                head_dim_v=call.kv_lora_rank,
                tile_scheduler_metadata=metadata,
                softmax_scale=call.softmax_scale,
                causal=True,
            )
            return out.squeeze(1), "flashmla.dense"

        run()  # plans; a graph must not capture that
        return run
