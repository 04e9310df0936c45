"""The boot report as one self-contained HTML page."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from attnkit.boot.report import BootReport
from attnkit.wording import MARKS, health_text, memory_text, number, printable, spec_text


def render_html(report: BootReport) -> str:
    """The page: no script, no font or image from elsewhere; everything that came from outside is escaped."""
    environment = Environment(
        loader=PackageLoader("attnkit", "data"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {"number": number, "memory": memory_text, "spec": spec_text, "health": health_text}
    return environment.get_template("report.html.jinja").render(report=report, marks=MARKS)
