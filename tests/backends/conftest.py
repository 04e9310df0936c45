"""These tests are about torch's kernels: CPU kernels that somebody compiled into their own cache must not come before them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="package")
def _no_compiled_cpu_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        empty = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(empty))
        patch.delenv("ATTNKIT_KERNELS", raising=False)
        yield empty
