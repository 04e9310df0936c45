"""Which provider is checked against which package, and what must arrive in which parameter there.

The versions are pinned: a report says what was read. Raising one here is how an upstream change is met on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tools.contracts.stand_in import Arguments, Returns

Lands: TypeAlias = Mapping[str, Mapping[str, str]]
"""By function and parameter: the field of the call whose value arrives there ("query", "softmax.softmax_scale")."""


@dataclass(frozen=True)
class Contract:
    """One provider and the published package its calls are checked against.

    Args:
        backend, provider: names in the registry.
        package: distribution on PyPI. version: the one to read. roots: its import names.
        arch: an architecture that the provider is for; nothing runs on it.
        returns: by function, what the call gives back: zeros of the shape that the package documents.
        lands: what must arrive where; everything else is only bound to the signature.
        facts: by module, lines of the package's source that `run` relies on, white space apart.
        operators: by compiled module and torch operator, the schema it registers.
        small: quick to download, so that the test suite checks it.
        installed: the package is the installed one, which can run the calls anywhere: they run, on CPU tensors, and their
            results are compared with TORCH_SDPA's. `version`, `roots`, `returns` and `lands` say nothing then.
    """

    backend: str
    provider: str
    package: str
    version: str
    roots: tuple[str, ...]
    arch: str
    returns: Returns
    lands: Lands
    facts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    operators: Mapping[tuple[str, str], str] = field(default_factory=dict)
    small: bool = False
    installed: bool = False

    @property
    def id(self) -> str:
        """Backend, provider, package and version in one word."""
        return "-".join(part for part in (self.backend, self.provider, self.package, self.version) if part)


def _heads_first(query: Any) -> Any:
    return query.new_zeros(query.shape[1], query.shape[0]).float()


def _flash(lse_flag: str) -> Any:
    """out [tokens, heads, width of v], and with `lse_flag` log-sum-exps [heads, tokens]."""

    def give(arguments: Arguments) -> Any:
        query = arguments["q"]
        out = query.new_zeros(*query.shape[:2], arguments["v"].shape[-1])
        if not arguments.get(lse_flag):
            return out
        return (out, _heads_first(query), None) if lse_flag == "return_attn_probs" else (out, _heads_first(query))

    return give


def _cute(arguments: Arguments) -> Any:
    query = arguments["q"]
    return query.clone(), _heads_first(query)


def _tokens_and_lse(arguments: Arguments) -> Any:
    """FlashInfer's run(..., return_lse=True)."""
    query = arguments["q"] if "q" in arguments else arguments["q_nope"]
    return query.clone(), query.new_zeros(query.shape[:2]).float()


_SCALE, _CAUSAL = "softmax.softmax_scale", "softmax.causal"
_LENGTHS = {"cu_seqlens_q": "query_start_loc", "max_seqlen_q": "max_query_len", "max_seqlen_k": "max_seq_len"}
_FLASH_COMMON = {"q": "query", "softmax_scale": _SCALE, "causal": _CAUSAL, **_LENGTHS}
_FLASH_PAGED = {"seqused_k": "seq_lens", "block_table": "block_table", "k": "key_cache", "v": "value_cache"}
_FLASH_VARLEN = {"cu_seqlens_k": "key_start_loc", "k": "key", "v": "value"}
_FLASH_FEATURES = {"softcap": "softmax.softcap", "alibi_slopes": "softmax.alibi_slopes"}
_BOTTOM_RIGHT = "If causal=True, the causal mask is aligned to the bottom right corner of the attention matrix."
_VLLM_VERSIONS = ("0.25.0", "0.33.0")  # the one that our GPU runs use, the one in the images
_FA_MODULE = "vllm.vllm_flash_attn.flash_attn_interface"
_FLASHINFER_VERSIONS = ("0.6.13", "0.7.2.post1")


def _vllm(version: str) -> tuple[Contract, ...]:
    common: dict[str, Any] = {"package": "vllm", "version": version, "roots": ("vllm",)}
    return (
        *(
            Contract(
                backend="FLASH_ATTN",
                provider=f"vllm_flash_attn-fa{fa}",
                arch="sm_90",
                returns={"flash_attn_varlen_func": _flash("return_softmax_lse")},
                lands={"flash_attn_varlen_func": {**_FLASH_COMMON, **_FLASH_PAGED, **_FLASH_VARLEN, **features}},
                facts={
                    _FA_MODULE: (
                        _BOTTOM_RIGHT,
                        f"fa_version == {fa}",
                        "softmax_lse [optional, if return_softmax_lse=True]: (nheads, total_q_seqlen)",
                    )
                },
                **common,
            )
            for fa, features in ((3, {"softcap": "softmax.softcap"}), (2, _FLASH_FEATURES))
        ),
        Contract(
            backend="FLASHMLA",
            provider="vllm-flashmla",
            arch="sm_90",
            returns={
                "get_mla_metadata": lambda a: (object(), None),
                "flash_mla_with_kvcache": lambda a: (
                    a["q"].new_zeros(*a["q"].shape[:3], a["head_dim_v"]),
                    a["q"].new_zeros(a["q"].shape[0], a["q"].shape[2], a["q"].shape[1]).float(),
                ),
            },
            lands={
                "flash_mla_with_kvcache": {
                    "block_table": "block_table",
                    "cache_seqlens": "seq_lens",
                    "head_dim_v": "kv_lora_rank",
                    "softmax_scale": "softmax_scale",
                }
            },
            facts={
                "vllm.third_party.flashmla.flash_mla_interface": (
                    "out: (batch_size, seq_len_q, num_heads_q, head_dim_v).",
                    "softmax_lse: (batch_size, num_heads_q, seq_len_q), torch.float32.",
                )
            },
            **common,
        ),
        Contract(
            backend="CUTLASS_MLA",
            provider="vllm-cutlass-mla",
            arch="sm_100",
            returns={"sm100_cutlass_mla_get_workspace_size": lambda a: 4096, "sm100_cutlass_mla_decode": lambda a: a["out"]},
            lands={
                "sm100_cutlass_mla_decode": {
                    "kv_c_and_k_pe_cache": "kv_cache",
                    "seq_lens": "seq_lens",
                    "scale": "softmax_scale",
                }
            },
            facts={
                "vllm.v1.attention.backends.mla.cutlass_mla": (
                    "assert block_num % (128 / PAGE_SIZE) == 0",
                    "out = q_nope.new_empty((B_q, MAX_HEADS, D_latent), dtype=dtype)",
                    "self._num_kv_splits = -1",
                )
            },
            operators={
                (
                    "vllm._C_stable_libtorch",
                    "sm100_cutlass_mla_decode",
                ): "(Tensor! out, Tensor! lse, Tensor q_nope, "
                "Tensor q_pe, Tensor kv_c_and_k_pe_cache, Tensor seq_lens, Tensor page_table, Tensor workspace, float scale, "
                "int num_kv_splits) -> ()"
            },
            **common,
        ),
        Contract(
            backend="FLASH_ATTN_MLA",
            provider="vllm_flash_attn-fa3",
            arch="sm_90",
            returns={"flash_attn_varlen_func": _flash("return_softmax_lse")},
            lands={
                "flash_attn_varlen_func": {
                    **_LENGTHS,
                    "seqused_k": "seq_lens",
                    "block_table": "block_table",
                    "softmax_scale": "softmax_scale",
                }
            },
            facts={_FA_MODULE: ("q_v",)},
            **common,
        ),
    )


def _flashinfer(version: str) -> tuple[Contract, ...]:
    small = version == _FLASHINFER_VERSIONS[-1]
    common: dict[str, Any] = {"package": "flashinfer-python", "version": version, "roots": ("flashinfer",), "small": small}
    softmax = {"sm_scale": _SCALE}
    return (
        Contract(
            backend="FLASHINFER",
            provider="flashinfer-python",
            arch="sm_90",
            returns={
                "BatchPrefillWithPagedKVCacheWrapper.run": _tokens_and_lse,
                "BatchDecodeWithPagedKVCacheWrapper.run": _tokens_and_lse,
                "BatchPrefillWithRaggedKVCacheWrapper.run": _tokens_and_lse,
            },
            lands={
                "BatchPrefillWithPagedKVCacheWrapper.plan": {**softmax, "causal": _CAUSAL},
                "BatchDecodeWithPagedKVCacheWrapper.plan": softmax,
                "BatchPrefillWithRaggedKVCacheWrapper.plan": {
                    **softmax,
                    "causal": _CAUSAL,
                    "qo_indptr": "query_start_loc",
                    "kv_indptr": "key_start_loc",
                },
                "BatchPrefillWithRaggedKVCacheWrapper.run": {"q": "query", "k": "key", "v": "value"},
            },
            **common,
        ),
        Contract(
            backend="FLASHINFER_MLA",
            provider="flashinfer-mla",
            arch="sm_90",
            returns={"BatchMLAPagedAttentionWrapper.run": _tokens_and_lse},
            lands={
                "BatchMLAPagedAttentionWrapper.plan": {
                    "qo_indptr": "query_start_loc",
                    "kv_len_arr": "seq_lens",
                    "head_dim_ckv": "kv_lora_rank",
                    "sm_scale": "softmax_scale",
                }
            },
            **common,
        ),
        Contract(
            backend="FLASHINFER_MLA",
            provider="flashinfer-trtllm",
            arch="sm_100",
            returns={
                "trtllm_batch_decode_with_kv_cache_mla": lambda a: a["query"].new_zeros(
                    *a["query"].shape[:3], a["kv_lora_rank"]
                )
            },
            lands={
                "trtllm_batch_decode_with_kv_cache_mla": {
                    "kv_lora_rank": "kv_lora_rank",
                    "block_tables": "block_table",
                    "seq_lens": "seq_lens",
                    "max_seq_len": "max_seq_len",
                    "bmm1_scale": "softmax_scale",
                }
            },
            **common,
        ),
    )


CONTRACTS: tuple[Contract, ...] = (
    *(contract for version in _VLLM_VERSIONS for contract in _vllm(version)),
    *(
        Contract(
            backend=backend,
            provider=provider,
            package="flash-attn",
            version="2.8.3.post2",
            roots=("flash_attn",),
            arch=arch,
            returns={"flash_attn_varlen_func": _flash("return_attn_probs")},
            lands={"flash_attn_varlen_func": {**_FLASH_COMMON, **lands}},
            facts={
                "flash_attn.flash_attn_interface": (
                    _BOTTOM_RIGHT,
                    "softmax_lse [optional, if return_attn_probs=True]: (nheads, total_q_seqlen)",
                )
            },
            small=True,
        )
        for backend, provider, arch, lands in (
            ("FLASH_ATTN", "flash-attn", "sm_80", {"block_table": "block_table", "k": "key_cache", **_FLASH_FEATURES}),
            ("ROCM_FLASH", "flash-attn-rocm", "gfx90a", {"alibi_slopes": "softmax.alibi_slopes"}),
        )
    ),
    Contract(
        backend="FLASH_ATTN",
        provider="flash-attn-4",
        package="flash-attn-4",
        version="4.0.0b36",
        roots=("flash_attn",),
        arch="sm_90",
        returns={"flash_attn_varlen_func": _cute},
        lands={
            "flash_attn_varlen_func": {
                **_FLASH_COMMON,
                "seqused_k": "seq_lens",
                "page_table": "block_table",
                "cu_seqlens_k": "key_start_loc",
                "k": "key_cache",
                "v": "value_cache",
            }
        },
        small=True,
    ),
    Contract(
        backend="XFORMERS",
        provider="xformers",
        package="xformers",
        version="0.0.35",
        roots=("xformers",),
        arch="sm_75",
        returns={"memory_efficient_attention_forward": lambda a: a["query"].clone()},
        lands={"memory_efficient_attention_forward": {"scale": _SCALE}},
        facts={
            "xformers.ops.fmha.attn_bias": ("Expected `num_keys >= num_queries`",),
            "xformers.ops.fmha.cutlass": ("assert attn_bias.k_seqinfo.seqstart.device == inp.query.device",),
        },
        small=True,
    ),
    *(contract for version in _FLASHINFER_VERSIONS for contract in _flashinfer(version)),
    Contract(
        backend="ROCM_AITER_FA",
        provider="amd-aiter",
        package="amd-aiter",
        version="0.1.7.post2.dev18",
        roots=("aiter",),
        arch="gfx942",
        returns={"flash_attn_varlen_func": _flash("return_lse")},
        lands={
            "flash_attn_varlen_func": {
                **_FLASH_COMMON,
                "logits_soft_cap": "softmax.softcap",
                "alibi_slopes": "softmax.alibi_slopes",
            }
        },
        facts={"aiter.ops.mha": (_BOTTOM_RIGHT,)},
    ),
    Contract(
        backend="ROCM_AITER_MLA",
        provider="amd-aiter",
        package="amd-aiter",
        version="0.1.7.post2.dev18",
        roots=("aiter",),
        arch="gfx942",
        returns={},
        lands={
            "mla_decode_fwd": {
                "q": "query",
                "qo_indptr": "query_start_loc",
                "max_seqlen_q": "max_query_len",
                "sm_scale": "softmax_scale",
            }
        },
        facts={"aiter.mla": ("num_page, page_size, nhead_kv, qk_head_dim = kv_buffer.shape", "bs = qo_indptr.shape[0] - 1")},
    ),
    Contract(
        backend="IPEX",
        provider="vllm-xpu-kernels",
        package="vllm-xpu-kernels",
        version="0.1.16.2",
        roots=("vllm_xpu_kernels",),
        arch="xe-hpc",
        returns={"flash_attn_varlen_func": _flash("return_softmax_lse")},
        lands={"flash_attn_varlen_func": {**_FLASH_COMMON, **_FLASH_PAGED, **_FLASH_VARLEN}},
        facts={"vllm_xpu_kernels.flash_attn_interface": ("(out, softmax_lse) if return_softmax_lse else (out)",)},
    ),
    Contract(
        backend="IPEX",
        provider="torch-xpu",
        package="torch",
        version="",
        roots=(),
        arch="xe-hpc",
        returns={},
        lands={},
        small=True,
        installed=True,
    ),
    Contract(
        backend="IPEX",
        provider="ipex",
        package="intel-extension-for-pytorch",
        version="2.8.0",
        roots=("intel_extension_for_pytorch",),
        arch="x86_64",
        returns={},
        lands={
            "_IPEXPagedAttentionCPU.flash_attn_varlen_func": {
                "query": "query",
                "cu_seq_lens_q": "query_start_loc",
                "max_seq_len_q": "max_query_len",
                "max_seq_len_kv": "max_seq_len",
                "scale": _SCALE,
                "is_causal": _CAUSAL,
            }
        },
        small=True,
    ),
    Contract(
        backend="CUTLASS_MLA",
        provider="sgl-kernel",
        package="sgl-kernel",
        version="0.3.21",
        roots=("sgl_kernel",),
        arch="sm_100",
        returns={
            "cutlass_mla_get_workspace_size": lambda a: 4096,
            "cutlass_mla_decode": lambda a: a["q_nope"].clone(),
        },
        lands={
            "cutlass_mla_decode": {
                "kv_c_and_k_pe_cache": "kv_cache",
                "seq_lens": "seq_lens",
                "sm_scale": "softmax_scale",
            }
        },
        facts={
            "sgl_kernel.attention": (
                "assert block_num % (128 / PAGE_SIZE) == 0",
                "assert max_seq_len > 0",
                "return out[:, :H].contiguous()",
            )
        },
        operators={
            ("sgl_kernel.sm100.common_ops", "cutlass_mla_decode"): "(Tensor! out, Tensor q_nope, Tensor q_pe, "
            "Tensor kv_c_and_k_pe_cache, Tensor seq_lens, Tensor page_table, Tensor! workspace, float sm_scale, "
            "int num_kv_splits) -> ()"
        },
    ),
)
