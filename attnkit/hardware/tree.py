"""Reads small text files below a root, "/" or a recorded tree, without ever raising, blocking or leaving that root."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_MAX_BYTES = 8 * 2**20  # /proc/cpuinfo of a 768-thread host is about 1.5 MiB; anything beyond this is not a file we want
_READ = 2**16


class Tree:
    """One root to read sys, proc, etc and dev from.

    Missing files are normal and say nothing. A file that is there but cannot be read is remembered in `problems`,
    so that a probe can say why it knows less than it should.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._real_root = os.path.realpath(self.root)
        self.live = self._real_root == "/"
        self.problems: list[str] = []

    def text(self, path: str) -> str | None:
        """The stripped text of a regular file, or None. `path` is relative to the root ("proc/cpuinfo")."""
        full = self.root / path
        try:
            # Opening a pipe or a device node may block for ever, so anything but a regular file is refused unopened.
            if not stat.S_ISREG(full.stat().st_mode):
                self.problems.append(f"{path} is not a regular file")
                return None
            if not self.live and not Path(os.path.realpath(full)).is_relative_to(self._real_root):
                self.problems.append(f"{path} points outside {self.root}")
                return None
            return _read(full).decode("utf-8", errors="replace").strip("\x00 \t\r\n")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as exc:
            self.problems.append(f"cannot read {path}: {_reason(exc)}")
            return None

    def fields(self, path: str, separator: str = "=") -> dict[str, str]:
        """`KEY<separator>VALUE` lines of a file (uevent, os-release, KFD properties); lines of another form are passed over."""
        pairs = (line.strip().partition(separator) for line in (self.text(path) or "").splitlines())
        return {key.strip(): value.strip().strip('"') for key, found, value in pairs if found}

    def integer(self, path: str) -> int | None:
        """A file that holds one decimal number, or None."""
        return parse_int(self.text(path))

    def names(self, path: str) -> list[str]:
        """The sorted entries of a directory; empty where there is none."""
        try:
            return sorted(os.listdir(self.root / path))  # noqa: PTH208  (names, not paths)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as exc:
            self.problems.append(f"cannot list {path}: {_reason(exc)}")
            return []

    def exists(self, path: str) -> bool:
        """True where anything of that name is there, a dangling link too."""
        return os.path.lexists(self.root / path)

    def link_name(self, path: str) -> str | None:
        """The last part of what a symbolic link points to; the link is not followed."""
        try:
            return os.path.basename(os.readlink(self.root / path)) or None  # noqa: PTH115, PTH119
        except OSError:
            return None


def parse_int(text: str | None, base: int = 10) -> int | None:
    """A number from text that may be missing or rubbish."""
    try:
        return None if text is None else int(text.split()[0], base)
    except (ValueError, IndexError):
        return None


def _read(path: Path) -> bytes:
    """The file's bytes up to the limit, in small reads: below proc/sys the kernel allocates what a read asks for."""
    parts: list[bytes] = []
    with path.open("rb", buffering=0) as stream:
        while len(parts) * _READ < _MAX_BYTES and (part := stream.read(_READ)):
            parts.append(part)
    return b"".join(parts)


def _reason(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or str(exc)
