"""New keys and values lie in the cache where their slots say, also where no kernel of ours writes them."""

from __future__ import annotations

import pytest
import torch

from attnkit.kernels import cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("heads_first", [False, True])
def test_rows_lie_where_their_slots_say(dtype: torch.dtype, heads_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_has_cpu_kernels", lambda: False)
    key, value = torch.randn(3, 2, 8) * 1000, torch.randn(3, 2, 16)
    scales = (0.5, 0.25) if dtype.itemsize == 1 else (1.0, 1.0)
    shape = (4, 2, 8, 24) if heads_first else (4, 8, 2, 24)
    store = torch.ones(shape).to(dtype)
    both = store.transpose(1, 2) if heads_first else store
    halves = both[..., :8], both[..., 8:]
    slots = torch.tensor([17, -1, 3])
    assert cache.write_kv_cache(key, value, *halves, slots, *scales) == "torch_index_put"
    for rows, half, scale in zip((key, value), halves, scales, strict=True):
        most = torch.finfo(dtype).max
        wanted = torch.ones(4, 8, 2, rows.shape[2])
        for row, slot in ((0, 17), (2, 3)):
            wanted[slot // 8, slot % 8] = (rows[row] / scale).clamp(-most, most)
        assert torch.equal(half.float(), wanted.to(dtype).float())
