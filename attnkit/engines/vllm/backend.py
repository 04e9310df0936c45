"""vLLM's attention interface (AttentionBackend, AttentionImpl, AttentionMetadataBuilder) over any backend of attnkit.

Which one is in ATTNKIT_VLLM_BACKEND; `vllm_plugin.register` puts these classes into vLLM's registry. Every batch becomes one
`PagedAttention` (decoders) or `VarlenAttention` (encoders) call. The cache is [num_blocks, block_size, num_kv_heads,
2 * head_dim], keys in the first half of a row and values in the second, so that both are views of it without a copy.

A layer that the backend's capability refuses is an error when the model is built, with every reason; nothing else is computed
in its place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from vllm.logger import init_logger
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    MultipleOf,
)

from attnkit.backends.base import Capability
from attnkit.engines.vllm.batch import AttnkitBuilder, AttnkitMetadata, Part, behind_window
from attnkit.engines.vllm.log import LOG_LINE
from attnkit.engines.vllm.plugin import slot_here
from attnkit.engines.vllm.requirements import ENCODERS, FP8, capability, chosen, evaluate, layer_requirements, provider_for
from attnkit.errors import UnsupportedError
from attnkit.kernels.cache import write_kv_cache
from attnkit.kernels.cpu.library import PROVIDER
from attnkit.spec import NO_WINDOW, Feature, PagedAttention, Softmax, VarlenAttention

logger = init_logger("vllm.plugins.attnkit")


class AttnkitBackend(AttentionBackend):  # type: ignore[misc]
    """What does not depend on the slot it takes in vLLM's registry."""

    forward_includes_kv_cache_update: bool = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16", *FP8]
    heads_first: ClassVar[bool] = False
    """Heads before tokens in a block's memory, for CPUs: one head's rows lie side by side. Else tokens before heads, which
    is what the providers on GPUs take."""

    @staticmethod
    def attnkit_capability() -> Capability:
        """What the chosen backend's provider for this platform's devices can do."""
        return capability("paged")

    @staticmethod
    def get_impl_cls() -> type[AttentionImpl]:
        """The implementation."""
        return AttnkitImpl

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        """The metadata builder."""
        return AttnkitBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """The block sizes of the backend's first provider."""
        found = capability("paged")
        if found.block_sizes is not None:
            return sorted(found.block_sizes)
        return [MultipleOf(max(found.block_multiple, found.min_block_size))]

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int, cache_dtype_str: str = "auto"
    ) -> tuple[int, ...]:
        """[num_blocks, num_kv_heads, block_size, 2 * head_size], for vLLM versions that ask the backend."""
        return num_blocks, num_kv_heads, block_size, 2 * head_size

    @classmethod
    def get_kv_cache_stride_order(cls, include_num_layers_dimension: bool = False) -> tuple[int, ...]:
        """As `heads_first` says. vLLM asks for a layout across layers, too; this exception is its word for "none"."""
        if include_num_layers_dimension:
            raise NotImplementedError
        return (0, 1, 2, 3) if cls.heads_first else (0, 2, 1, 3)

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[Any, ...]:
        """As `heads_first` says, for vLLM versions where the layout belongs to the cache."""
        from vllm.v1.kv_cache_interface import KVCacheLayout

        return (KVCacheLayout.LBHNC if cls.heads_first else KVCacheLayout.LBNHC,)

    @classmethod
    def supports_sink(cls) -> bool:
        """Whether any provider honours attention sinks."""
        return _claims("sinks")

    @classmethod
    def supports_sliding_window(cls) -> bool:
        """Whether any provider honours a window."""
        return _claims("window")

    @classmethod
    def supports_non_causal(cls) -> bool:
        """Whether any provider serves without a causal mask."""
        return _claims("non_causal")

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        """Decoders and encoders; no cross attention."""
        return attn_type == AttentionType.DECODER or (attn_type in ENCODERS and _claims("non_causal"))

    @classmethod
    def validate_configuration(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | None,
        block_size: int | None,
        use_mla: bool = False,
        has_sink: bool = False,
        use_sparse: bool = False,
        use_mm_prefix: bool = False,
        *others: Any,
        attn_type: str = AttentionType.DECODER,
        has_sliding_window: bool = False,
        use_non_causal: bool = False,
        **more: Any,
    ) -> list[str]:
        """vLLM's question, answered from attnkit's capability data; what vLLM asks beyond that is refused where it is set."""
        wanted: dict[Feature, bool] = {"sinks": has_sink, "window": has_sliding_window, "non_causal": use_non_causal}
        beyond = {"use_mla": use_mla, "use_sparse": use_sparse, "use_mm_prefix": use_mm_prefix}
        beyond |= {name: bool(value) for name, value in more.items() if name.startswith("use_") and name != "use_kv_connector"}
        reasons = [f"{name.removeprefix('use_')} is not supported" for name, asked in beyond.items() if asked]
        if not cls.supports_attn_type(attn_type):
            reasons.append(f"attention type {attn_type} is not supported")
            return reasons
        try:
            spec = layer_requirements(
                head_size=head_size,
                dtype=dtype,
                kv_cache_dtype=kv_cache_dtype,
                block_size=block_size,
                attn_type=attn_type,
                features=frozenset(name for name, asked in wanted.items() if asked),
            )
        except UnsupportedError as error:
            return [*reasons, str(error)]
        return reasons + evaluate(spec)[1]


def _claims(feature: Feature) -> bool:
    return any(feature in provider.capability.features for provider in chosen().providers)


class InCpuAttn(AttnkitBackend):
    """In the place of CPU_ATTN, the only backend that vLLM takes on CPU."""

    heads_first: ClassVar[bool] = True

    @staticmethod
    def get_name() -> str:
        """The slot's name."""
        return "CPU_ATTN"


class InFlashAttn(AttnkitBackend):
    """In the place of FLASH_ATTN, on XPU."""

    @staticmethod
    def get_name() -> str:
        """The slot's name."""
        return "FLASH_ATTN"


class AsCustom(AttnkitBackend):
    """As CUSTOM, on CUDA and ROCm."""

    @staticmethod
    def get_name() -> str:
        """The slot's name."""
        return "CUSTOM"


class AttnkitImpl(AttentionImpl[AttnkitMetadata]):  # type: ignore[misc]
    """One layer's attention through the chosen backend."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: torch.Tensor | None = None,
        **others: Any,
    ) -> None:
        """See vLLM's AttentionImpl.

        Raises:
            UnsupportedError: the backend cannot serve this layer; the message lists every reason.
        """
        from vllm.config import get_current_vllm_config

        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype, self.attn_type = kv_cache_dtype, attn_type
        self.backend = chosen()
        if others:  # what a model hands to a special attention of its own (dual chunk attention, for one) changes the result
            raise UnsupportedError(f"{self.backend.name} in vLLM does not take this layer's {', '.join(sorted(others))}")
        window = NO_WINDOW if sliding_window is None or sliding_window < 0 else (sliding_window - 1, -1)
        if attn_type in ENCODERS and window != NO_WINDOW:
            window = (window[0], window[0])
        self.softmax = Softmax(
            self.scale,
            causal=attn_type not in ENCODERS,
            window=window,
            softcap=logits_soft_cap or 0.0,
            alibi_slopes=None if alibi_slopes is None else torch.tensor(alibi_slopes, dtype=torch.float32),
            sinks=sinks,
        )
        if attn_type != AttentionType.DECODER and attn_type not in ENCODERS:
            raise UnsupportedError(f"{self.backend.name} in vLLM does not serve attention type {attn_type}")
        config = get_current_vllm_config()
        self.provider = provider_for(
            layer_requirements(
                head_size=head_size,
                dtype=config.model_config.dtype if config.model_config else torch.get_default_dtype(),
                kv_cache_dtype=kv_cache_dtype,
                block_size=config.cache_config.block_size,
                num_heads=num_heads,
                num_kv_heads=self.num_kv_heads,
                attn_type=attn_type,
                features=self.softmax.features(False) - {"non_causal"},
            )
        )
        self.whole = self.provider == PROVIDER  # one kernel takes decodes and chunks
        kind = next(one.kind for one in self.backend.providers if one.name == self.provider)
        self.reads_all = kind != "kernel"  # even what no window reaches; a kernel skips that by itself
        logger.info_once(LOG_LINE.format(backend=self.backend.name, slot=slot_here()))

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: AttnkitMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute into `output`.

        Args:
            layer: vLLM's layer, with the cache's scales.
            query, output: [num_tokens, num_heads, head_size]; key, value: [num_tokens, num_kv_heads, head_size].
            kv_cache: [num_blocks, num_kv_heads, block_size, 2 * head_size].
            attn_metadata: None while vLLM warms up.
        """
        if output_scale is not None or output_block_scale is not None:
            raise UnsupportedError(f"{self.backend.name} in vLLM does not quantise its output")
        if attn_metadata is None:
            return output.zero_()
        batch, n = attn_metadata, attn_metadata.num_actual_tokens
        out = output[:n].view(n, self.num_heads, self.head_size)
        query = query[:n].view(n, self.num_heads, self.head_size)
        if self.attn_type in ENCODERS:
            starts, longest = batch.query_start_loc, batch.max_query_len
            call = VarlenAttention(query, key[:n], value[:n], starts, starts, longest, longest, self.softmax, out=out)
            self.backend.run(call, self.provider)
            return output
        for part in (batch.whole(),) if self.whole else batch.parts:
            self._run(layer, query, kv_cache, part, out)
        return output

    def _run(self, layer: Any, query: torch.Tensor, kv_cache: torch.Tensor, part: Part, out: torch.Tensor) -> None:
        key_cache, value_cache = self._halves(kv_cache)
        softmax = self.softmax if part.causal else replace(self.softmax, causal=False)
        table, lens, longest = part.block_table, part.seq_lens, part.max_seq_len
        if self.reads_all and softmax.window[0] >= 0 and softmax.alibi_slopes is None:
            table, lens, longest = behind_window(part, softmax.window[0], kv_cache.shape[2])
        call = PagedAttention(
            query[part.tokens],
            key_cache,
            value_cache,
            table,
            lens,
            part.query_start_loc,
            part.max_query_len,
            longest,
            softmax,
            k_scale=layer._k_scale_float,
            v_scale=layer._v_scale_float,
            out=out[part.tokens],
        )
        self.backend.run(call, self.provider)

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        """Write new keys and values. Padding (slot -1) is left out, or goes to the null block, which no sequence reads."""
        if self.attn_type in ENCODERS or kv_cache.numel() == 0:
            return
        n = slot_mapping.shape[0]
        key, value = key[:n], value[:n]
        write_kv_cache(key, value, *self._halves(kv_cache), slot_mapping, layer._k_scale_float, layer._v_scale_float)

    def _halves(self, kv_cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as [num_blocks, block_size, num_kv_heads, head_size] views of vLLM's cache."""
        if self.kv_cache_dtype in FP8:
            kv_cache = kv_cache.view(FP8[self.kv_cache_dtype][1])
        tokens_first = kv_cache.transpose(1, 2)
        return tokens_first[..., : self.head_size], tokens_first[..., self.head_size :]
