"""The boot report: its file, its schema, the page and the metrics made from it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families

from attnkit.backends.base import Accepted, Reason, Rejected
from attnkit.boot.metrics import render_metrics
from attnkit.boot.report import (
    BootReport,
    BootSeconds,
    Completion,
    DecisionReport,
    DeviceReport,
    EngineReport,
    Fallback,
    NeedReport,
    SpecReport,
    json_schema,
    load_report,
    schema_text,
)
from attnkit.cli.report_page import render_html
from attnkit.errors import UsageError
from attnkit.hardware.device import Detection, Device, ProbeResult
from attnkit.hardware.health import Health
from attnkit.isolation.collective import CollectiveCheck, CollectiveResult
from attnkit.jsonio import write_atomically
from attnkit.select.choose import Decision
from attnkit.selftest.results import CaseResult, Verdict
from attnkit.spec import AttentionSpec

CPU = Device(
    vendor="cpu", kind="cpu", name="A <b>CPU</b>", arch="x86_64", memory_bytes=2**34, features=("avx2",), source="cpuinfo"
)


def made_report() -> BootReport:
    """A report in which every part is filled in."""
    spec = AttentionSpec(features=frozenset({"window", "sinks"}))
    decision = Decision(
        device=CPU,
        spec=spec,
        accepted=(Accepted("TORCH_SDPA", "torch", "runs everywhere"),),
        rejected=(Rejected("FLASH_ATTN", (Reason("device", "runs on nvidia, not on cpu"),)),),
        explicit=None,
        order=("FLEX_ATTENTION", "TORCH_SDPA"),
        order_source="profile cpu",
        warnings=("workload text set aside",),
    )
    failed = CaseResult("decode", "the scale", "fail", "error 2.0 over 1.0", "flex", 2.0, 1.0, 0.5, 1.0)
    passed = CaseResult("decode", "the scale", "pass", "", "sdpa", 0.25, 1.0, 0.1, 0.2, 0.3, 0.4)
    return BootReport(
        attnkit_version="0.1.0",
        created="2026-01-01T00:00:00Z",
        host={"hostname": "node-1"},
        node_type="cpu",
        devices=[
            DeviceReport(
                index=0,
                name=CPU.name,
                arch=CPU.arch,
                verdict="pass",
                health=Health(memory_used_bytes=2**30, memory_total_bytes=2**34, unread={"power_w": "<i>no meter</i>"}),
                findings=["device 0: <b>hot</b>"],
            ),
            DeviceReport(index=1, name=CPU.name, arch=CPU.arch, verdict="fail", reason="fail: <u>it</u>", left_out=True),
        ],
        collective=CollectiveResult(
            "pass", "gloo", ("rank 0: device 0", "rank 1: device 0"), (CollectiveCheck("all-gather-int32", "pass"),), 2.5e9
        ),
        node_type_source="detected",
        node_type_why="no accelerator",
        detection=Detection((CPU,), (ProbeResult("nvidia", error="no driver"),)),
        need=NeedReport(source="profile cpu", specs=[SpecReport.from_spec(spec)]),
        decision=DecisionReport.from_decision(decision, "this environment"),
        selftest=[
            Verdict("FLEX_ATTENTION", "torch", "CPU (x86_64)", "quick", "fail", (failed,), seconds=1.0),
            Verdict("TORCH_SDPA", "torch", "CPU (x86_64)", "quick", "pass", (passed,), ("long contexts",), 1.0),
        ],
        verdict="pass",
        backend="TORCH_SDPA",
        provider="torch",
        fallbacks=[Fallback.model_validate({"from": "FLEX_ATTENTION", "to": "TORCH_SDPA", "reason": "fail: decode"})],
        engine=EngineReport(
            command=["vllm", "serve"],
            argv=["python", "-m", "vllm"],
            env={"A": "1"},
            name="vllm",
            version="0.32.0",
            health_seconds=3.0,
            completion=Completion(prompt_tokens=3, completion_tokens=32, seconds=0.5, tokens_per_s=64.0),
        ),
        boot_seconds=BootSeconds(detect=0.1, total=9.0),
        exit_code=0,
    )


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, made_report().text())
    assert load_report(path) == made_report()


def test_the_document_satisfies_the_published_schema(repo_root: Path) -> None:
    schema = json.loads((repo_root / "docs" / "report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(made_report().text()))


def test_the_schema_refuses_a_wrong_document() -> None:
    document = json.loads(made_report().text())
    document["verdict"] = "perhaps"
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(document)


def test_the_published_schema_is_fresh(repo_root: Path) -> None:
    published = (repo_root / "docs" / "report.schema.json").read_text()
    assert published == schema_text(), "stale: python -m attnkit.boot.report > docs/report.schema.json"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{\n  oops", r"bad.json:2: not JSON: .*column 3"),
        ("[1, 2]", "not an attnkit boot report: it has no schema_version"),
        ('{"kind": "selftest"}', "not an attnkit boot report"),
        ('{"schema_version": 9, "attnkit_version": "9"}', "schema_version is 9; this attnkit reads 1"),
        ('{"schema_version": 1, "attnkit_version": "1"}', r"(?s)not a valid boot report:.*  created: Field required"),
    ],
)
def test_a_file_that_is_not_ours(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        load_report(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read report .*nothing\.json: No such file"):
        load_report(tmp_path / "nothing.json")


def test_an_atomic_write_leaves_no_scraps_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.json"
    write_atomically(path, "one")
    write_atomically(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_writing_where_a_directory_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"cannot write {tmp_path}: Is a directory"):
        write_atomically(tmp_path, "text")


def test_metrics_parse_and_say_what_the_report_says() -> None:
    families = {f.name: f for f in text_string_to_metric_families(render_metrics(made_report(), ready=True))}

    def value(name: str, **labels: str) -> float:
        return next(s.value for s in families[name].samples if labels.items() <= s.labels.items())

    assert value("attnkit_verdict", outcome="pass") == 1
    assert value("attnkit_verdict", outcome="fail") == 0
    assert value("attnkit_ready") == 1
    assert value("attnkit_backend_info", backend="TORCH_SDPA", provider="torch", node_type="cpu", arch="x86_64") == 1
    assert value("attnkit_selftest_case_error_ratio", backend="FLEX_ATTENTION", case="decode") == 2.0
    assert value("attnkit_selftest_case_error_ratio", backend="TORCH_SDPA", case="decode") == pytest.approx(0.75)
    assert value("attnkit_selftest_cases", backend="FLEX_ATTENTION", outcome="fail") == 1
    assert value("attnkit_boot_seconds", step="total") == 9.0
    assert value("attnkit_engine_completion_tokens_per_second") == 64.0


def test_the_page_stands_alone_and_escapes() -> None:
    page = render_html(made_report())
    found: list[tuple[str, dict[str, str | None]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attrs)))

    Tags().feed(page)
    names = {tag for tag, _ in found}
    assert not names & {"script", "link", "img", "iframe"}
    assert not any("src" in attributes or "href" in attributes for _, attributes in found)
    assert "A &lt;b&gt;CPU&lt;/b&gt;" in page
    assert "<b>CPU</b>" not in page
    for text in ("TORCH_SDPA", "runs on nvidia, not on cpu", "FLEX_ATTENTION → TORCH_SDPA", "64.0 tokens/s", "no driver"):
        assert text in page
