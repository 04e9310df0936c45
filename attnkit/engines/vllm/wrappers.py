"""Seeing through what people put in front of an engine's command: `env X=1`, `numactl`, `nice`, `sh -c '…'` and the like."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TAKES_VALUE = {
    "env": ("-u", "-C", "--unset", "--chdir"),
    "numactl": ("-N", "-m", "-i", "-C", "-P", "-p", "-w", "--cpunodebind", "--membind", "--interleave", "--physcpubind"),
    "nice": ("-n",),
    "ionice": ("-c", "-n", "-p"),
    "chrt": ("-T", "-P", "-D"),
    "taskset": (),
    "timeout": ("-s", "-k", "--signal", "--kill-after"),
    "stdbuf": ("-i", "-o", "-e"),
    "nohup": (),
    "setsid": (),
    "exec": ("-a",),
    "tini": ("-p", "-e"),
    "dumb-init": ("-r", "--rewrite"),
    "catchsegv": (),
    "time": (),
}
"""Wrappers that run the rest of their command line, and their options that take a value of their own."""

_OWN_ARGUMENTS = {"taskset": 1, "timeout": 1, "chrt": 1}
"""Positional arguments of the wrapper itself (a mask, a duration, a priority)."""

_SHELLS = ("sh", "bash", "dash", "zsh", "ash")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_EXPANDS = re.compile(r"[$`*?~<>|&;(){}\n]")
"""What a shell would change in a word, or do with it."""


@dataclass(frozen=True)
class Unwrapped:
    """A command without its wrappers.

    Args:
        prefix: the words in front of it.
        argv: the command itself.
        environment: variables that the wrappers set for it.
        script: where a shell runs it: the text of the shell's command line in front of it; None: no shell.
    """

    prefix: tuple[str, ...]
    argv: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    script: str | None = None

    def rebuilt(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The whole command line with `argv` in the place of the command."""
        if self.script is None:
            return (*self.prefix, *argv)
        return (*self.prefix, self.script + shlex.join(argv))


def unwrap(argv: Sequence[str]) -> Unwrapped:
    """Take wrappers off as long as there are any; what is no wrapper is left as it is."""
    rest = tuple(argv)
    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    while rest:
        name = Path(rest[0]).name
        if name in _SHELLS:
            inside = _shell(rest)
            return Unwrapped(prefix, rest, environment) if inside is None else _joined(prefix, environment, inside)
        if name not in _TAKES_VALUE:
            break
        count = _own_words(name, rest)
        for word in rest[1:count]:
            if name == "env" and _ASSIGNMENT.match(word):
                key, _, value = word.partition("=")
                environment[key] = value
        prefix, rest = (*prefix, *rest[:count]), rest[count:]
    return Unwrapped(prefix, rest, environment)


def _own_words(name: str, words: tuple[str, ...]) -> int:
    """How many words are the wrapper's."""
    position, own = 1, _OWN_ARGUMENTS.get(name, 0)
    while position < len(words):
        word = words[position]
        if word == "--":
            return position + 1
        if word.startswith("-") and word != "-":
            position += 2 if word in _TAKES_VALUE[name] else 1
        elif name == "env" and _ASSIGNMENT.match(word):
            position += 1
        elif own:
            own -= 1
            position += 1
        else:
            break
    return position


def _shell(words: tuple[str, ...]) -> Unwrapped | None:
    """The last command of `sh -c TEXT`; None where the text cannot be seen through."""
    position = next((i for i, word in enumerate(words[1:], 1) if re.fullmatch(r"-[a-z]*c", word)), None)
    if position is None or len(words) != position + 2:
        return None
    text = words[position + 1].rstrip().removesuffix(";")
    bare = _unquoted(text)
    start = max((match.end() for match in re.finditer(r"&&|;|\n", bare)), default=0)
    last = text[start:]
    try:
        found = shlex.split(last)
    except ValueError:
        return None
    environment = dict(re.findall(r"(?:^|;|&&|\n)\s*export\s+([A-Za-z_]\w*)=([\w./:,-]*)\s*(?=;|&&|\n)", text))
    kept = []
    while found and (_ASSIGNMENT.match(found[0]) or found[0] == "exec"):
        word = found.pop(0)
        key, assigns, value = word.partition("=")
        kept.append(f"{key}={shlex.quote(value)}" if assigns else word)
        if assigns:
            environment[key] = value
    if not found or _EXPANDS.search(bare[start:]):
        return None
    return Unwrapped(
        words[: position + 1], tuple(found), environment, text[:start] + "".join(f" {word}" for word in kept) + " "
    )


def _unquoted(text: str) -> str:
    """`text` with what quotes protect from the shell replaced by x, character for character."""
    out, quote = [], ""
    for position, letter in enumerate(text):
        escaped = position > 0 and text[position - 1] == "\\" and quote != "'"
        if quote:
            protected = quote == "'" or letter not in "$`"
            out.append("x" if protected or escaped else letter)
            quote = "" if letter == quote and not escaped else quote
        else:
            quote = letter if letter in "'\"" and not escaped else ""
            out.append("x" if quote or escaped else letter)
    return "".join(out)


def _joined(prefix: tuple[str, ...], environment: dict[str, str], inside: Unwrapped) -> Unwrapped:
    """A shell's command below other wrappers; what wraps it inside the shell's text is taken off, too."""
    below = unwrap(inside.argv)
    script = (inside.script or "") + "".join(f"{shlex.quote(word)} " for word in below.prefix)
    if below.script is not None:  # a shell in a shell's text: its own text would have to be quoted again
        return Unwrapped((*prefix, *inside.prefix), inside.argv, environment, inside.script)
    return Unwrapped((*prefix, *inside.prefix), below.argv, {**environment, **inside.environment, **below.environment}, script)
