"""Multi-head latent attention of vLLM's CPU platform over a backend of attnkit, in the place of CPU_MLA and AMX_MLA.

vLLM has MLA layers take backends of their own: an override of CPU_ATTN does not reach them. Its layer absorbs W_UK into the
query and applies W_UV to the result, so that decoding is one `MlaDecode` call over the compressed cache. Prefill is expanded
through W_UK and W_UV and becomes one causal `VarlenAttention` call; where tokens are cached already (chunks, a shared prefix),
their rows are read from the cache and expanded with the new ones. The cache is written as vLLM's CPU_MLA writes it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.v1.attention.backend import AttentionImpl, MultipleOf
from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend, CPUMLAImpl

from attnkit.backends.base import Capability
from attnkit.backends.torch_common import slots
from attnkit.engines.vllm.log import LOG_LINE
from attnkit.engines.vllm.requirements import capability, chosen, dtype_name, evaluate, provider_for
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionSpec, MlaDecode, Softmax, VarlenAttention

logger = init_logger("vllm.plugins.attnkit")


class InCpuMla(CPUMLABackend):  # type: ignore[misc]
    """In the place of CPU_MLA: what vLLM takes for MLA layers on a CPU without AMX. It has the block size 16 there."""

    @staticmethod
    def attnkit_capability() -> Capability:
        """What the chosen backend can do for MLA decoding here."""
        return capability("mla_decode")

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        """Nothing said here; the implementation refuses a layer, with the reasons."""
        return []

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """The block sizes of the backend's provider."""
        found = capability("mla_decode")
        if found.block_sizes is not None:
            return sorted(found.block_sizes)
        return [MultipleOf(max(found.block_multiple, found.min_block_size))]

    @classmethod
    def supports_block_size(cls, block_size: int | None) -> bool:
        """As the backend's provider says."""
        sizes = cls.get_supported_kernel_block_sizes()
        return block_size is None or any(block_size % getattr(size, "base", size) == 0 for size in sizes)

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        """The implementation."""
        return InCpuMlaImpl


class InAmxMla(InCpuMla):
    """In the place of AMX_MLA: what vLLM takes for MLA layers on a CPU with AMX, with prefix caching and chunked prefill."""

    @staticmethod
    def get_name() -> str:
        """The slot's name."""
        return "AMX_MLA"

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        """The implementation."""
        return InAmxMlaImpl


class InCpuMlaImpl(CPUMLAImpl):  # type: ignore[misc]
    """One MLA layer's attention through the chosen backend; the cache's layout and its writing are vLLM's."""

    slot = "CPU_MLA"

    def __init__(self, *args: Any, **named: Any) -> None:
        """See vLLM's CPUMLAImpl.

        Raises:
            UnsupportedError: the backend cannot serve this layer; the message lists every reason.
        """
        from vllm.config import get_current_vllm_config

        super().__init__(*args, **named)
        if self.indexer is not None:
            raise UnsupportedError("attnkit in vLLM does not serve sparse MLA (an indexer that picks keys)")
        if "fp8" in self.kv_cache_dtype:
            raise UnsupportedError(f"vLLM on CPU writes no {self.kv_cache_dtype} cache for MLA; take --kv-cache-dtype auto")
        config = get_current_vllm_config()
        dtype = config.model_config.dtype if config.model_config else torch.get_default_dtype()
        self.backend = chosen()
        decode = AttentionSpec(
            op="mla_decode",
            dtype=dtype_name(dtype),  # type: ignore[arg-type]
            num_heads=self.num_heads,
            num_kv_heads=1,
            head_dim=self.head_size,
            head_dim_v=self.kv_lora_rank,
            block_size=config.cache_config.block_size,
            phases=frozenset({"decode"}),
        )
        prefill = AttentionSpec(
            op="varlen",
            dtype=decode.dtype,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.qk_head_dim,
            head_dim_v=self.v_head_dim,
            block_size=None,
            phases=frozenset({"prefill"}),
        )
        self.decode_provider = provider_for(decode)
        found, _ = evaluate(prefill)
        self.value_dim = self.v_head_dim if found else self.qk_head_dim  # padded with zeros where it must be as wide as a key
        self.prefill_provider = found or provider_for(replace(prefill, head_dim_v=None))
        logger.info_once(LOG_LINE.format(backend=self.backend.name, slot=self.slot))

    def forward_mqa(
        self,
        q: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: Any,
        layer: Any,
    ) -> tuple[torch.Tensor, None]:
        """Decode: one new token a sequence.

        Args:
            q: [num_seqs, num_heads, kv_lora_rank + rope], or its two parts. kv_c_and_k_pe_cache: [num_blocks, block_size, the
                same width].

        Returns:
            [num_seqs, num_heads, kv_lora_rank], and None: the log-sum-exp is for context parallelism, which CPUs do not have.
        """
        query = torch.cat(q, dim=-1) if isinstance(q, tuple) else q
        decode, n = attn_metadata.decode, query.shape[0]
        table = decode.block_table
        call = MlaDecode(
            query,
            kv_c_and_k_pe_cache,
            table,
            decode.seq_lens,
            torch.arange(n + 1, dtype=torch.int32, device=query.device),
            1,
            min(attn_metadata.max_seq_len, table.shape[1] * kv_c_and_k_pe_cache.shape[1]),
            self.kv_lora_rank,
            self.scale,
        )
        return self.backend.run(call, self.decode_provider).out, None

    def forward_mha(
        self,
        q: torch.Tensor,
        kv_c_normed: torch.Tensor,
        k_pe: torch.Tensor,
        kv_c_and_k_pe_cache: torch.Tensor,
        attn_metadata: Any,
        k_scale: torch.Tensor,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
    ) -> None:
        """Prefill, into `output`.

        Args:
            q: [num_tokens, num_heads, nope + rope]. kv_c_normed: [num_tokens, kv_lora_rank] and k_pe: [num_tokens, 1, rope] of
                the new tokens, which the cache holds already. output: [num_tokens, num_heads * v_head_dim].
        """
        if output_scale is not None:
            raise UnsupportedError(f"{self.backend.name} in vLLM does not quantise its output")
        prefill = attn_metadata.prefill
        starts = key_starts = prefill.query_start_loc
        longest = prefill.max_query_len
        latent, rope = kv_c_normed, k_pe
        if prefill.chunked_context is not None:
            lens = prefill.chunked_context.context_lens.to(starts.device) + starts.diff()
            key_starts = torch.nn.functional.pad(torch.cumsum(lens, 0, dtype=torch.int32), (1, 0))
            longest = int(lens.max())
            slot = slots(prefill.block_table, lens.tolist(), kv_c_and_k_pe_cache.shape[1])
            rows = kv_c_and_k_pe_cache.flatten(0, 1)[slot]
            latent, rope = rows[:, : self.kv_lora_rank], rows[:, None, self.kv_lora_rank :]
        expanded = self.kv_b_proj(latent)[0].view(-1, self.num_heads, self.qk_nope_head_dim + self.v_head_dim)
        nope, value = expanded.split([self.qk_nope_head_dim, self.v_head_dim], dim=-1)
        key = torch.cat([nope, rope.expand(-1, self.num_heads, -1)], dim=-1)
        if self.value_dim > self.v_head_dim:
            value = torch.nn.functional.pad(value, (0, self.value_dim - self.v_head_dim))
        call = VarlenAttention(q, key, value, starts, key_starts, prefill.max_query_len, longest, Softmax(self.scale))
        out = self.backend.run(call, self.prefill_provider).out[..., : self.v_head_dim]
        output.view(-1, self.num_heads, self.v_head_dim).copy_(out)


class InAmxMlaImpl(InCpuMlaImpl):
    """The same in the other slot."""

    slot = "AMX_MLA"
