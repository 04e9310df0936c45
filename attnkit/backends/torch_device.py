"""What the vendors' backends share around a call: its device, the provider that runs it, the shape of what comes back.

No arithmetic of attention here.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

from attnkit.backends.base import Backend, Provider
from attnkit.backends.installed import lookup, requirement_names
from attnkit.errors import UnsupportedError
from attnkit.hardware.device import Device, Vendor
from attnkit.spec import AttentionOutput, Call, MlaDecode, PagedAttention, VarlenAttention

_INTEL_GPUS = {"max": "xe-hpc", "arc": "xe-hpg", "flex": "xe-hpg"}
"""Architecture by a word of the marketing name, where torch gives no other; newer Arc cards (B-series) are told apart below."""


def device_of(tensor: Any) -> Device:
    """The device of a torch tensor, with the architecture that capabilities are written in. Cached per torch device.

    Args:
        tensor: any torch tensor on cuda (NVIDIA or ROCm), xpu or cpu.

    Raises:
        ValueError: a torch device type that no backend of attnkit runs on.
    """
    return _describe(tensor.device.type, tensor.device.index or 0)


@cache
def _describe(kind: str, index: int) -> Device:
    import torch

    if kind == "cpu":
        return Device(vendor="cpu", kind="cpu", name="CPU", arch=platform.machine(), source="torch")
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(index)
        vendor: Vendor = "amd" if torch.version.hip else "nvidia"
        arch = f"sm_{properties.major}{properties.minor}" if vendor == "nvidia" else properties.gcnArchName.split(":")[0]
        return Device(
            vendor=vendor,
            kind="gpu",
            name=properties.name,
            arch=arch,
            index=index,
            memory_bytes=properties.total_memory,
            units=properties.multi_processor_count,
            source="torch",
        )
    if kind == "xpu":
        properties = torch.xpu.get_device_properties(index)
        return Device(
            vendor="intel",
            kind="gpu",
            name=properties.name,
            arch=_intel_arch(properties.name),
            index=index,
            memory_bytes=properties.total_memory,
            source="torch",
        )
    raise ValueError(f"no backend runs on torch device type {kind!r}; known: cuda, xpu, cpu")


def _intel_arch(name: str) -> str:
    words = name.casefold().replace("(tm)", "").replace("(r)", "").split()
    if any(word.startswith("b") and word[1:].isdigit() for word in words):
        return "xe2-hpg"
    return next((arch for word, arch in _INTEL_GPUS.items() if word in words), "xe")


def pick_provider(backend: Backend, call: Call, provider: str | None) -> Provider:
    """The provider that is to run `call` where its tensors live.

    Args:
        provider: a provider's name, used as asked: where its library is missing, the import says so. None takes the first
            that is installed and can serve.

    Raises:
        UnsupportedError: none can; the message lists every reason.
    """
    query = call.query if isinstance(call, PagedAttention | VarlenAttention | MlaDecode) else call.paged.query
    installed = lookup(requirement_names([backend])) if provider is None else None
    return backend.require(call, device_of(query), provider, installed)


def finish(call: PagedAttention | VarlenAttention | MlaDecode, out: Any, lse: Any, kernel: str) -> AttentionOutput:
    """The result as the contract wants it: in `call.out` where the caller gave one.

    Args:
        out: [num_tokens, num_heads, head_dim_v].
        lse: [num_tokens, num_heads] float32, natural, or None.
        kernel: what ran.
    """
    if call.out is not None and out is not call.out:
        call.out.copy_(out)
        out = call.out
    return AttentionOutput(out, lse, kernel)


def heads_first_lse(lse: Any) -> Any:
    """[num_heads, num_tokens] -> [num_tokens, num_heads], with -inf for a row that sees no key (FlashAttention writes +inf)."""
    lse = lse.transpose(0, 1)
    return lse.masked_fill(lse == float("inf"), float("-inf")).contiguous()


def prefix_sum(lengths: Any) -> Any:
    """[n] int32 -> [n + 1] int32, starting at 0, without leaving the device."""
    import torch

    return torch.nn.functional.pad(torch.cumsum(lengths, 0, dtype=torch.int32), (1, 0))


def by_sequence(call: MlaDecode) -> Any:
    """The query as [num_seqs, new tokens, num_heads, width], for kernels that want the same number in every sequence.

    Raises:
        UnsupportedError: the sequences have unlike numbers of new tokens.
    """
    num_seqs = call.seq_lens.shape[0]
    if call.query.shape[0] != num_seqs * call.max_query_len:
        raise UnsupportedError(
            f"needs {call.max_query_len} new tokens in each of {num_seqs} sequences, not {call.query.shape[0]} in all"
        )
    return call.query.view(num_seqs, call.max_query_len, *call.query.shape[1:])
