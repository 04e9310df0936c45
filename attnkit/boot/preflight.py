"""What would keep the engine from serving, or from being the one that was tested: found before the self-test."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from attnkit.engines import listener
from attnkit.engines.vllm import command as vllm_command
from attnkit.engines.vllm.command import VllmCommand
from attnkit.errors import UsageError, did_you_mean


def check(
    command: Sequence[str], vllm: VllmCommand | None, health_url: str | None, environment: Mapping[str, str] | None = None
) -> None:
    """Refuse a command that cannot be started, and a port that somebody else already serves on.

    Raises:
        UsageError: the program is not there, vLLM is not installed for it, or something answers where the engine will.
    """
    if not command:
        return
    environment = os.environ if environment is None else environment
    search = environment.get("PATH")
    program = vllm.wrapped.argv[0] if vllm is not None else command[0]
    replaced = vllm is not None and vllm_command.starts_as_module(vllm)
    for name in dict.fromkeys((*command[:1], program)):
        if shutil.which(name, path=search) is None and not (replaced and name == program):
            near = did_you_mean(Path(name).name, ("vllm", "python3", "python"))
            hint = " Install vLLM here, or start this in the platform's image" if name == "vllm" else near
            raise UsageError(f"cannot start {name!r}: no such program on PATH, or it may not be run.{hint}")
    if vllm is not None and not vllm.serve and _is_this_python(program, search) and find_spec("vllm") is None:
        raise UsageError(f"cannot start {' '.join(vllm.launcher)!r}: vLLM is not installed in {sys.prefix}")
    address = vllm.address if vllm is not None and health_url is None else _address(health_url)
    if address is not None and listener.answers(*address):
        raise UsageError(
            f"something already listens on {address[0]}:{address[1]}, where the engine is to serve: it would be taken for the "
            "engine. Stop it, or give the engine another port"
        )


def warnings(command: Sequence[str], vllm: VllmCommand | None, model: str | None) -> list[str]:
    """What a person must know before trusting the verdict.

    Args:
        model: the model that the self-test's shapes are from, None where they are a usual decoder's.
    """
    found = []
    if (unseen := vllm_command.unseen(command)) is not None:
        found.append(unseen)
    if vllm is not None and model is None:
        what = f"model {vllm.model} is not on this machine" if vllm.model else "the command names no model"
        found.append(
            f"{what}: the shapes of a usual decoder are validated, not the model's own; download it first, or give --model a "
            "copy of its config.json"
        )
    if vllm is not None and not vllm.headless and vllm.option("--uds"):
        found.append("the engine serves on a Unix socket, where boot does not ask: it counts as ready once it stays alive")
    return found


def _is_this_python(program: str, search: str | None) -> bool:
    found = shutil.which(program, path=search)
    return found is not None and Path(found).samefile(sys.executable)


def _address(health_url: str | None) -> tuple[str, int] | None:
    if health_url is None:
        return None
    try:
        parts = urlsplit(health_url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    if parts.hostname is None or port is None or not listener.is_local(parts.hostname):
        return None
    return parts.hostname, port
