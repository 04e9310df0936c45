"""Secrets out of everything that is written: masked by the name they stand under, and by value wherever they turn up again.

A report, an event, a page and a log are read by many; a key on the engine's command line is for the engine alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

MASK = "***"
MIN_LENGTH = 6
"""A shorter value is masked where its name stands, and not searched for: it would be found in innocent words."""

_NAMES = r"(?:[\w.-]*[_.-])?(?:api_?key|key|token|secret|password|passwd|pwd|credentials?|auth)"
_NAME = re.compile(rf"--?{_NAMES}|{_NAMES}", re.IGNORECASE)
_NOT_SECRET = frozenset({"proof_key"})
_WORD = re.compile(r"[a-z]{1,11}")
_SHAPES = re.compile(
    r"(?P<keep>://[^\s/:@]*:)(?P<url>[^\s/@]+)(?=@)"
    rf"|(?P<keep2>[?&;]{_NAMES}=)[^\s&#\"']+"
    rf"|(?P<keep3>[\"']{_NAMES}[\"']\s*:\s*\[?\s*[\"'])[^\"']+"
    r"|(?P<keep4>\b(?:Bearer|Authorization:\s*\w+)\s+)[\w.~+/=-]{6,}"
    r"|\bhf_[A-Za-z0-9]{16,}|\bsk-[\w-]{16,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bAKIA[A-Z0-9]{16}\b",
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Whether an option (`--api-key`), a variable (HF_TOKEN) or a field of this name holds a secret."""
    return _NAME.fullmatch(name) is not None and name not in _NOT_SECRET


class Redactor:
    """Masks the secrets of one process.

    Args:
        argv: a command line; the values of its secret options are masked everywhere.
        environment: variables; the values of secret ones are masked everywhere.
    """

    def __init__(self, argv: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        named = [value for name, value in (environment or {}).items() if is_secret_name(name)]
        values = {*named, *(argv[i].partition("=")[2] if inline else argv[i] for i, inline in _secret_words(argv))}
        long = sorted((v for v in values if len(v) >= MIN_LENGTH and not _WORD.fullmatch(v)), key=len, reverse=True)
        self._values = re.compile("|".join(rf"(?<!\w){re.escape(v)}(?!\w)" for v in long)) if long else None

    def text(self, text: str) -> str:
        """`text` without secrets, and without what no file can hold (half a surrogate pair, from a byte that is no UTF-8)."""
        text = text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
        if self._values is not None:
            text = self._values.sub(MASK, text)
        return _SHAPES.sub(_keep, text)

    def command(self, argv: Iterable[str]) -> list[str]:
        """A command line with the values of its secret options masked, whatever their length."""
        words = list(argv)
        secret = dict(_secret_words(words))
        return [
            self.text(word) if i not in secret else f"{word.partition('=')[0]}={MASK}" if secret[i] else MASK
            for i, word in enumerate(words)
        ]

    def plain(self, value: Any) -> Any:
        """Plain JSON values without secrets; lists of words are taken for command lines, keys for names."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {
                self.text(key): MASK if is_secret_name(key) and isinstance(item, str) and item else self.plain(item)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return self.command(value) if all(isinstance(item, str) for item in value) else [self.plain(i) for i in value]
        return value


def _keep(found: re.Match[str]) -> str:
    return next((kept for kept in found.group("keep", "keep2", "keep3", "keep4") if kept), "") + MASK


def _secret_words(argv: Sequence[str]) -> Iterator[tuple[int, bool]]:
    """Positions of secret values in a command line; True where the name stands in the same word (`--api-key=…`)."""
    following = False
    for position, word in enumerate(argv):
        name, equals, _ = word.partition("=")
        if word.startswith("-") or (equals and re.fullmatch(r"\w+", name)):
            secret = is_secret_name(name)
            if secret and equals:
                yield position, True
            following = secret and not equals and word.startswith("-")  # --api-key takes several values
        elif following:
            yield position, False
