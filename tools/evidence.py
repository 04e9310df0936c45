"""What a report says of how it came about."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


def command_line(module: str, words: Sequence[str]) -> str:
    """`python -m module words …` as it was typed; of absolute paths only the last part, as the rest is of a machine."""
    return shlex.join(["python", "-m", module, *(Path(word).name if word.startswith("/") else word for word in words)])
