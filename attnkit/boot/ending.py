"""The boot's end in one line, with the reason and the next step: what a person on call reads first."""

from __future__ import annotations

import re

from attnkit.boot.report import BootReport, End, EndKind
from attnkit.errors import EXIT_INCONCLUSIVE, EXIT_INTERNAL, EXIT_NO_BACKEND, EXIT_USAGE

_LAST_OUTPUT: tuple[tuple[str, str], ...] = (
    (
        r"CUDA out of memory|OutOfMemoryError|out of memory",
        "free the device, or lower --max-model-len",
    ),
    (r"No available memory for the cache blocks|KV cache", "lower --max-model-len, or raise --gpu-memory-utilization"),
    (r"[Aa]ddress already in use", "free the port, or give the engine another one (--port)"),
    (
        r"driver.{0,40}(too old|insufficient)|CUDA driver version",
        "update the driver, or use an image for it",
    ),
    (r"401|403|[Gg]ated|[Uu]nauthorized", "give the engine a token that may read the model (HF_TOKEN)"),
    (r"[Nn]o such file|does not exist|not found", "check the model's path inside the container"),
    (r"No space left on device", "free disk space, or mount a larger volume"),
    (r"unrecognized arguments|invalid choice", "correct the engine's options; its version is in the report"),
)
"""What engines say before they end, and what helps."""


def one_line(text: str, length: int = 300) -> str:
    """The first line that says something, shortened."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= length else line[: length - 1] + "…"


def self_test_text(report: BootReport) -> str:
    """What became of the self-test, in words."""
    return {
        "pass": "self-test passed",
        "fail": "self-test failed",
        "inconclusive": "self-test inconclusive",
        "skipped": "no self-test ran",
        "planted": "simulated device, no kernel ran",
    }[report.verdict]


def good_end(report: BootReport, kind: EndKind) -> End:
    """Nothing is wrong: what serves, or served."""
    does = {"validated": "validated, no engine asked for", "serving": "serving", "stopped": "stopped on request"}[kind]
    return End(kind=kind, headline=f"{report.backend or 'no backend'}: {does}; {self_test_text(report)}")


def failed_end(report: BootReport, what: str, reason: str, next_step: str, code: int | None) -> End:
    """The boot failed.

    Args:
        what: in a few words ("engine did not start").
        reason: the error.
        next_step: what helps, where who raised the error knows it; else it follows from the rest.
        code: boot's exit code.
    """
    tested = self_test_text(report)
    headline = what if tested == what else f"{what}; {tested}"
    return End(kind="failed", headline=headline, reason=one_line(reason), next_step=next_step or _next_step(report, code))


def _next_step(report: BootReport, code: int | None) -> str:
    engine = report.engine
    if engine is not None and engine.exit_code is not None:
        said = "\n".join(engine.last_output)
        found = next((advice for pattern, advice in _LAST_OUTPUT if re.search(pattern, said)), None)
        return found or "read the engine's last lines in this report; `docker logs` has the rest"
    if code == EXIT_USAGE:
        return "correct the option or file that the reason names"
    if code == EXIT_NO_BACKEND:
        return "`attnkit select` shows every reason; use the image of this device's platform, or another backend"
    if code == EXIT_INCONCLUSIVE:
        return "free the device and boot again; a slow machine needs a larger ATTNKIT_SELFTEST_TIMEOUT"
    if code == EXIT_INTERNAL:
        return "if it happens again, report it with this file"
    if report.verdict == "fail":
        failed = report.selftest[-1].backend if report.selftest else "NAME"
        return f"take the node out of service; `attnkit selftest --backend {failed} --level extended` on it shows more"
    return "boot again; if it happens again, report it with this file"
