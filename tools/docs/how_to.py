"""Follows a how-to page as a reader does: makes its files, applies its patches, runs its commands, checks what they print.

What a page's fenced blocks mean (docs/how-to/index.md tells readers the same):

    ```LANGUAGE title="PATH"    the whole content of PATH, in the working folder; folders on the way are made
    ```diff title="PATH"        a patch of PATH, as `git apply` takes it
    ```sh                       commands for bash, which stops at the first that fails; one folder and environment a page
    ```text                     after commands: a part of what they print, whatever the line breaks
    ```LANGUAGE                 any other block is an explanation and is not run

A fence starts at the line's beginning with exactly three backticks. A page that breaks these rules is a `PageError` that names
file and line, and so is a step that does not come to what the page says.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r'```(?P<language>[\w+-]*)(?: title="(?P<title>[^"]+)")?')


_SHELL = """\
set -eu -o pipefail
[ ! -f "$1" ] || . "$1"
trap 'declare -px > "$1"' EXIT
"""
"""Before each block of commands: the variables that those before it exported; $1 is the file that keeps them."""


class PageError(AssertionError):
    """A page cannot be read, or does not come to what it says."""


@dataclass(frozen=True)
class Block:
    """One fenced block: `line` is that of its opening fence."""

    line: int
    language: str
    title: str | None
    body: str


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block, in order.

    Raises:
        PageError: a fence that nothing closes, or whose words are not understood.
    """
    opened: tuple[int, re.Match[str]] | None = None
    body: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened is None and line.startswith("```"):
            found = _FENCE.fullmatch(line.rstrip())
            if found is None:
                raise PageError(f'{page}:{number}: {line!r}: a fence is ```LANGUAGE or ```LANGUAGE title="PATH"')
            opened, body = (number, found), []
        elif opened is not None and line.rstrip() == "```":
            start, found = opened
            yield Block(start, found["language"], found["title"], "".join(f"{text}\n" for text in body))
            opened = None
        elif opened is not None:
            body.append(line)
    if opened is not None:
        raise PageError(f"{page}:{opened[0]}: nothing closes this fence")


def follow(page: Path, folder: Path, environment: Mapping[str, str], timeout: float = 600) -> list[str]:
    """Do every step of the page in `folder`.

    Args:
        page: the Markdown file.
        folder: the working folder; a copy of the repository for pages that patch it.
        environment: of the first commands; what they export is there for those after.
        timeout: seconds one block of commands may take.

    Returns:
        What each block of commands printed, stdout and stderr together.

    Raises:
        PageError: a step that fails, or prints something else than the page says.
    """
    printed: list[str] = []
    state = folder.parent / f"{folder.name}.environment"
    before: Block | None = None
    for block in blocks(page):
        where = f"{page}:{block.line}"
        if block.language == "text" and block.title is None:
            if before is None or before.language not in ("sh", "text"):
                raise PageError(f"{where}: a text block says what commands print: it goes after a block of sh")
            if _words(block.body) not in _words(printed[-1]):
                raise PageError(f"{where}: the commands did not print {block.body.strip()!r} but:\n{printed[-1][-3000:]}")
        elif block.language == "sh" and block.title is None:
            done = _run(["bash", "-c", _SHELL + block.body, "bash", str(state)], folder, environment, timeout)
            if done.returncode != 0:
                raise PageError(f"{where}: the commands ended with {done.returncode}:\n{done.stdout[-3000:]}")
            printed.append(done.stdout)
        elif block.language == "diff" and block.title is not None:
            done = _run(["git", "apply", "--include", block.title, "-"], folder, environment, timeout, block.body)
            if done.returncode != 0 or block.title not in block.body:
                raise PageError(f"{where}: this is no patch of {block.title}: {done.stdout.strip()}")
        elif block.title is not None:
            path = folder / block.title
            if not path.resolve().is_relative_to(folder.resolve()):
                raise PageError(f"{where}: {block.title} is outside of the working folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body, encoding="utf-8")
        before = block
    return printed


def _run(
    command: list[str], folder: Path, environment: Mapping[str, str], timeout: float, given: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=dict(environment),
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
    )


def _words(text: str) -> str:
    return " ".join(text.split())
