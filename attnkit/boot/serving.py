"""The engine under boot: started, watched until it answers, waited for, its end explained."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from attnkit.boot.ending import failed_end, good_end
from attnkit.boot.events import Events
from attnkit.boot.outputs import Outputs
from attnkit.boot.redact import Redactor
from attnkit.boot.report import BootReport, Completion, EngineReport
from attnkit.boot.supervisor import Supervisor
from attnkit.engines import listener
from attnkit.engines.openai import NoSuchApiError, complete, wait_until_healthy
from attnkit.engines.vllm import command as vllm_command
from attnkit.engines.vllm import log as vllm_log
from attnkit.engines.vllm import serving_census
from attnkit.engines.vllm.parallel import parallelism
from attnkit.engines.vllm.plugin import CENSUS_VARIABLE
from attnkit.errors import (
    EXIT_CHECK_FAILED,
    EXIT_ENGINE,
    EXIT_INCONCLUSIVE,
    EXIT_INTERNAL,
    AttnkitError,
    InconclusiveError,
    UsageError,
    describe_exit,
)
from attnkit.hardware.device import Device

if TYPE_CHECKING:
    from attnkit.boot.candidates import Candidate
    from attnkit.boot.served import ServedCheck
    from attnkit.engines.vllm.expected import Expected
    from attnkit.profiles.settings import Settings

ALIVE_SECONDS = 1.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class EngineSettings:
    """The engine as the user gave it.

    Args:
        command: the command line.
        health_url: where it says that it is healthy; None: known for vLLM, else its being alive counts.
        health_timeout: seconds it may take until then.
    """

    command: tuple[str, ...]
    health_url: str | None
    health_timeout: float


class Serving:
    """Runs the engine; updates report and readiness on the way."""

    def __init__(
        self,
        settings: EngineSettings,
        report: BootReport,
        outputs: Outputs,
        events: Events,
        started: float,
        redactor: Redactor | None = None,
    ) -> None:
        self._redactor = redactor or Redactor()
        self._settings = settings
        self._report = report
        self._outputs = outputs
        self._events = events
        self._boot_started = started
        self._vllm = vllm_command.recognise(settings.command)
        self._loaded = threading.Event()
        self._expected: Expected | None = None
        self._served: ServedCheck | None = None
        self._channel: tempfile.TemporaryDirectory[str] | None = None
        self._replicas = 1
        self._problem: AttnkitError | None = None
        self._ready = False

    def run(
        self,
        device: Device,
        settings: Settings,
        validated: Candidate,
        served: ServedCheck,
        visible: Mapping[str, str] | None = None,
    ) -> int:
        """Start the engine on the validated backend, wait for its end and return what boot exits with.

        Args:
            served: compares the layers that the engine builds with those that were validated.
            visible: the variables that hide the devices which are left out.
        """
        environment = dict(os.environ)
        engine = self._prepare(device, settings, validated, environment)
        if visible:
            environment |= visible
            engine.env |= visible
            engine.notes.append(f"sees the validated devices alone: {' '.join(f'{k}={v}' for k, v in visible.items())}")
        self._report.engine = engine
        self._expected, self._served = validated.expected, served
        self._replicas = parallelism(self._vllm, settings.engine_args).replicas
        with suppress(OSError):  # without it the engine's silence is said
            self._channel = tempfile.TemporaryDirectory(prefix="attnkit-census-", ignore_cleanup_errors=True)
            environment[CENSUS_VARIABLE] = self._channel.name
        supervisor = Supervisor(
            engine.argv,
            environment,
            keep=self._keep if self._vllm is not None else None,
            clean=self._redactor.text,
            on_stop=self._outputs.stopping,
        )
        self._events.emit(
            "engine.start",
            argv=engine.argv,
            env=engine.env,
            version=engine.version,
            backend=self._report.backend,
            backend_flag=engine.backend_flag,
            engine_backend=engine.own_backend,
            notes=engine.notes,
            health_url=engine.health_url,
        )
        self._outputs.write_ready_file("engine-starting", self._report.verdict, self._report.backend)
        self._outputs.save(self._report)
        started = time.monotonic()
        try:
            supervisor.start()
            watch = threading.Thread(target=self._watch, args=(supervisor, engine, started), name="engine-watch", daemon=True)
            watch.start()
            code = supervisor.wait(restore=False)
            watch.join(timeout=STOP_SECONDS)
            return self._ended(supervisor, engine, code, time.monotonic() - started)
        finally:
            supervisor.abandon()  # nothing where it has ended
            supervisor.restore_signals()
            if self._channel is not None:
                self._channel.cleanup()

    def _prepare(self, device: Device, settings: Settings, validated: Candidate, environment: dict[str, str]) -> EngineReport:
        command = self._settings.command
        if self._vllm is None:
            return EngineReport(
                command=list(command),
                argv=list(command),
                env={},
                health_url=self._settings.health_url,
                notes=[f"not a command that attnkit knows: started as given, without being told to use {self._report.backend}"],
            )
        launch = vllm_command.prepare(
            self._vllm,
            backend=validated.backend,
            device=device,
            args=settings.engine_args,
            env=settings.engine_env,
        )
        for name, value in launch.env.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        return EngineReport(
            command=list(command),
            argv=list(launch.argv),
            env={name: value for name, value in launch.env.items() if value is not None},
            name="vllm",
            version=launch.version,
            backend_flag=list(launch.backend_flag),
            own_backend=None if validated.serves == launch.own_backend else launch.own_backend,
            notes=list(launch.notes),
            health_url=self._settings.health_url or (self._vllm.health_url if self._vllm.address is not None else None),
        )

    def _watch(self, supervisor: Supervisor, engine: EngineReport, started: float) -> None:
        """On its own thread: healthy, one completion, ready. A failure stops the engine, whatever it is."""
        try:
            why = self._until_ready(supervisor, engine)
            if supervisor.ended.is_set() or supervisor.stopped_on_request:
                return
            why = f"{why}, {self._check_layers(supervisor, engine)}"
            if supervisor.ended.is_set() or supervisor.stopped_on_request:
                return
            now = time.monotonic()
            self._report.boot_seconds.engine = round(now - started, 3)
            self._report.boot_seconds.total = round(now - self._boot_started, 3)
            self._report.end = good_end(self._report, "serving")
            self._ready = True
            self._save_while_it_serves()
            self._events.emit(
                "ready",
                backend=self._report.backend,
                engine_backend=engine.own_backend,
                verdict=self._report.verdict,
                why=why,
                seconds=self._report.boot_seconds.total,
            )
        except AttnkitError as error:
            self._give_up(supervisor, error)
        except Exception as error:  # nobody else would notice that this thread is gone
            self._give_up(supervisor, AttnkitError(f"watching the engine failed: {type(error).__name__}: {error}"))

    def _save_while_it_serves(self) -> None:
        """Files that cannot be written end no engine that serves; readiness is tried again at every heartbeat."""
        report = self._report
        try:
            self._outputs.save(report, ready=True)
        except UsageError as error:
            self._events.emit("error", message=f"{error}; the engine serves on")
        try:
            self._outputs.write_ready_file("ready", report.verdict, report.backend, report.end.headline if report.end else "")
        except UsageError as error:
            self._events.emit("error", message=f"{error}; the engine serves on")

    def _give_up(self, supervisor: Supervisor, error: AttnkitError) -> None:
        if supervisor.ended.is_set() or supervisor.stopped_on_request:
            return  # its end is what happened; `_ended` explains it
        self._problem = error
        self._outputs.withdraw()
        supervisor.stop()
        with suppress(Exception):  # whatever broke here must not keep the engine
            self._events.emit("error", message=str(error))
        if not supervisor.ended.wait(STOP_SECONDS):
            supervisor.kill()

    def _until_ready(self, supervisor: Supervisor, engine: EngineReport) -> str:
        """Why the engine counts as ready, once it does."""
        if engine.health_url is None and self._vllm is not None and self._vllm.headless:
            return self._until_loaded(supervisor, engine)
        if engine.health_url is None:
            supervisor.ended.wait(ALIVE_SECONDS)
            return f"no health endpoint is known (--health-url); the process is alive after {ALIVE_SECONDS:g} s"
        seconds = wait_until_healthy(
            engine.health_url,
            timeout=self._settings.health_timeout,
            ended=supervisor.ended,
            progress=lambda: supervisor.last_progress,
        )
        engine.health_seconds = round(seconds, 3)
        self._check_listener(supervisor, engine, engine.health_url)
        self._events.emit("engine.healthy", url=engine.health_url, seconds=engine.health_seconds)
        try:
            answer = complete(engine.health_url, api_key=self._api_key(engine.health_url))
        except NoSuchApiError as error:
            if self._vllm is not None:
                raise
            return f"healthy; no completion was requested: {error}"
        served = self._vllm.served_names if self._vllm is not None else ()
        if served and answer.model not in served:
            raise AttnkitError(
                f"what answers at {engine.health_url} serves {answer.model!r}, not {' or '.join(map(repr, served))}: it is not "
                "the engine that was started"
            )
        speed = answer.tokens_per_s
        engine.completion = Completion(
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            seconds=round(answer.seconds, 4),
            tokens_per_s=None if speed is None else round(speed, 2),
        )
        self._events.emit("engine.completion", model=answer.model, **engine.completion.model_dump())
        return "healthy, one completion returned"

    def _api_key(self, url: str) -> str | None:
        """The key that the engine asks for, where `url` is on this machine; nobody else gets it."""
        if self._vllm is None:
            return None
        own = {"127.0.0.1", "localhost", "::1", socket.gethostname().casefold(), urlsplit(self._vllm.health_url).hostname}
        return self._vllm.api_key(os.environ) if urlsplit(url).hostname in own else None

    def _keep(self, line: str) -> bool:
        """Whether a line of the engine's output is kept."""
        if vllm_log.LOADED.search(line):
            self._loaded.set()
        return vllm_log.matters(line)

    def _until_loaded(self, supervisor: Supervisor, engine: EngineReport) -> str:
        """A node without an API server: its log says when its engine processes hold the model.

        Raises:
            AttnkitError: nothing of it, and no progress, within the time limit.
        """
        started = time.monotonic()
        while not self._loaded.wait(0.1) and not supervisor.ended.is_set():
            since = max(started, supervisor.last_progress or started)
            if time.monotonic() - since > self._settings.health_timeout:
                raise AttnkitError(f"the headless engine did not load its model within {self._settings.health_timeout:.0f} s")
        return "headless: its log says that its engine is initialised"

    def _check_listener(self, supervisor: Supervisor, engine: EngineReport, health_url: str) -> None:
        """What listens there is our child, or was started by it.

        Raises:
            AttnkitError: another process does; with SO_REUSEPORT both can, and either gets a request.
        """
        parts = urlsplit(health_url)
        if parts.hostname is None or not listener.is_local(parts.hostname):
            return
        found = listener.listeners(parts.port or (443 if parts.scheme == "https" else 80))
        if found is None:
            engine.notes.append("who listens on the engine's port cannot be told (a process of another user, or outside)")
            return
        foreign = sorted(pid for pid in found if not listener.descends_from(pid, supervisor.pid))
        if foreign:
            raise AttnkitError(
                f"process {', '.join(map(str, foreign))} listens on the engine's port {parts.port} and is not the engine that "
                "was started: it would get the engine's requests"
            )

    def _check_layers(self, supervisor: Supervisor, engine: EngineReport) -> str:
        """Check what the engine's workers built, and its log as a second witness.

        Returns:
            What was found, in words.

        Raises:
            AttnkitError: it runs something else than what was validated, or what was not validated before does not pass.
        """
        assert self._served is not None
        channel = Path(self._channel.name) if self._channel is not None else None
        spoken = serving_census.read(channel, self._replicas)
        warnings: list[str] = []
        problem = None
        try:
            warnings = self._served.check(spoken, engine.version)
        except AttnkitError as error:
            problem = str(error)
            raise
        finally:
            layers = self._served.rows(spoken)
            engine.layers = layers if spoken.ranks else None
            self._events.emit("engine.layers", layers=[row.model_dump() for row in layers], warnings=warnings, problem=problem)
        self._report.summarise()
        if self._report.decision is not None:
            self._report.decision.warnings += warnings
        running = self._check_backend(supervisor, engine, {row.backend for row in layers if row.backend})
        said = ", ".join(sorted({str(row.backend) for row in layers})) or "nothing of what they run"
        return f"its workers say {said}, {running}"

    def _check_backend(self, supervisor: Supervisor, engine: EngineReport, built: Collection[str]) -> str:
        """Check the engine's log against the validated backend.

        Args:
            built: the backends that its workers say they run, which were validated.

        Returns:
            What was found, in words.

        Raises:
            AttnkitError: it runs another backend than the validated one.
        """
        if self._expected is None or engine.version is None:
            unchecked = "the backend that the engine runs was not checked"
            engine.notes.append(unchecked)
            return unchecked
        running = vllm_log.read_log(supervisor.kept, engine.version)
        engine.running_backend = running.backend
        problem = vllm_log.assert_chosen(self._expected.log, supervisor.kept, engine.version, built)
        self._events.emit(
            "engine.backend", proven=self._expected.log, running=running.backend, line=running.line, problem=problem
        )
        if problem is None:
            return f"and its log says {running.backend}"
        if running.backend is not None:
            raise AttnkitError(problem)
        engine.notes.append(problem)  # a log that says nothing does not mean another backend
        return problem

    def _ended(self, supervisor: Supervisor, engine: EngineReport, code: int, seconds: float) -> int:
        """Explain the end. Readiness goes first: what follows may fail on a full disk.

        Returns:
            Boot's exit code: the engine's, except where this has another meaning for boot, and that an engine that never
            served did not succeed.
        """
        self._outputs.withdraw()
        requested = supervisor.stopped_on_request
        engine.exit_code = code
        never_served = engine.health_url is not None and not self._ready
        failed = self._problem is not None or (not requested and (code != 0 or never_served))
        result = EXIT_ENGINE if 0 < code <= EXIT_INTERNAL or (code == 0 and failed) else code
        if self._problem is not None:
            unsure = isinstance(self._problem, InconclusiveError)
            result = EXIT_INCONCLUSIVE if unsure else EXIT_CHECK_FAILED
        if failed:
            engine.last_output = list(supervisor.last_lines)
            self._report.error = str(self._problem or _reason(code, self._ready, engine.last_output))
            what = "engine ended while it served" if self._ready else "engine did not start"
            step = self._problem.next_step if self._problem is not None else ""
            self._report.end = failed_end(self._report, what, self._report.error, step, result)
        else:
            self._report.end = good_end(self._report, "stopped")
        self._report.exit_code = result
        self._events.emit(
            "engine.exit",
            code=code,
            how=describe_exit(code),
            requested=requested,
            seconds=round(seconds, 3),
            reason=self._report.error,
            last_output=engine.last_output,
        )
        if failed:
            self._outputs.write_ready_file("failed", self._report.verdict, self._report.backend, self._report.end.headline)
        self._outputs.save(self._report)
        return result


def _reason(code: int, was_ready: bool, last_output: Sequence[str]) -> str:
    when = "while it served" if was_ready else "before it served"
    last = next((line.strip() for line in reversed(last_output) if line.strip()), "")
    return f"the engine ended {when} with {describe_exit(code)}" + (f"; its last line: {last}" if last else "")
