"""The boot report: one JSON document, its schema and its file.

The readiness file, the Prometheus text and the HTML page are made from it. `python -m attnkit.boot.report` prints the JSON
Schema that is published at docs/report.schema.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attnkit.backends.base import Accepted, Rejected
from attnkit.errors import UsageError
from attnkit.hardware.device import Detection, Device
from attnkit.hardware.health import Health
from attnkit.isolation.collective import CollectiveResult
from attnkit.jsonio import to_plain
from attnkit.select.choose import Decision
from attnkit.selftest.results import Outcome, Verdict
from attnkit.spec import AttentionSpec, Dtype, Feature, KvCacheDtype, Op, Phase

SCHEMA_VERSION: Literal[1] = 1
BootVerdict: TypeAlias = Outcome | Literal["planted"]
"""The boot's verdict: an outcome of the self-test, or "planted" where the device was simulated and no kernel ran."""
State = Literal["starting", "selftest", "engine-starting", "ready", "failed"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


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

    model_config = ConfigDict(extra="forbid", populate_by_name=True, serialize_by_alias=True)

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
    notes: list[str] = []
    health_url: str | None = None
    health_seconds: float | None = None
    completion: Completion | None = None
    exit_code: int | None = None
    last_output: list[str] = Field(default=[], description="Last lines of its output where it died.")


class BootSeconds(_Model):
    """Wall time of each step; null where it was not reached."""

    detect: float | None = None
    select: float | None = None
    selftest: float | None = None
    engine: float | None = None
    total: float | None = None


class BootReport(_Model):
    """The whole boot of one node."""

    schema_version: Literal[1] = SCHEMA_VERSION
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
    exit_code: int | None = Field(default=None, description="null while the boot is not over and while the engine serves.")

    def text(self) -> str:
        """The document, indented, with a newline at its end."""
        return self.model_dump_json(indent=2) + "\n"


class Readiness(_Model):
    """The readiness file: what a health check and a load balancer look at."""

    state: State
    verdict: BootVerdict | None
    backend: str | None
    since: str

    def text(self) -> str:
        """One line of JSON; a health check may grep for `"state": "ready"`."""
        return json.dumps(self.model_dump()) + "\n"


def load_report(path: Path) -> BootReport:
    """Read a boot report.

    Raises:
        UsageError: not readable, not JSON, or not one of ours; the message says which field is wrong and where.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"cannot read report {path}: {reason}. `attnkit boot` writes it where --report says") from None
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from None
    if not isinstance(data, dict) or "schema_version" not in data or "attnkit_version" not in data:
        raise UsageError(
            f"{path}: not an attnkit boot report: it has no schema_version and attnkit_version. "
            "`attnkit boot` writes one where --report says"
        )
    if data["schema_version"] != SCHEMA_VERSION:
        version = data["schema_version"]
        raise UsageError(
            f"{path}: schema_version is {version!r}; this attnkit reads {SCHEMA_VERSION}: use the one that wrote it"
        )
    try:
        return BootReport.model_validate(data)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:10]]
        more = error.error_count() - len(lines)
        tail = [f"  and {more} more"] if more > 0 else []
        raise UsageError("\n".join([f"{path}: not a valid boot report:", *lines, *tail])) from None


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `BootReport`, as published at docs/report.schema.json."""
    schema = BootReport.model_json_schema(mode="serialization", by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The published file's text."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
