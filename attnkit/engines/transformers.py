"""attnkit's backends in Hugging Face transformers: `attn_implementation="attnkit"` or `"attnkit:BACKEND"`.

    import attnkit.engines.transformers as attnkit_transformers
    attnkit_transformers.register()
    model = AutoModel.from_pretrained(path, attn_implementation="attnkit")

"attnkit" takes what `attnkit.select.choose` chooses for the device; a named backend works or raises with the reasons.

transformers drops the mask of an implementation that registers no mask function, padding included. Ours is always built in full
and always honoured: `intervals` turns it into packed sequences without the padding (`VarlenAttention`), which every backend
serves; a mask in which some query sees keys with holes between them needs a backend with `mask_mod`. Whatever cannot be
expressed (additive biases, dropout, one mask a head) is an error, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnkit import api
from attnkit.backends.registry import all_backends, canonical
from attnkit.errors import UnsupportedError
from attnkit.spec import NO_WINDOW, Softmax, VarlenAttention

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

NAME = "attnkit"


def register() -> tuple[str, ...]:
    """Register "attnkit" and one "attnkit:NAME" per backend that serves packed sequences. Again is the same.

    Returns:
        The registered names.

    Raises:
        ImportError: transformers without `AttentionInterface` and `AttentionMaskInterface` (before 4.53).
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    serving = [b.name for b in all_backends() if any("varlen" in p.capability.ops for p in b.providers)]
    names = {NAME: None} | {f"{NAME}:{name}": canonical(name) for name in serving}
    for name, backend in names.items():
        AttentionInterface.register(name, _Forward(backend))
        AttentionMaskInterface.register(name, full_mask)
    return tuple(names)


def full_mask(*args: Any, **kwargs: Any) -> Tensor:
    """transformers' bool mask [batch, 1, query, key], True = visible, built in full: no shortcut that returns None."""
    from transformers.masking_utils import sdpa_mask

    kwargs["allow_is_causal_skip"] = kwargs["allow_is_bidirectional_skip"] = False
    return sdpa_mask(*args, **kwargs)


@dataclass(frozen=True)
class _Forward:
    """The attention function of one registered name; the backend's name, or None for the one that is chosen."""

    backend: str | None

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """See `attend`."""
        for name in ("position_bias", "cache", "head_mask"):
            if others.get(name) is not None:
                raise UnsupportedError(f"attnkit in transformers does not take {name}")
        if dropout and module.training:
            raise UnsupportedError(f"attnkit computes without dropout; this layer asks for {dropout}")
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        softmax = Softmax(scaling or query.shape[-1] ** -0.5, softcap=softcap or 0.0, sinks=s_aux)
        return attend(query, key, value, attention_mask, softmax, bool(causal), self.backend), None


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, softmax: Softmax, causal: bool, backend: str | None
) -> Tensor:
    """Attention over a padded batch.

    Args:
        query: [batch, num_heads, n, head_dim]; key, value: [batch, num_kv_heads, L, head_dim].
        mask: [batch or 1, 1, n, L], bool (True = visible) or additive with nothing but zero and the most negative numbers.
            None: all keys, or with `causal` those up to the query's own position.
        softmax: scale, softcap and sinks. backend: a name, or None to choose.

    Returns:
        [batch, n, num_heads, head_dim_v]; zeros (or what the sink leaves) where a query sees no key.

    Raises:
        UnsupportedError: the mask cannot be honoured exactly.
    """
    batch, heads, n, _ = query.shape
    packed = query.transpose(1, 2).flatten(0, 1)
    keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (key, value))
    out = packed.new_zeros(batch * n, heads, value.shape[-1])
    plan = _plan(query, key, mask, causal)
    if plan is None:
        return _with_mask_mod(packed, keys, values, as_bool(mask), softmax, backend).unflatten(0, (batch, n))
    for group in plan:
        rows, columns = group.rows, group.columns
        call = VarlenAttention(
            packed if group.all_rows else packed[rows],
            keys if group.all_columns else keys[columns],
            values if group.all_columns else values[columns],
            group.query_start_loc,
            group.key_start_loc,
            group.max_query_len,
            group.max_seq_len,
            Softmax(softmax.softmax_scale, group.causal, NO_WINDOW, softmax.softcap, None, softmax.sinks),
        )
        out[rows] = api.run(call, backend).out
    return out.unflatten(0, (batch, n))


@dataclass(frozen=True)
class _Group:
    """Packed sequences that share one `causal`.

    Args:
        rows, columns: which rows of the flattened queries and keys they hold, int64. all_rows, all_columns: all, in order.
        query_start_loc, key_start_loc, max_query_len, max_seq_len: as in `VarlenAttention`.
    """

    causal: bool
    rows: Tensor
    columns: Tensor
    all_rows: bool
    all_columns: bool
    query_start_loc: Tensor
    key_start_loc: Tensor
    max_query_len: int
    max_seq_len: int


def as_bool(mask: Tensor | None) -> Tensor:
    """A mask as bool [batch, n, L], True = visible.

    Raises:
        UnsupportedError: it differs between heads, or adds something else than zero or the most negative numbers.
    """
    import torch

    if mask is None:
        raise UnsupportedError("no mask")
    if mask.dim() != 4 or mask.shape[1] != 1:
        raise UnsupportedError(
            f"attnkit takes masks [batch, 1, query, key], the same for every head; this is {tuple(mask.shape)}"
        )
    if mask.dtype == torch.bool:
        return mask[:, 0]
    hidden = mask <= torch.finfo(mask.dtype).min / 2
    if not torch.all(hidden | (mask == 0)):
        raise UnsupportedError("attnkit honours masks that hide keys; this one adds a bias to the scores")
    return ~hidden[:, 0]


def intervals(mask: Tensor) -> list[tuple[int, int, int, int, int, bool]] | None:
    """A bool mask as sequences in which each query sees a run of keys.

    Args:
        mask: [batch, n, L], True = visible.

    Returns:
        (batch, first query, end query, first key, end key, causal) per sequence; causal: the last query sees to the last key,
        each one before it one key less. Queries that see nothing are in none. None where a query sees keys with holes between.
    """
    import torch

    count = mask.sum(-1)
    low = mask.int().argmax(-1)
    high = mask.shape[-1] - mask.int().flip(-1).argmax(-1)
    if not torch.equal(torch.where(count > 0, high - low, 0), count):
        return None
    found: list[tuple[int, int, int, int, int, bool]] = []
    for b, (lows, highs, counts) in enumerate(zip(low.tolist(), high.tolist(), count.tolist(), strict=True)):
        first = 0
        while first < len(lows):
            if counts[first] == 0:
                first += 1
                continue
            end, step = first + 1, 0
            while end < len(lows) and counts[end] and lows[end] == lows[first]:
                rise = highs[end] - highs[end - 1]
                if rise not in (0, 1) or (end > first + 1 and rise != step):
                    break
                step, end = rise, end + 1
            found.append((b, first, end, lows[first], highs[end - 1], step == 1))
            first = end
    return found


def _plan(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> tuple[_Group, ...] | None:
    """The groups of a batch; None where it needs a mask_mod. Kept on the mask: every layer of a step has the same one."""
    batch, n, length = query.shape[0], query.shape[2], key.shape[2]
    if mask is None:
        if causal and n not in (1, length):
            raise UnsupportedError(f"{n} queries over {length} keys, causal, without a mask: where the queries sit is not said")
        found = [(b, 0, n, 0, length, causal and n > 1) for b in range(batch)]
        return _groups(found, batch, n, length, query.device)
    state = (None if mask.is_inference() else mask._version, batch, n, length)
    known = getattr(mask, "_attnkit_plan", None)
    if known is not None and known[0] == state:
        return known[1]  # type: ignore[no-any-return]
    sequences = intervals(as_bool(mask).expand(batch, n, length))
    plan = None if sequences is None else _groups(sequences, batch, n, length, query.device)
    mask._attnkit_plan = (state, plan)
    return plan


def _groups(
    sequences: list[tuple[int, int, int, int, int, bool]], batch: int, n: int, length: int, device: Any
) -> tuple[_Group, ...]:
    import torch

    groups = []
    for causal in (False, True):
        chosen = [s for s in sequences if s[5] == causal]
        if not chosen:
            continue
        rows = torch.cat([torch.arange(b * n + q0, b * n + q1) for b, q0, q1, _, _, _ in chosen])
        columns = torch.cat([torch.arange(b * length + k0, b * length + k1) for b, _, _, k0, k1, _ in chosen])
        query_lens = torch.tensor([0] + [q1 - q0 for _, q0, q1, _, _, _ in chosen])
        key_lens = torch.tensor([0] + [k1 - k0 for _, _, _, k0, k1, _ in chosen])
        groups.append(
            _Group(
                causal=causal,
                rows=rows.to(device),
                columns=columns.to(device),
                all_rows=torch.equal(rows, torch.arange(batch * n)),
                all_columns=torch.equal(columns, torch.arange(batch * length)),
                query_start_loc=query_lens.cumsum(0).to(torch.int32).to(device),
                key_start_loc=key_lens.cumsum(0).to(torch.int32).to(device),
                max_query_len=int(query_lens.max()),
                max_seq_len=int(key_lens.max()),
            )
        )
    return tuple(groups)


def _with_mask_mod(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, softmax: Softmax, backend: str | None) -> Tensor:
    """The whole batch with the mask as it is, through a backend that takes a mask function."""
    import torch

    _, n, length = mask.shape
    batch = query.shape[0] // n
    mask = mask.expand(batch, n, length).contiguous()

    def visible(seq: Tensor, head: Tensor, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        return mask[seq, (q_pos - (length - n)).clamp(0, n - 1), k_pos.clamp(0, length - 1)]

    starts = torch.arange(batch + 1, dtype=torch.int32, device=query.device)
    call = VarlenAttention(
        query,
        key,
        value,
        starts * n,
        starts * length,
        n,
        length,
        Softmax(softmax.softmax_scale, False, NO_WINDOW, softmax.softcap, None, softmax.sinks, mask_mod=visible),
    )
    return api.run(call, backend).out
