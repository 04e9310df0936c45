"""One rank of the collective check: `python -m attnkit.isolation.collective_rank FD`; see `attnkit.isolation.collective`.

The data of every rank are drawn from its number, so that each rank knows alone what all must have delivered. Whole numbers are
exact in every order of addition. Random floats are not: their sum in the order of the ranks is compared with the all-reduce to
the bit for two ranks, whose sum has one order, and within (ranks − 1) roundings for more; and all ranks must have the same
bits.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from attnkit.isolation.collective import RankRequest
from attnkit.isolation.lifeline import end_with_parent

REPEATS = 5


def _whole_numbers(rank: int, request: RankRequest, dtype: Any, top: int) -> Any:
    """[elements] whole numbers from 0 to `top` that belong to `rank`."""
    import torch

    draw = torch.Generator().manual_seed(1000 + rank)
    return torch.randint(0, top + 1, (request.elements,), generator=draw, dtype=torch.int32).to(dtype).to(request.torch_device)


def _floats(rank: int, request: RankRequest) -> Any:
    """[elements] float32 that belong to `rank`."""
    import torch

    return torch.randn(request.elements, generator=torch.Generator().manual_seed(2000 + rank)).to(request.torch_device)


def run(request: RankRequest, send: Callable[[str, Any], None]) -> None:
    """Join the group, exchange, measure, leave."""
    import torch
    import torch.distributed as dist

    device, world = request.torch_device, request.world
    if device != "cpu":
        getattr(torch, device.partition(":")[0]).set_device(device)
    send("step", "join")
    dist.init_process_group(
        request.backend,
        store=dist.FileStore(request.store, world),
        rank=request.rank,
        world_size=world,
        timeout=timedelta(seconds=request.timeout),
    )
    delivers = (request.rank + 1) % world if request.wrong else request.rank

    def check(name: str, wrong_from: list[int], reason: str = "") -> None:
        send("check", {"name": name, "wrong_from": wrong_from, "reason": reason})

    name = "all-gather-int32"
    send("step", name)
    gathered = _gather(_whole_numbers(delivers, request, torch.int32, 2**31 - 2), world)
    expected = (_whole_numbers(rank, request, torch.int32, 2**31 - 2) for rank in range(world))
    check(name, [rank for rank, (one, right) in enumerate(zip(gathered, expected, strict=True)) if not torch.equal(one, right)])
    for dtype, top in (
        (torch.int32, 2**20),
        (torch.float32, 2**20),
        (torch.float16, 2048 // world),
        (torch.bfloat16, 256 // world),
    ):
        name = f"all-reduce-{str(dtype).removeprefix('torch.')}"
        send("step", name)
        total = _whole_numbers(delivers, request, dtype, top)
        dist.all_reduce(total)
        alone = sum(_whole_numbers(rank, request, dtype, top) for rank in range(world))
        wrong = int((total != alone).sum())
        check(name, [], f"{wrong} of {request.elements} sums are not those of one device" if wrong else "")
    name = "all-reduce-random-float32"
    send("step", name)
    total = _floats(delivers, request)
    dist.all_reduce(total)
    parts = [_floats(rank, request) for rank in range(world)]
    check(name, [], _random_reason(total, parts) or _unlike(_gather(total, world)))
    send("step", "bandwidth")
    send("rate", _bus_bandwidth(request))
    dist.destroy_process_group()


def _gather(tensor: Any, world: int) -> list[Any]:
    import torch
    import torch.distributed as dist

    parts = [torch.empty_like(tensor) for _ in range(world)]
    dist.all_gather(parts, tensor)
    return parts


def _random_reason(total: Any, parts: list[Any]) -> str:
    """Why a sum of random floats is not the one of the ranks' data, "" where it is."""
    import torch

    alone = parts[0].clone()
    for part in parts[1:]:
        alone += part
    if len(parts) <= 2:
        return "" if torch.equal(total, alone) else "the sum of random floats has other bits than on one device"
    exact = torch.stack([part.cpu().double() for part in parts])
    bound = (len(parts) - 1) * torch.finfo(torch.float32).eps * exact.abs().sum(0)
    within = (total.cpu().double() - exact.sum(0)).abs() <= bound
    return "" if bool(within.all()) else "the sum of random floats is off by more than its roundings"


def _unlike(results: list[Any]) -> str:
    import torch

    return "" if all(torch.equal(one, results[0]) for one in results) else "the ranks have unlike bits of the same sum"


def _bus_bandwidth(request: RankRequest) -> float:
    """Bytes a second of a large all-reduce, median of a few, scaled to what each link carries."""
    import torch
    import torch.distributed as dist

    data = torch.zeros(request.measured_bytes // 2, dtype=torch.bfloat16, device=request.torch_device)
    module = None if request.torch_device == "cpu" else getattr(torch, request.torch_device.partition(":")[0])
    seconds = []
    for _ in range(1 + REPEATS):
        if module:
            module.synchronize()
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(data)
        if module:
            module.synchronize()
        seconds.append(time.perf_counter() - started)
    return request.measured_bytes / statistics.median(seconds[1:]) * 2 * (request.world - 1) / request.world


def _main(descriptor: int) -> None:
    with os.fdopen(descriptor, "w", encoding="utf-8") as pipe:

        def send(kind: str, value: Any) -> None:
            pipe.write(json.dumps({kind: value}) + "\n")
            pipe.flush()

        end_with_parent()
        request = RankRequest(**json.loads(sys.stdin.buffer.read()))
        try:
            run(request, send)
        except (RuntimeError, ValueError, ImportError, OSError) as error:  # torch.distributed raises these
            send("error", f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}")


if __name__ == "__main__":
    _main(int(sys.argv[1]))
