"""A boot report as JUnit XML, which CI systems show: a suite for each verdict, a case for each case, and the boot itself."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as xml

from attnkit.wording import printable

if TYPE_CHECKING:
    from attnkit.boot.report import BootReport
    from attnkit.selftest.results import CaseResult


def junit_text(report: BootReport) -> str:
    """The document, UTF-8 with its declaration."""
    root = xml.Element("testsuites", name=f"attnkit on {report.host.get('hostname', 'unknown host')}")
    boot = xml.SubElement(root, "testsuite", name="boot", timestamp=report.created)
    ended = xml.SubElement(boot, "testcase", classname="boot", name="end", time=f"{report.boot_seconds.total or 0:.3f}")
    end = report.end
    if end is None:
        xml.SubElement(ended, "skipped", message="the boot is not over")
    elif end.kind == "failed":
        said = xml.SubElement(ended, "failure", message=printable(end.headline))
        said.text = printable("\n".join(filter(None, (report.error, end.next_step))))
    _count(boot)
    for verdict in report.selftest:
        name = f"{verdict.backend} through {verdict.provider} on {verdict.device}" + (
            f", {verdict.layer}" if verdict.layer else ""
        )
        suite = xml.SubElement(root, "testsuite", name=printable(name), time=f"{verdict.seconds:.3f}")
        for case in verdict.cases:
            _case(suite, verdict.backend, case)
        _count(suite)
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _case(suite: xml.Element, backend: str, case: CaseResult) -> None:
    made = xml.SubElement(suite, "testcase", classname=backend, name=printable(case.case), time=f"{case.seconds:.3f}")
    kind = {"fail": "failure", "inconclusive": "error", "skipped": "skipped"}.get(case.outcome)
    if kind is not None:
        xml.SubElement(made, kind, message=printable(case.reason)).text = printable(case.guards)


def _count(suite: xml.Element) -> None:
    suite.set("tests", str(len(suite)))
    for attribute, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(kind) is not None for case in suite)))
