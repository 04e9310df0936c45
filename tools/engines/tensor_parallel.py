"""A tensor-parallel attention layer compared with the single-device one.

    python -m tools.engines.tensor_parallel --ranks 2 --device cpu|cuda [--backend NAME] [--dtype bfloat16] [--out FILE]

The layer: query, key and value projections, keys and values into a paged cache, causal attention of a mixed batch (prefill, a
chunk behind cached context, decode), output projection. Each rank has its share of the heads as vLLM splits them
(`attnkit.select.parallel.per_rank`: KV heads are copied where there are fewer than ranks), multiplies with its rows of the
output projection, and an all-reduce adds the partial outputs in the dtype of the layer. Both are held against float64: the
single-device one by the rule of docs/development/numerics.md with plain eager torch as the baseline, the tensor-parallel one
by the same rule with the single-device layer as the baseline.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from attnkit import __version__, api
from attnkit.errors import EXIT_CHECK_FAILED, EXIT_OK, UsageError
from attnkit.isolation.collective import BACKENDS
from attnkit.jsonio import now, to_json, write_atomically
from attnkit.select.parallel import per_rank
from attnkit.spec import AttentionOutput, AttentionSpec, Dtype

HIDDEN, HEAD_DIM, BLOCK = 256, 64, 16
SEQUENCES = ((33, 33), (150, 20), (200, 1), (1, 1))
"""(tokens in all, new tokens) of each sequence."""
GEOMETRIES = ((8, 8), (8, 2), (8, 1))
"""Query and KV heads of the whole layer; with one KV head every rank has a copy."""


@dataclass(frozen=True)
class Compared:
    """One layer, tensor-parallel and on one device.

    Args:
        heads, kv_heads: of the whole layer. of_rank: those of one rank.
        reason: why they differ, "" where they do not.
        single_error, single_bound, parallel_error, parallel_bound: largest errors against float64, and what is allowed.
        equal_bits: whether the two outputs have the same bits (another order of addition: not asked).
        kernel: what computed the attention.
    """

    heads: int
    kv_heads: int
    of_rank: tuple[int, int]
    reason: str
    single_error: float | None
    single_bound: float | None
    parallel_error: float | None
    parallel_bound: float | None
    equal_bits: bool
    kernel: str


@dataclass(frozen=True)
class Asked:
    """What is compared: see the module; `wrong` makes the last rank take the first one's share."""

    ranks: int
    device: str
    backend: str | None
    dtype: Dtype
    store: str
    wrong: bool = False


@dataclass(frozen=True)
class Weights:
    """Projections of a layer or of a rank's share: [hidden, heads * head_dim], twice [hidden, kv_heads * head_dim], and
    [heads * head_dim, hidden]."""

    query: Any
    key: Any
    value: Any
    out: Any

    def share(self, heads: int, kv_heads: int, rank: int, of_rank: AttentionSpec) -> Weights:
        """What rank `rank` has of a layer with these heads."""
        first = rank * of_rank.num_heads * HEAD_DIM
        mine = slice(first, first + of_rank.num_heads * HEAD_DIM)
        # The KV heads that the rank's query heads read.
        first_kv = rank * of_rank.num_heads * kv_heads // heads * HEAD_DIM
        kv = slice(first_kv, first_kv + of_rank.num_kv_heads * HEAD_DIM)
        return Weights(self.query[:, mine], self.key[:, kv], self.value[:, kv], self.out[mine])


def make_layer(heads: int, kv_heads: int, dtype: Any) -> tuple[Any, Weights]:
    """Input [tokens of all sequences, hidden] and weights, the same for every rank."""
    import torch

    draw = torch.Generator().manual_seed(heads * 100 + kv_heads)

    def normal(*shape: int, scale: float) -> Any:
        return (torch.randn(*shape, generator=draw) * scale).to(dtype)

    tokens = sum(total for total, _ in SEQUENCES)
    inputs = normal(tokens, HIDDEN, scale=1.0)
    narrow, wide = HIDDEN**-0.5, (heads * HEAD_DIM) ** -0.5
    return inputs, Weights(
        normal(HIDDEN, heads * HEAD_DIM, scale=narrow),
        normal(HIDDEN, kv_heads * HEAD_DIM, scale=narrow),
        normal(HIDDEN, kv_heads * HEAD_DIM, scale=narrow),
        normal(heads * HEAD_DIM, HIDDEN, scale=wide),
    )


def new_rows() -> list[int]:
    """Positions in the input of the tokens that are new."""
    rows: list[int] = []
    start = 0
    for total, new in SEQUENCES:
        rows += range(start + total - new, start + total)
        start += total
    return rows


def run_layer(inputs: Any, weights: Weights, backend: str | None) -> tuple[Any, str]:
    """The output of the new tokens, [new tokens, hidden], before any all-reduce, and the kernel that attended."""
    import torch

    device = inputs.device
    query = (inputs[new_rows()] @ weights.query).unflatten(-1, (-1, HEAD_DIM))
    key, value = ((inputs @ matrix).unflatten(-1, (-1, HEAD_DIM)) for matrix in (weights.key, weights.value))
    blocks = [-(-total // BLOCK) for total, _ in SEQUENCES]
    order = torch.randperm(sum(blocks), generator=torch.Generator().manual_seed(7))
    table = torch.zeros(len(SEQUENCES), max(blocks), dtype=torch.int32)
    slots, first = [], 0
    for row, ((total, _), count) in enumerate(zip(SEQUENCES, blocks, strict=True)):
        table[row, :count] = order[first : first + count]
        slots += [int(table[row, position // BLOCK]) * BLOCK + position % BLOCK for position in range(total)]
        first += count
    key_cache = torch.full((sum(blocks), BLOCK, *key.shape[1:]), torch.nan, dtype=key.dtype, device=device)
    value_cache = key_cache.clone()
    api.write_kv_cache(key.contiguous(), value.contiguous(), key_cache, value_cache, torch.tensor(slots, device=device))
    lengths = torch.tensor(SEQUENCES, dtype=torch.int32)
    starts = torch.nn.functional.pad(torch.cumsum(lengths[:, 1], 0, dtype=torch.int32), (1, 0))
    attended = api.paged_attention(
        query.contiguous(),
        key_cache,
        value_cache,
        table.to(device),
        lengths[:, 0].contiguous().to(device),
        starts.to(device),
        softmax_scale=HEAD_DIM**-0.5,
        backend=backend,
    )
    return attended.out.flatten(1) @ weights.out, attended.kernel


def plain_layer(inputs: Any, weights: Weights) -> Any:
    """The same in plain eager torch, in the dtype of what is given: float64 for the oracle."""
    import torch

    query, key, value = (
        (inputs @ matrix).unflatten(-1, (-1, HEAD_DIM)) for matrix in (weights.query, weights.key, weights.value)
    )
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    outputs, start = [], 0
    for total, new in SEQUENCES:
        here = slice(start, start + total)
        scores = torch.einsum("qhd,khd->hqk", query[here][-new:] * HEAD_DIM**-0.5, key[here])
        hidden = torch.arange(total)[None, :] > torch.arange(total - new, total)[:, None]
        weight = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weight, value[here]))
        start += total
    return torch.cat(outputs).flatten(1) @ weights.out


def compare(asked: Asked) -> list[Compared]:
    """Run the ranks; what rank 0 found.

    Raises:
        UsageError: fewer devices than ranks, or heads that cannot be split so.
    """
    import torch
    import torch.multiprocessing as processes

    for heads, kv_heads in GEOMETRIES:
        per_rank(AttentionSpec(num_heads=heads, num_kv_heads=kv_heads), asked.ranks)
    if asked.device != "cpu" and (count := getattr(torch, asked.device).device_count()) < asked.ranks:
        raise UsageError(f"{asked.ranks} ranks need as many devices, a rank each; torch sees {count}")
    with tempfile.TemporaryDirectory(prefix="attnkit-tensor-parallel-") as folder:
        placed = replace(asked, store=folder)
        # A process that has begun with CUDA cannot be forked; on the CPU forking saves loading torch again.
        method = "fork" if asked.device == "cpu" else "spawn"
        processes.start_processes(_rank, (placed,), nprocs=asked.ranks, start_method=method)
        found = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    return [Compared(**{**one, "of_rank": tuple(one["of_rank"])}) for one in found]


def _rank(rank: int, asked: Asked) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo looks its own host name up, which a container may not know
    if asked.device != "cpu":
        getattr(torch, asked.device).set_device(rank)
    store = dist.FileStore(str(Path(asked.store, "store")), asked.ranks)
    dist.init_process_group(BACKENDS[asked.device], store=store, rank=rank, world_size=asked.ranks)
    with torch.inference_mode():
        found = [_compare(rank, asked, heads, kv_heads) for heads, kv_heads in GEOMETRIES]
    if rank == 0:
        Path(asked.store, "found.json").write_text(to_json(found), encoding="utf-8")
    dist.destroy_process_group()


def _compare(rank: int, asked: Asked, heads: int, kv_heads: int) -> Compared | None:
    import torch
    import torch.distributed as dist

    spec = AttentionSpec(dtype=asked.dtype, num_heads=heads, num_kv_heads=kv_heads, head_dim=HEAD_DIM, block_size=BLOCK)
    mine = per_rank(spec, asked.ranks)
    inputs, whole = make_layer(heads, kv_heads, getattr(torch, asked.dtype))
    place = "cpu" if asked.device == "cpu" else f"{asked.device}:{rank}"

    def moved(weights: Weights) -> Weights:
        return Weights(weights.query.to(place), weights.key.to(place), weights.value.to(place), weights.out.to(place))

    takes = 0 if asked.wrong and rank == asked.ranks - 1 else rank
    parallel, kernel = run_layer(inputs.to(place), moved(whole.share(heads, kv_heads, takes, mine)), asked.backend)
    dist.all_reduce(parallel)
    if rank != 0:
        return None
    single, _ = run_layer(inputs.to(place), moved(whole), asked.backend)
    return judged(spec, mine, inputs, whole, single, parallel, kernel)


def judged(
    spec: AttentionSpec, mine: AttentionSpec, inputs: Any, whole: Weights, single: Any, parallel: Any, kernel: str
) -> Compared:
    """Both outputs against float64."""
    import torch

    from attnkit.selftest.tolerance import judge

    exact = Weights(whole.query.double(), whole.key.double(), whole.value.double(), whole.out.double())
    oracle = AttentionOutput(plain_layer(inputs.double(), exact), None, "")
    eager = AttentionOutput(plain_layer(inputs, whole), None, "")
    of_one = judge(AttentionOutput(single, None, ""), oracle, [eager], spec)
    of_ranks = judge(AttentionOutput(parallel, None, ""), oracle, [AttentionOutput(single.cpu(), None, "")], spec)
    reasons = [f"{who}: {found.reason}" for who, found in (("one device", of_one), ("ranks", of_ranks)) if found.reason]
    return Compared(
        spec.num_heads,
        spec.num_kv_heads,
        (mine.num_heads, mine.num_kv_heads),
        "; ".join(reasons),
        of_one.max_error,
        of_one.max_bound,
        of_ranks.max_error,
        of_ranks.max_bound,
        torch.equal(single, parallel),
        kernel,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print, write the report; exit code 1 where they differ by more than numerics allow."""
    parser = argparse.ArgumentParser(prog="tools.engines.tensor_parallel", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda", "xpu"), default="cpu")
    parser.add_argument("--backend", help="attnkit's backend; default: the one it chooses")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--inject-wrong-rank", action="store_true", help="the last rank takes the first one's share")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    if given.ranks < 2:
        parser.error("--ranks must be 2 or more")
    asked = Asked(given.ranks, given.device, given.backend, given.dtype, "", given.inject_wrong_rank)
    try:
        found = compare(asked)
    except UsageError as error:
        parser.error(str(error))
    for one in found:
        print(f"{'differs' if one.reason else 'equal'}: {one}")
    if given.out:
        head = {"attnkit_version": __version__, "created": now(), "command": sys.argv[1:] if argv is None else list(argv)}
        write_atomically(
            given.out, to_json({**head, **_place(given.device), "compared": [asdict(one) for one in found]}) + "\n"
        )
    return EXIT_CHECK_FAILED if any(one.reason for one in found) else EXIT_OK


def _place(device: str) -> dict[str, Any]:
    import torch

    names = (
        [getattr(torch, device).get_device_name(i) for i in range(getattr(torch, device).device_count())]
        if device != "cpu"
        else []
    )
    return {"torch": torch.__version__, "devices": names or ["CPU"]}


if __name__ == "__main__":
    raise SystemExit(main())
