"""The errors attnkit raises deliberately, each with the exit code of the command-line contract."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_BACKEND = 3
EXIT_INCONCLUSIVE = 4
EXIT_ENGINE = 5
"""The engine ended by itself with a code that this table gives another meaning; the report's engine.exit_code has it."""
EXIT_INTERNAL = 6
"""attnkit itself broke, or the machine refused it something (file descriptors, processes, memory)."""


class AttnkitError(Exception):
    """Base of every deliberate error. The command line prints the message without a traceback.

    Args:
        message: what is wrong, where, what is allowed.
        next_step: what to do about it, where the message does not say so already.
    """

    exit_code = EXIT_CHECK_FAILED

    def __init__(self, message: str = "", next_step: str = "") -> None:
        super().__init__(message)
        self.next_step = next_step


class UsageError(AttnkitError):
    """Wrong usage or configuration: the message names file, line, field and the allowed values."""

    exit_code = EXIT_USAGE


class NoBackendError(AttnkitError):
    """No backend can serve; the message holds the reason of every rejected one."""

    exit_code = EXIT_NO_BACKEND


class InconclusiveError(AttnkitError):
    """Nothing here can say whether it is right."""

    exit_code = EXIT_INCONCLUSIVE


class NotUnderstoodError(InconclusiveError):
    """Something that bears on attention and that nobody here understands: nothing is assumed in its place."""


class InternalError(AttnkitError):
    """Nobody foresaw it: a mistake of attnkit's, or a machine that refused it something."""

    exit_code = EXIT_INTERNAL


class UnsupportedError(AttnkitError):
    """A backend was asked for something outside its capability. Never run wrong: refused with the reasons."""

    exit_code = EXIT_NO_BACKEND


def require_packages(command: str, *packages: str) -> None:
    """A UsageError naming what of `packages` cannot be imported here; nothing is imported."""
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        raise UsageError(
            f"{command} needs {' and '.join(absent)}, not installed here: {how_to_install(absent)}, or run this in the "
            "platform's image"
        )


EXTRAS = {"nvidia": "cuda", "amd": "rocm", "intel": "xpu", "google": "tpu", "cpu": "cpu"}
"""The extra of pyproject.toml that brings what a vendor's devices need."""


def how_to_install(packages: Iterable[str], vendor: str = "cpu") -> str:
    """The command that brings missing packages: the extra that has them, else the package itself."""
    names = list(packages)
    extra = {"jax": "tpu", "flatbuffers": "tpu", "matplotlib": "bench", "triton": "cuda", "pynvml": "cuda"}
    wanted = list(
        dict.fromkeys(extra.get(name, EXTRAS[vendor]) for name in names if name in extra or name in ("torch", "numpy"))
    )
    if "cuda" in wanted:  # it brings torch too
        wanted = [name for name in wanted if name != "cpu"]
    if not wanted:
        return f"pip install {' '.join(names)}"
    return f"pip install 'attnkit[{','.join(wanted)}]'"


def unknown_name(what: str, name: str, known: Iterable[str]) -> UsageError:
    """A UsageError for a name that does not exist, with the nearest known names first and then all of them."""
    names = sorted(known)
    return UsageError(f"unknown {what} {name!r}.{did_you_mean(name, names)} Known: {', '.join(names)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean A, B or C?' with the nearest names, whatever their letter case; '' where none is near."""
    by_folded = {n.casefold(): n for n in known}
    near = [by_folded[n] for n in get_close_matches(name.casefold(), list(by_folded), n=3, cutoff=0.5)]
    return f" Did you mean {', '.join(near[:-1])}{' or ' if near[1:] else ''}{near[-1]}?" if near else ""


def describe_exit(code: int) -> str:
    """'exit code 3', or the signal's name where the code says a signal ended it (128 + n)."""
    import signal

    try:
        return f"signal {signal.Signals(code - 128).name}" if code > 128 else f"exit code {code}"
    except ValueError:
        return f"exit code {code}"
