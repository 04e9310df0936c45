"""What every backend shares around a call: the device its tensors live on, made current, and the shape of what comes back.

No arithmetic of attention here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

from attnkit.errors import UnsupportedError
from attnkit.hardware.device import Device
from attnkit.hardware.torch_names import from_torch, torch_kind
from attnkit.spec import AttentionOutput, Batch, MlaDecode

_ALREADY: AbstractContextManager[None] = nullcontext()


def device_of(tensor: Any) -> Device:
    """The device of a torch tensor, with the architecture that capabilities are written in. Cached per torch device.

    Args:
        tensor: any torch tensor on cuda (NVIDIA or ROCm), xpu or cpu.

    Raises:
        ValueError: a torch device type that no backend of attnkit runs on.
    """
    return _describe(tensor.device.type, tensor.device.index or 0)


def current_device(kind: str) -> Device:
    """The device that torch takes where only `kind` ("cuda", "xpu", "cpu") is said."""
    import torch

    return device_of(torch.empty(0, device=kind))


@cache
def _describe(kind: str, index: int) -> Device:
    import torch

    module = getattr(torch, kind) if kind in ("cuda", "xpu") else None
    properties = None if module is None else module.get_device_properties(index)
    return from_torch(kind, index, properties, hip=bool(torch.version.hip))


def made_current(device: Any) -> AbstractContextManager[Any]:
    """Inside, `device` (a torch device) is the current one of its kind: what libraries launch kernels on and allocate from.

    Costs one comparison where it is current already, and on the CPU.
    """
    kind = getattr(device, "type", "cpu")
    if kind not in ("cuda", "xpu"):
        return _ALREADY
    import torch

    module = getattr(torch, kind)
    if device.index is None or module.current_device() == device.index:
        return _ALREADY
    found: AbstractContextManager[Any] = module.device(device.index)
    return found


def torch_devices(device: Device) -> list[str | None]:
    """torch's names of every visible device of this vendor; [None] where torch does not run it or sees none."""
    kind = torch_kind(device)
    if kind in (None, "cpu"):
        return [kind]
    import torch

    return [f"{kind}:{index}" for index in range(getattr(torch, str(kind)).device_count())] or [None]


def with_contiguous_indices(call: Any) -> Any:
    """`call` with contiguous copies of the index tensors, slopes and sinks that are views, for who takes no strides."""
    batch = call.batch
    changed = _contiguous(batch, ("block_table", "seq_lens", "query_start_loc", "key_start_loc"))
    softmax = {} if isinstance(batch, MlaDecode) else _contiguous(batch.softmax, ("alibi_slopes", "sinks"))
    call = call.with_softmax(**softmax) if softmax else call
    return call.with_batch(**changed) if changed else call


def _contiguous(holder: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of these names that hold a torch tensor which is not contiguous, made so."""
    given: dict[str, Any] = {name: getattr(holder, name, None) for name in names}
    return {name: x.contiguous() for name, x in given.items() if hasattr(x, "is_contiguous") and not x.is_contiguous()}


def finish(call: Batch, out: Any, lse: Any, kernel: str) -> AttentionOutput:
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
        UnsupportedError: the sequences have different numbers of new tokens.
    """
    num_seqs = call.seq_lens.shape[0]
    if call.query.shape[0] != num_seqs * call.max_query_len:
        raise UnsupportedError(
            f"needs {call.max_query_len} new tokens in each of {num_seqs} sequences, not {call.query.shape[0]} in all"
        )
    return call.query.view(num_seqs, call.max_query_len, *call.query.shape[1:])
