"""The boot report: one JSON document, its schema and its file.

The readiness file, the Prometheus text and the HTML page are made from it. `python -m attnkit.boot.report` prints the JSON
Schema that is published at docs/report.schema.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attnkit.backends.base import Accepted, Rejected
from attnkit.boot.redact import Redactor
from attnkit.engines.vllm.driver import PREFIX
from attnkit.engines.vllm.tower import TOWER
from attnkit.errors import UsageError
from attnkit.hardware.device import Detection, Device
from attnkit.hardware.health import Health
from attnkit.isolation.collective import CollectiveResult
from attnkit.jsonio import read_json, shorten, to_json, to_plain
from attnkit.select.choose import Decision
from attnkit.selftest.results import Outcome, Verdict, roll_up
from attnkit.spec import AttentionSpec, Dtype, Feature, KvCacheDtype, Op, Phase

SCHEMA_VERSION: Literal[2] = 2
READ = (1, SCHEMA_VERSION)
FUTURE = timedelta(minutes=5)
"""A report from further ahead than clocks differ is none of now."""
BootVerdict: TypeAlias = Outcome | Literal["planted"]
"""The boot's verdict: an outcome of the self-test, or "planted" where the device was simulated and no kernel ran."""
State = Literal["starting", "selftest", "engine-starting", "ready", "stopping", "failed"]
EndKind = Literal["validated", "serving", "stopped", "failed"]


class _Model(BaseModel):
    """Readers ignore what they do not know: a newer attnkit may say more."""

    model_config = ConfigDict(extra="ignore")


class SpecReport(_Model):
    """One requirement: an `attnkit.spec.AttentionSpec`, sets as sorted lists."""

    op: Op
    dtype: Dtype
    num_heads: int
    num_kv_heads: int
    head_dim: int
    head_dim_v: int | None = None
    kv_cache_dtype: KvCacheDtype
    block_size: int | None
    phases: list[Phase]
    features: list[Feature]

    @classmethod
    def from_spec(cls, spec: AttentionSpec) -> SpecReport:
        """The report's form of `spec`."""
        return cls.model_validate(to_plain(spec))


class NeedReport(_Model):
    """What must be served: where it came from, and one spec per distinct kind of attention layer."""

    source: str
    specs: list[SpecReport]
    notes: list[str] = []


class DecisionReport(_Model):
    """The outcome of selection, every rejection with its reasons."""

    device: Device
    chosen: Accepted | None
    accepted: list[Accepted]
    rejected: list[Rejected]
    explicit: str | None
    order: list[str]
    order_source: str
    installed_source: str = Field(description="'this environment', or what the installed libraries were assumed from.")
    warnings: list[str] = []

    @classmethod
    def from_decision(cls, decision: Decision, installed_source: str) -> DecisionReport:
        """The report's form of `decision`."""
        return cls(
            device=decision.device,
            chosen=decision.chosen,
            accepted=list(decision.accepted),
            rejected=list(decision.rejected),
            explicit=decision.explicit,
            order=list(decision.order),
            order_source=decision.order_source,
            installed_source=installed_source,
            warnings=list(decision.warnings),
        )


class Fallback(_Model):
    """One step along the profile's chain, and why it was taken."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, serialize_by_alias=True)

    from_backend: str = Field(alias="from")
    to_backend: str | None = Field(alias="to", description="null where the chain ended.")
    reason: str


class DeviceReport(_Model):
    """One device that was to serve."""

    index: int
    name: str
    arch: str
    uuid: str | None = None
    pci_address: str | None = None
    part: str | None = Field(default=None, description="Which part of a card it is, null for a whole one.")
    verdict: BootVerdict | None = Field(default=None, description="Of the last backend tested on it; null before.")
    reason: str = Field(default="", description="Why it did not pass.")
    seconds: float | None = None
    cases: int = Field(default=0, description="Cases that ran.")
    worst: float | None = Field(default=None, description="The largest error of a case as a share of its bound; over 1 fails.")
    left_out: bool = Field(default=False, description="Hidden from the engine, as the profile's on_bad_device says.")
    health: Health | None = Field(default=None, description="Its state before the self-test; null where it was not asked.")
    findings: list[str] = Field(default=[], description="What is wrong with that state, in sentences.")


class KernelCounts(_Model):
    """How many kernels were precompiled in the image, and how many the self-test had to compile (of several devices the most
    on any). null where unknown."""

    baked: int | None = None
    jit_compiles: int | None = None


class Completion(_Model):
    """The one completion requested from the engine before it counts as ready."""

    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float
    tokens_per_s: float | None


class ServedLayers(_Model):
    """Attention layers of one kind, as a worker of the engine built them."""

    count: int = Field(description="Layers of one rank.")
    role: str = Field(description="decoder, encoder, cross, vision or audio.")
    layer: str = Field(description="Heads of one rank, sizes, dtypes and features, in words.")
    layer_class: str = Field(description="The engine's class of the layer.")
    backend: str | None = Field(description="The name of what computes it; null where the layer does not say.")
    implementation: list[str] = Field(default=[], description="The classes that compute it, as paths.")
    ranks: list[int] = Field(description="The ranks that hold such layers, numbered through all replicas.")
    validated: bool = Field(description="Whether a self-test covered this kind of layer on this implementation.")


class EngineReport(_Model):
    """The supervised engine."""

    command: list[str] = Field(description="As it was given.")
    argv: list[str] = Field(description="As it was started.")
    env: dict[str, str] = Field(description="Variables that attnkit added, not the whole environment.")
    name: str | None = Field(default=None, description="vllm where it was recognised.")
    version: str | None = None
    backend_flag: list[str] = Field(default=[], description="The arguments or NAME=VALUE that carry the backend's choice.")
    own_backend: str | None = Field(
        default=None, description="The engine's own attention backend where it cannot be told to use the validated one."
    )
    running_backend: str | None = Field(
        default=None, description="The attention backend that the engine's own log names; null where it was not checked."
    )
    layers: list[ServedLayers] | None = Field(
        default=None, description="What its workers say that they built; null where none said anything."
    )
    notes: list[str] = []
    health_url: str | None = None
    health_seconds: float | None = None
    completion: Completion | None = None
    exit_code: int | None = Field(default=None, description="Its own exit code; null while it runs.")
    last_output: list[str] = Field(default=[], description="Last lines of its output where it died.")


class BootSeconds(_Model):
    """Wall time of each step; null where it was not reached."""

    detect: float | None = None
    select: float | None = None
    selftest: float | None = None
    engine: float | None = None
    total: float | None = None


class End(_Model):
    """How the boot ended, or that it serves, as one acts on it."""

    kind: EndKind = Field(description="validated: passed, and no engine was asked for; serving; stopped on request; failed.")
    headline: str = Field(description="The boot's end, and what became of the self-test, in one line.")
    reason: str = Field(default="", description="Why, in one line; empty where nothing is wrong.")
    next_step: str = Field(default="", description="What to do about it; empty where nothing is wrong.")


class Result(_Model):
    """What the self-test of what serves came to for one kind of attention layer, on every device."""

    name: str = Field(description="The layer's requirement, in words.")
    outcome: Outcome
    cases: int = Field(description="Cases that ran.")
    worst: float | None = Field(default=None, description="The largest error of a case as a share of its bound; over 1 fails.")


class Levels(_Model):
    """How thorough the self-test was, and how thorough the node's profile wants it."""

    ran: str
    profile: str
    enough: bool = Field(description="False where it was less thorough than the profile says.")


class BootReport(_Model):
    """The whole boot of one node."""

    schema_version: Literal[2] = SCHEMA_VERSION
    attnkit_version: str
    created: str = Field(description="RFC 3339, UTC.")
    host: dict[str, str]
    node_type: str | None
    node_type_source: Literal["detected", "given"]
    node_type_why: str = ""
    detection: Detection
    need: NeedReport | None = None
    decision: DecisionReport | None = None
    devices: list[DeviceReport] = Field(default=[], description="Every device that was to serve, as a process numbers them.")
    selftest: list[Verdict] = []
    collective: CollectiveResult | None = Field(
        default=None, description="The collective check, where several devices serve one model together."
    )
    verdict: BootVerdict = "skipped"
    backend: str | None = Field(default=None, description="The backend that serves, or null.")
    provider: str | None = None
    fallbacks: list[Fallback] = []
    kernels: KernelCounts = KernelCounts()
    engine: EngineReport | None = None
    boot_seconds: BootSeconds = BootSeconds()
    planted_fault: str | None = Field(default=None, description="A fault injected through the debug switch.")
    planted_answer: str | None = Field(
        default=None, description="The simulated device's behavior, set through the debug switch; no kernel ran."
    )
    error: str | None = Field(default=None, description="Why the boot ended, where it did.")
    end: End | None = Field(default=None, description="null while the boot is neither over nor serving.")
    versions: dict[str, str] = Field(default={}, description="Of attnkit, Python, what backends use, the driver, the engine.")
    levels: Levels | None = None
    layer_kinds: list[Result] = Field(default=[], description="The self-test of what serves by kind of attention layer.")
    proof_key: str | None = Field(
        default=None, description="SHA-256 of what the verdict depends on: devices, driver, versions, requirements, level."
    )
    exit_code: int | None = Field(default=None, description="null while the boot is not over and while the engine serves.")

    def text(self, redactor: Redactor | None = None) -> str:
        """The document without secrets, indented, with a newline at its end."""
        return to_json((redactor or Redactor()).plain(to_plain(self.model_dump()))) + "\n"

    def summarise(self) -> None:
        """Fill in what follows from the verdicts of the candidate tested last, of the towers, and of what else serves:
        `layer_kinds`, and the cases of each device."""
        served = {f"{PREFIX}{row.backend}" for row in (self.engine and self.engine.layers) or () if row.validated}
        tested = [verdict.backend for verdict in self.selftest]
        towers = {backend for backend in tested if backend.startswith(PREFIX + TOWER)}
        served |= towers | set([backend for backend in tested if backend not in towers][-1:])
        verdicts = [verdict for verdict in self.selftest if verdict.backend in served]
        for row in self.devices:
            found = _results([v for v in verdicts if v.device_index == row.index], lambda verdict: verdict.device)
            row.cases, row.worst = (found[0].cases, found[0].worst) if found else (0, None)
        self.layer_kinds = _results(verdicts, lambda verdict: verdict.layer)


def _results(verdicts: list[Verdict], name: Callable[[Verdict], str]) -> list[Result]:
    found = []
    for key in dict.fromkeys(name(verdict) for verdict in verdicts if name(verdict)):
        cases = [case for verdict in verdicts if name(verdict) == key for case in verdict.cases if case.outcome != "skipped"]
        worst = max((share for case in cases if (share := case.error_share) is not None), default=None)
        outcome = roll_up(verdict.outcome for verdict in verdicts if name(verdict) == key)
        found.append(Result(name=key, outcome=outcome, cases=len(cases), worst=worst))
    return found


class Readiness(_Model):
    """The readiness file: what a health check and a load balancer look at."""

    state: State
    verdict: BootVerdict | None = Field(description="Of the self-test; the state is what counts.")
    backend: str | None
    since: str
    pid: int | None = Field(default=None, description="Of boot, in its own container.")
    heartbeat: str | None = Field(default=None, description="When boot last said that it lives, RFC 3339.")
    headline: str = ""

    def text(self) -> str:
        """One line of JSON; a health check may grep for `"state": "ready"`."""
        return json.dumps(self.model_dump()) + "\n"


def load_report(path: Path) -> BootReport:
    """Read a boot report.

    Raises:
        UsageError: not readable, not JSON, or not one of ours; the message says which field is wrong and where.
    """
    try:
        data = read_json(path)
    except UsageError as error:
        raise UsageError(f"cannot read report {error}", "`attnkit boot` writes it where --report says") from None
    return parse_report(data, str(path))


def parse_report(data: Any, source: str) -> BootReport:
    """A report from its document, of this schema or of version 1.

    Raises:
        UsageError: none of ours; the message says which field is wrong.
    """
    if not isinstance(data, dict) or "schema_version" not in data or "attnkit_version" not in data:
        raise UsageError(
            f"{source}: not an attnkit boot report: it has no schema_version and attnkit_version. "
            "`attnkit boot` writes one where --report says"
        )
    version = data["schema_version"]
    if version not in READ or isinstance(version, bool | float):
        raise UsageError(
            f"{source}: schema_version is {shorten(repr(version))}; this attnkit reads {READ[0]} and {READ[1]}: "
            "use the one that wrote it"
        )
    try:
        report = BootReport.model_validate({**data, "schema_version": SCHEMA_VERSION})
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:10]]
        more = error.error_count() - len(lines)
        tail = [f"  and {more} more"] if more > 0 else []
        raise UsageError("\n".join([f"{source}: not a valid boot report:", *lines, *tail])) from None
    if version == 1:
        report.summarise()
        report.end = end_of_version_1(report)
    return report


def end_of_version_1(report: BootReport) -> End | None:
    """What version 1 did not say: its exit code was 0 from the engine's start on."""
    if report.error is None and report.verdict not in ("pass", "planted"):
        return None if report.exit_code is None else End(kind="failed", headline=f"self-test: {report.verdict}")
    if report.error is not None:
        return End(kind="failed", headline=f"boot failed; self-test: {report.verdict}", reason=report.error)
    if report.engine is None:
        return End(kind="validated", headline=f"{report.backend}: self-test {report.verdict}")
    stopped = report.engine.exit_code is not None
    return End(kind="stopped" if stopped else "serving", headline=f"{report.backend}: self-test {report.verdict}")


def from_the_future(created: str, now: datetime) -> bool:
    """Whether a report says that it was made later than clocks differ; one without a time is too."""
    try:
        made = datetime.fromisoformat(created.replace("Z", "+00:00"))
        return made - now > FUTURE
    except (ValueError, TypeError, OverflowError):
        return True


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `BootReport`, as published at docs/report.schema.json."""
    schema = BootReport.model_json_schema(mode="serialization", by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The published file's text."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
