"""Ansible's output for whoever runs a fleet: warnings as plain text, an end that names every node that needs a hand."""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils.display import Display
from ansible_collections.attnkit.fleet.plugins.module_utils.wording import printable

DOCUMENTATION = r"""
name: operator
type: stdout
short_description: Ansible's default output, safe against what nodes say, with a table of the nodes that need a hand
version_added: 0.2.0
description:
  - Control characters in warnings and errors of a node are shown and not sent to the terminal.
  - A run after which a node does not serve, or did not answer, ends with a line for each of these nodes and the next command,
    whatever ended the run.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

OUTCOME = "attnkit_outcome"


class _Printable:
    """The display, with what came from a node made printable."""

    def __init__(self, display: Any) -> None:
        self._display = display

    def __getattr__(self, name: str) -> Any:
        return getattr(self._display, name)

    def _warning(self, warning: Any) -> None:
        Display._warning(_PrintableText(self._display), warning)

    def _deprecated(self, warning: Any) -> None:
        Display._deprecated(_PrintableText(self._display), warning)

    def _error(self, error: Any, stderr: bool) -> None:
        Display._error(_PrintableText(self._display), error, stderr=stderr)


class _PrintableText(_Printable):
    def display(self, msg: str, *args: Any, **options: Any) -> None:
        self._display.display(printable(msg, keep="\n\t"), *args, **options)


class CallbackModule(Default):  # type: ignore[misc]
    """Default output, and the end of a run as its operator needs it."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "attnkit.fleet.operator"

    def __init__(self) -> None:
        super().__init__()
        self._display: Any = _Printable(Display())
        self._reasons: dict[str, str] = {}
        self._seen = False

    def v2_runner_on_ok(self, result: Any) -> None:
        """Keep the outcome of a node."""
        outcome = (result.result.get("ansible_facts") or {}).get(OUTCOME) if result.task.action.endswith("set_fact") else None
        if isinstance(outcome, dict):
            self._seen = True
            host = result.host.get_name()
            self._reasons.pop(host, None)
            if not outcome.get("ok"):
                back = f" | reverted: {outcome['went_back']}" if outcome.get("went_back") else ""
                self._reasons[host] = f"{outcome.get('reason')}{back}"
        super().v2_runner_on_ok(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Keep that it did not answer."""
        self._reasons[result.host.get_name()] = f"no answer: {result.result.get('msg')}"
        super().v2_runner_on_unreachable(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """After Ansible's own: the nodes that need a hand, whatever ended the run."""
        super().v2_playbook_on_stats(stats)
        if not self._reasons:
            return
        self._display.banner("NODES THAT NEED A HAND")
        for host, reason in self._reasons.items():
            self._display.display(f"{host}: {printable(reason)}")
            down = reason.startswith("no answer")
            self._display.display(f"    next: {f'ansible {host} -m ansible.builtin.ping' if down else self._look(host)}")
        if untouched := sorted(set(stats.processed) - set(self._reasons) - {"localhost"}):
            self._display.display(f"all others: {', '.join(untouched)}")

    def _look(self, host: str) -> str:
        log = f"ansible {host} -b -m ansible.builtin.command -a 'docker logs --tail 50 attnkit'"
        return f"{log}, then this playbook with -l {host}"
