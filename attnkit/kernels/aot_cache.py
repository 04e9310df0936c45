"""Triton's cache, a read-only kernel directory in front: `TRITON_CACHE_MANAGER=attnkit.kernels.aot_cache:BakedCacheManager`.

A key that was compiled ahead (a directory under $ATTNKIT_KERNELS) is read from there, wherever that directory lies now:
Triton's own group files hold absolute paths, and only their names are used here. Everything else goes to the ordinary cache,
so that a node with an unknown architecture still compiles, and the kernel directory may be on a read-only file system.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from triton.runtime.cache import FileCacheManager

from attnkit.errors import UsageError
from attnkit.jsonio import read_json

KERNELS_VARIABLE = "ATTNKIT_KERNELS"
MANAGER = f"{__name__}:BakedCacheManager"


class BakedCacheManager(FileCacheManager):  # type: ignore[misc]
    """Triton's file cache, reading what was compiled ahead first."""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        root = os.environ.get(KERNELS_VARIABLE)
        self.precompiled = Path(root, key) if root and not override and not dump and Path(root, key).is_dir() else None
        if self.precompiled is None:
            super().__init__(key, override=override, dump=dump)
        else:
            self.key, self.lock_path, self.cache_dir = key, None, str(self.precompiled)

    def get_group(self, filename: str) -> dict[str, str] | None:
        """Paths of a compiled kernel's files by name, None where it is not there."""
        if self.precompiled is None:
            return super().get_group(filename)  # type: ignore[no-any-return]
        group = self.precompiled / f"__grp__{filename}"
        if not group.is_file():
            return None
        try:
            names: dict[str, str] = read_json(group)["child_paths"]
        except (UsageError, KeyError, TypeError):  # altered: as if it were not there; `kernels verify` says so
            return None
        return {name: str(self.precompiled / name) for name in names if (self.precompiled / name).is_file()}

    def put(self, data: Any, filename: str, binary: bool = True) -> str:
        """Store a file; a key whose precompiled files turned out incomplete moves to the ordinary cache first."""
        if self.precompiled is not None:
            self.precompiled = None
            super().__init__(self.key)
        return super().put(data, filename, binary)  # type: ignore[no-any-return]


def is_precompiled(path: str) -> bool:
    """True where a file of a cache hit lies in the kernel directory."""
    root = os.environ.get(KERNELS_VARIABLE)
    return bool(root) and Path(root or "").resolve() in Path(path).resolve().parents
