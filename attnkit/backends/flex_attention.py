"""FLEX_ATTENTION: torch.nn.attention.flex_attention, the programmable one (score_mod, mask_mod).

The whole batch is one call over packed tokens: a mask says which query and key belong to one sequence. On accelerators the
function is compiled; on the CPU it runs eagerly, since compiling needs a C++ compiler that serving images do not have, and the
kernel's name says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from attnkit.backends.base import Backend, Capability, HeadDims, Provider
from attnkit.backends.torch_device import finish
from attnkit.errors import UnsupportedError
from attnkit.spec import AttentionOutput, Call, PagedAttention, TreeAttention, VarlenAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

MOST_BYTES = 1 << 34
"""Of a batch's mask, or where the function runs eagerly of its scores."""

CAPABILITY = Capability(
    ops=frozenset({"paged", "varlen", "tree"}),
    archs={"nvidia": ("*",), "amd": ("gfx9*", "gfx11*", "gfx12*"), "intel": ("*",), "cpu": ("*",)},
    dtypes=frozenset({"float16", "bfloat16", "float32"}),
    bf16_needs={"nvidia": ("sm_8*", "sm_9*", "sm_1*"), "amd": ("*",), "intel": ("*",), "cpu": ("*",)},
    head_dims=HeadDims(low=16, high=256, multiple_of=8),
    kv_cache_dtypes=frozenset({"auto", "fp8_e4m3", "fp8_e5m2"}),
    fnuz=True,
    features=frozenset({"non_causal", "window", "softcap", "alibi", "sinks", "lse", "score_mod", "mask_mod"}),
    deterministic=True,
)


def _flex(call: PagedAttention | VarlenAttention | TreeAttention) -> AttentionOutput:
    """Compiled on accelerators, eager on the CPU (and its kernel name says so)."""
    import torch
    from torch.nn.attention import flex_attention as flex

    from attnkit.backends.torch_common import apply_sinks, gather_kv, no_keys

    batch = call.batch
    key, value, key_starts = gather_kv(batch)
    softmax = batch.softmax
    q_seq, q_pos, k_seq, k_pos = _positions(batch.query_start_loc, key_starts)
    _require_room(q_seq.shape[0], k_seq.shape[0], batch.query)
    query, key, value = batch.query[: q_seq.shape[0]], key[: k_seq.shape[0]], value[: k_seq.shape[0]]  # the rest is padding
    if query.shape[0] == 0 or key.shape[0] == 0:
        out = query.new_zeros(*batch.query.shape[:2], value.shape[2])
        return finish(batch, out, no_keys(batch) if batch.return_lse else None, "none: no keys")
    mask_mod = _mask_mod(call, batch, q_seq, q_pos, k_seq, k_pos)
    block_mask = flex.create_block_mask(mask_mod, None, None, query.shape[0], key.shape[0], device=query.device)
    attention, kernel = (
        (flex.flex_attention, "flex_attention(eager)")
        if query.device.type == "cpu"
        else (_compiled(), "flex_attention(compiled)")
    )
    with _refusing(query):
        out, aux = attention(
            *(x.transpose(0, 1).unsqueeze(0) for x in (query, key, value)),
            score_mod=_score_mod(batch, q_seq, q_pos, k_pos),
            block_mask=block_mask,
            scale=softmax.softmax_scale,
            enable_gqa=query.shape[1] != key.shape[1],
            return_aux=flex.AuxRequest(lse=True),
            # The split-decoding template has no configuration for some short batches and fails to compile there.
            kernel_options=None if query.device.type == "cpu" else {"FORCE_USE_FLEX_ATTENTION": True},
        )
    out, lse = out[0].transpose(0, 1).contiguous(), aux.lse[0].transpose(0, 1).contiguous()
    if softmax.sinks is not None:
        out, lse = apply_sinks(out, lse, softmax.sinks)
    padding = batch.query.shape[0] - query.shape[0]
    if padding:
        out, lse = torch.nn.functional.pad(out, (0, 0, 0, 0, 0, padding)), torch.cat((lse, no_keys(batch)[-padding:]))
    return finish(batch, out, lse if batch.return_lse else None, kernel)


def _require_room(queries: int, keys: int, query: Tensor) -> None:
    """Refuse what would not fit: the mask holds every query by every key of the batch, the eager function also all scores."""
    nbytes = queries * keys * (4 * query.shape[1] if query.device.type == "cpu" else 1)
    if nbytes > MOST_BYTES:
        raise UnsupportedError(
            f"FLEX_ATTENTION cannot run this call: {queries} queries by {keys} keys of the batch take {nbytes >> 30} GiB; "
            f"it takes up to {MOST_BYTES >> 30} GiB"
        )


@contextmanager
def _refusing(query: Tensor) -> Iterator[None]:
    """What torch's compiler cannot compile is refused with what it said; nothing else runs in its place."""
    import torch

    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException

        if not isinstance(error, TorchDynamoException):  # Inductor's errors are of it
            raise
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = f"torch {torch.__version__} cannot compile flex_attention for this call on {query.device}"
        raise UnsupportedError(f"FLEX_ATTENTION cannot run this call: {where}: {said}") from error


@cache
def _compiled() -> Any:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _positions(query_starts: Tensor, key_starts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sequence and position of every packed query and key; a sequence's last query sits at its last key."""
    import torch

    q_lens, k_lens = query_starts.diff(), key_starts.diff()
    seqs = torch.arange(q_lens.shape[0], device=query_starts.device)
    q_seq, k_seq = torch.repeat_interleave(seqs, q_lens), torch.repeat_interleave(seqs, k_lens)
    q_at = torch.arange(q_seq.shape[0], device=query_starts.device) - query_starts[q_seq]
    k_pos = torch.arange(k_seq.shape[0], device=query_starts.device) - key_starts[k_seq]
    return q_seq, q_at + (k_lens - q_lens)[q_seq], k_seq, k_pos


def _mask_mod(
    call: Call, batch: PagedAttention | VarlenAttention, q_seq: Tensor, q_pos: Tensor, k_seq: Tensor, k_pos: Tensor
) -> Any:
    softmax = batch.softmax
    left, right = softmax.window
    tree = call.tree_mask if isinstance(call, TreeAttention) else None
    first_node = q_pos if tree is None else _first_node(q_seq, q_pos)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = q_seq[q] == k_seq[k]
        if tree is not None:
            node = (k_pos[k] - first_node[q]).clamp(min=0, max=tree.shape[1] - 1)
            seen = seen & ((k_pos[k] < first_node[q]) | tree[q_pos[q] - first_node[q], node])
        elif softmax.causal:
            seen = seen & (k_pos[k] <= q_pos[q])
        if left >= 0:
            seen = seen & (k_pos[k] >= q_pos[q] - left)
        if right >= 0:
            seen = seen & (k_pos[k] <= q_pos[q] + right)
        if softmax.mask_mod is not None:
            seen = seen & softmax.mask_mod(q_seq[q], h, q_pos[q], k_pos[k])
        return seen

    return mask_mod


def _first_node(q_seq: Tensor, q_pos: Tensor) -> Tensor:
    """Position of the root of each query's tree: the smallest position among its sequence's queries."""
    first = q_pos.new_full((int(q_seq.max()) + 1,), 1 << 30)
    return first.scatter_reduce(0, q_seq, q_pos, "amin")[q_seq]


def _score_mod(batch: PagedAttention | VarlenAttention, q_seq: Tensor, q_pos: Tensor, k_pos: Tensor) -> Any:
    import torch

    softmax = batch.softmax
    if softmax.softcap <= 0.0 and softmax.alibi_slopes is None and softmax.score_mod is None:
        return None
    softcap, slopes, user = softmax.softcap, softmax.alibi_slopes, softmax.score_mod

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if softcap > 0.0:
            score = softcap * torch.tanh(score / softcap)
        if slopes is not None:
            score = score + slopes[h] * (k_pos[k] - q_pos[q])
        if user is not None:
            score = user(score, q_seq[q], h, q_pos[q], k_pos[k])
        return score

    return score_mod


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "FLEX_ATTENTION",
        (
            Provider(
                "torch",
                CAPABILITY,
                _flex,
                ("torch>=2.8",),
                "torch.nn.attention.flex_attention",
                kind="composed",
                kernels=("flex_attention(*)", "none: no keys"),
                any_stride=True,
            ),
        ),
        aliases=("flex",),
        summary="programmable score_mod / mask_mod attention through torch's flex_attention",
    ),
)
