"""FlashAttention's forward interface over `attnkit.api`, and its own test files run on it:

    python -m tools.peers.flash_attention FOLDER/hopper --backend TRITON_ATTN -- -k "varlen_output and gqa" -q

FOLDER is a checkout of FlashAttention; everything after `--` goes to pytest (without a file: test_flash_attn.py of the folder).
`import flash_attn_interface` finds this module there. What neither attnkit nor this shim offers (appending to a cache, rotary
embedding, splits by number, a second query, chunks) is raised as `UnsupportedError` and counts as skipped, with the reason.
--json writes what became of the tests: passed, skipped by reason, the names of those that failed, and with what they ran.

Signatures: flash_attn_interface.py of FlashAttention 3.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnkit import api
from attnkit.backends.torch_device import device_of
from attnkit.boot.versions import versions
from attnkit.errors import UnsupportedError, UsageError
from attnkit.jsonio import now, to_json, write_atomically
from attnkit.spec import AttentionOutput, PagedAttention, Softmax, VarlenAttention
from tools.evidence import command_line

LEFT_OUT = ("BACKWARD", "SPLIT", "APPENDKV", "PACKGQA", "FP8", "LOCAL")
"""What its test files leave out by FLASH_ATTENTION_DISABLE_…; each may be set to FALSE outside. LOCAL: windows and chunks."""

backend: str | None = None
"""The backend that the functions run; None: the one that attnkit chooses."""


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, **more: Any) -> Any:
    """Dense sequences [batch, seqlen, heads, head_dim]."""
    starts, key_starts = (
        torch.arange(0, (x.shape[0] + 1) * x.shape[1], x.shape[1], dtype=torch.int32, device=x.device) for x in (q, k)
    )
    packed = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    found = flash_attn_varlen_func(*packed, starts, key_starts, q.shape[1], k.shape[1], softmax_scale=softmax_scale, **more)
    if isinstance(found, tuple):
        return found[0].view(*q.shape[:3], v.shape[3]), found[1].unflatten(1, q.shape[:2]).transpose(0, 1)
    return found.view(*q.shape[:3], v.shape[3])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    return_attn_probs: bool = False,
    return_softmax_lse: bool = False,
    **more: Any,
) -> Any:
    """Packed sequences; of each the first `seqused` rows count. The output, or with its log-sum-exp [heads, tokens]."""
    _refuse(more)
    with_lse = return_attn_probs or return_softmax_lse
    rows, keys = _used(cu_seqlens_q, seqused_q), _used(cu_seqlens_k, seqused_k)
    softmax = Softmax(softmax_scale or q.shape[-1] ** -0.5, causal, _window(window_size), softcap)
    out, lse = _packed(q, k, v, rows, keys, softmax)
    return (out, lse.T) if with_lse else out


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    cache_seqlens: Tensor | int | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    max_seqlen_q: int | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Sequence[int] = (-1, -1),
    softcap: float = 0.0,
    return_softmax_lse: bool = False,
    **more: Any,
) -> Any:
    """Attention over a cache, in pages or [batch, seqlen, heads, head_dim]; nothing is appended to it."""
    _refuse({**more, "k": k, "v": v})
    dense = cu_seqlens_q is None
    query = q.flatten(0, 1) if dense else q
    if cu_seqlens_q is None:
        cu_seqlens_q = torch.arange(0, (q.shape[0] + 1) * q.shape[1], q.shape[1], dtype=torch.int32, device=q.device)
    number = cu_seqlens_q.shape[0] - 1
    longest = k_cache.shape[1] * (1 if page_table is None else page_table.shape[1])
    lens = torch.full((number,), longest, dtype=torch.int32, device=q.device)
    lens = lens if cache_seqlens is None else lens.copy_(torch.as_tensor(cache_seqlens))
    softmax = Softmax(softmax_scale or q.shape[-1] ** -0.5, causal, _window(window_size), softcap)
    if page_table is None:
        first = [0] * number if cache_leftpad is None else cache_leftpad.tolist()
        entries = range(number) if cache_batch_idx is None else cache_batch_idx.tolist()
        size = k_cache.shape[1]
        keys = [(e * size + begin, e * size + n) for e, begin, n in zip(entries, first, lens.tolist(), strict=True)]
        rows = list(pairwise(cu_seqlens_q.tolist()))
        out, lse = _packed(query, k_cache.flatten(0, 1), v_cache.flatten(0, 1), rows, keys, softmax)
    else:
        if cache_leftpad is not None:
            raise UnsupportedError("keys of a paged cache start with its first slot: no cache_leftpad")
        table = page_table if cache_batch_idx is None else page_table[cache_batch_idx.long()]
        most = int(max_seqlen_q or cu_seqlens_q.diff().max())
        paged = PagedAttention(query, k_cache, v_cache, table, lens, cu_seqlens_q, most, longest, softmax, return_lse=True)
        out, lse = _columns(paged, v_cache)
    if dense:
        out, lse = out.unflatten(0, q.shape[:2]), lse.unflatten(0, q.shape[:2]).transpose(1, 2)
    else:
        lse = lse.T
    return (out, lse) if return_softmax_lse else out


def get_scheduler_metadata(*_: Any, **__: Any) -> None:
    """Nothing is planned ahead here."""


def flash_attn_combine(*_: Any, **__: Any) -> Any:
    """Not offered."""
    raise UnsupportedError("flash_attn_combine: splits are joined inside attnkit")


def _packed(
    q: Tensor, k: Tensor, v: Tensor, rows: list[tuple[int, int]], keys: list[tuple[int, int]], softmax: Softmax
) -> tuple[Tensor, Tensor]:
    """Attention of spans of rows of q over spans of rows of k and v; rows of no span are zero."""
    device = q.device
    taken, kept = (
        torch.cat([torch.arange(begin, end, device=device) for begin, end in spans]).long() for spans in (rows, keys)
    )
    lens, key_lens = ([end - begin for begin, end in spans] for spans in (rows, keys))
    starts, key_starts = (torch.tensor([0, *accumulate(x)], dtype=torch.int32, device=device) for x in (lens, key_lens))
    value = v[kept]
    call = VarlenAttention(q[taken], k[kept], value, starts, key_starts, max(lens), max(key_lens), softmax, return_lse=True)
    found, found_lse = _columns(call, value)
    out, lse = q.new_zeros(*q.shape[:2], v.shape[2]), found_lse.new_full(q.shape[:2], -torch.inf)
    out[taken], lse[taken] = found, found_lse
    return out, lse


def _columns(call: PagedAttention | VarlenAttention, value: Tensor) -> tuple[Tensor, Tensor]:
    """The call, in parts where values are wider than keys: a column of the output depends on that column of values alone."""
    name = "value" if isinstance(call, VarlenAttention) else "value_cache"
    width = call.query.shape[-1]
    parts: list[AttentionOutput] = []
    for part in value.split(width, dim=-1):
        padded = part if part.shape[-1] == width else torch.nn.functional.pad(part, (0, width - part.shape[-1]))
        parts.append(api.run(call.with_batch(**{name: padded}), backend))
    lse = parts[0].lse
    assert lse is not None
    return torch.cat([part.out for part in parts], -1)[..., : value.shape[-1]], lse


def _used(starts: Tensor, used: Tensor | None) -> list[tuple[int, int]]:
    spans = list(pairwise(starts.tolist()))
    if used is None:
        return spans
    return [(begin, begin + count) for (begin, _), count in zip(spans, used.tolist(), strict=True)]


def _window(sides: Sequence[int]) -> tuple[int, int]:
    left, right = (int(side) for side in sides)
    return left, right


_IGNORED = frozenset(
    {"pack_gqa", "deterministic", "sm_margin", "num_splits", "scheduler_metadata", "rotary_seqlens", "rotary_interleaved"}
)
"""How it is computed, not what; rotary_… only counts with rotary_cos."""
_NOTHING = (None, 0, False)


def _refuse(more: dict[str, Any]) -> None:
    asked = [name for name, value in more.items() if name not in _IGNORED and not any(value is one for one in _NOTHING)]
    if asked:
        raise UnsupportedError(f"attnkit's calls have no {', '.join(asked)}")


class _Skipping:
    """A plugin of pytest: what is refused is skipped, with the reason; counts what became of the tests."""

    def __init__(self) -> None:
        import pytest

        self.skip = pytest.skip
        self.passed, self.failed = 0, list[str]()
        self.skipped = Counter[str]()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid.split("/")[-1])
        elif report.skipped:
            self.skipped[report.longrepr[2].removeprefix("Skipped: ")] += 1
        elif report.when == "call":
            self.passed += 1

    def report(self, command: Sequence[str], finished: bool) -> dict[str, Any]:
        where = device_of(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu"))
        return {
            "taken": now(),
            "command": command_line("tools.peers.flash_attention", command),
            "device": where.name,
            "versions": versions(where),
            "finished": finished,
            "passed": self.passed,
            "failed": self.failed,
            "skipped": self.skipped,
        }

    def pytest_pyfunc_call(self, pyfuncitem: Any) -> bool:
        names = pyfuncitem._fixtureinfo.argnames
        try:
            pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
        except UnsupportedError as refused:
            self.skip(str(refused))
        return True


def _arguments(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    split = list(words).index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m tools.peers.flash_attention", description=__doc__)
    parser.add_argument("folder", type=Path, help="FlashAttention's folder of tests, e.g. hopper")
    parser.add_argument("--backend", help="the backend that must compute; none: attnkit's choice")
    parser.add_argument("--json", type=Path, help="what became of the tests, and with what they ran, goes to this file")
    return parser.parse_args(words[:split]), list(words[split + 1 :])


def main(words: Sequence[str] | None = None) -> int:
    """Run the tests; pytest's exit code.

    Raises:
        UsageError: no such folder.
    """
    import pytest

    words = sys.argv[1:] if words is None else words
    asked, rest = _arguments(words)
    if not asked.folder.is_dir():
        raise UsageError(f"{asked.folder}: no such folder")
    this = sys.modules[flash_attn_func.__module__]
    this.backend = asked.backend  # type: ignore[attr-defined]
    sys.modules["flash_attn_interface"] = this
    for name in LEFT_OUT:
        os.environ.setdefault(f"FLASH_ATTENTION_DISABLE_{name}", "TRUE")
    sys.path.insert(0, str(asked.folder))
    files = [] if any(word.partition("::")[0].endswith(".py") for word in rest) else [str(asked.folder / "test_flash_attn.py")]
    options = ["-p", "no:cacheprovider", "-rs", f"--rootdir={asked.folder}"]
    plugin = _Skipping()
    code = pytest.main([*options, *files, *rest], plugins=[plugin])
    if asked.json:
        finished = code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        write_atomically(asked.json, to_json(plugin.report(words, finished)))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
