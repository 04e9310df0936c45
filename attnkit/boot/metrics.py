"""Prometheus text made from a boot report, for node_exporter's textfile collector."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from attnkit.boot.report import BootReport
from attnkit.selftest.results import OUTCOMES


def render_metrics(report: BootReport, *, ready: bool = False) -> str:
    """The exposition text.

    Args:
        report: the boot report, complete or not.
        ready: whether the engine serves now.
    """
    registry = CollectorRegistry()

    def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=registry)

    verdict = gauge("attnkit_verdict", "Outcome of the boot self-test: 1 for the outcome that holds.", ("outcome",))
    for outcome in OUTCOMES:
        verdict.labels(outcome).set(report.verdict == outcome)
    gauge("attnkit_ready", "1 while the engine serves.").set(ready)
    good = report.end is not None and report.end.kind != "failed"
    gauge("attnkit_boot_ok", "1 where the boot serves, validated, or was stopped on request; else 0.").set(good)
    if report.exit_code is not None:
        gauge("attnkit_boot_exit_code", "Exit code of the boot; absent while it is not over.").set(report.exit_code)
    gauge("attnkit_planted_fault", "1 where a fault was injected for debugging.").set(report.planted_fault is not None)
    gauge("attnkit_planted_answer", "1 where the device was simulated: no kernel ran.").set(report.planted_answer is not None)
    gauge("attnkit_fallbacks", "Backends that were tried before the one that serves.").set(len(report.fallbacks))
    gauge("attnkit_backend_info", "The backend that serves.", ("backend", "provider", "node_type", "arch", "version")).labels(
        report.backend or "",
        report.provider or "",
        report.node_type or "",
        report.decision.device.arch if report.decision else "",
        report.attnkit_version,
    ).set(report.backend is not None)
    seconds = gauge("attnkit_boot_seconds", "Wall time of the boot's steps.", ("step",))
    for step, value in report.boot_seconds.model_dump().items():
        if value is not None:
            seconds.labels(step).set(value)
    _cases(report, registry)
    _engine(report, registry)
    return generate_latest(registry).decode()


def _cases(report: BootReport, registry: CollectorRegistry) -> None:
    labels = ("backend", "device", "case")
    ratio = Gauge(
        "attnkit_selftest_case_error_ratio", "Largest error over its bound; above 1 fails.", labels, registry=registry
    )
    counted = Gauge(
        "attnkit_selftest_cases", "Self-test cases by outcome.", ("backend", "device", "outcome"), registry=registry
    )
    for verdict in report.selftest:
        for outcome in OUTCOMES:
            counted.labels(verdict.backend, verdict.device, outcome).inc(sum(c.outcome == outcome for c in verdict.cases))
        for case in verdict.cases:
            if case.error_share is not None:
                ratio.labels(verdict.backend, verdict.device, case.case).set(case.error_share)


def _engine(report: BootReport, registry: CollectorRegistry) -> None:
    if report.engine is None:
        return
    Gauge("attnkit_engine_info", "The engine.", ("name", "version"), registry=registry).labels(
        report.engine.name or "", report.engine.version or ""
    ).set(1)
    if report.engine.health_seconds is not None:
        Gauge("attnkit_engine_health_seconds", "From the engine's start to its first healthy answer.", registry=registry).set(
            report.engine.health_seconds
        )
    completion = report.engine.completion
    if completion is not None and completion.tokens_per_s is not None:
        Gauge("attnkit_engine_completion_tokens_per_second", "Of the one completion requested at boot.", registry=registry).set(
            completion.tokens_per_s
        )
