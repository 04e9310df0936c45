"""Ansible's output for whoever runs a fleet: the plan, a line a node when its state changes, a table and what to do next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from typing import Any

from ansible import context
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils.display import Display
from ansible_collections.attnkit.fleet.plugins.module_utils.wording import elapsed, printable

DOCUMENTATION = r"""
name: operator
type: stdout
short_description: What the operator of a fleet needs to see of a run, safe against what nodes say
version_added: 0.2.0
description:
  - Shows the plan of a run (M(attnkit.fleet.attnkit_plan)), then a line for a node when its state changes, and at the end
    a table with every node of the plan.
  - A run after which a node does not serve, or did not answer, ends with a line for each of these nodes and the next command,
    whatever ended the run.
  - Tasks are not shown one by one, only failures and messages. O(show_tasks) or C(-v) shows all of them, as Ansible's
    default does.
  - Control characters in warnings and errors of a node are shown and not sent to the terminal.
options:
  show_tasks:
    description: Show every task and its result, too.
    type: bool
    default: false
    ini:
      - section: callback_operator
        key: show_tasks
    env:
      - name: ATTNKIT_FLEET_SHOW_TASKS
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

OUTCOME = "attnkit_outcome"
PLAN = "attnkit.fleet.attnkit_plan"
STARTED = "attnkit_service"
MAX_REASON = 160
"""Of a line while nodes change; the end of the run shows all of it."""
COLUMNS = {
    "node": "wrap", "type": "wrap", "result": "wrap", "backend": "wrap", "boot s": "right", "tokens/s": "right",
    "after": "right",
}  # fmt: skip


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
    """The output of a run as its operator needs it."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "attnkit.fleet.operator"

    def __init__(self) -> None:
        super().__init__()
        self._display: Any = _Printable(Display())
        self._reasons: dict[str, str] = {}
        self._steps: dict[str, str] = {}
        self._objects = False
        self._began = 0.0
        self._states: dict[str, str] = {}
        self._reverting: set[str] = set()
        self._ends: dict[str, tuple[str, float, Mapping[str, Any]]] = {}

    @property
    def _brief(self) -> bool:
        return self._display.verbosity == 0 and not self.get_option("show_tasks")

    @property
    def _rolling(self) -> bool:
        """Between the plan and the end, and not in check mode, where nothing changes its state."""
        return bool(self._steps) and not self._objects and not context.CLIARGS.get("check")

    def _task_start(self, task: Any, prefix: str | None = None) -> None:
        if not self._brief:
            super()._task_start(task, prefix)
            return
        # A heading comes with what is shown below it.
        self._task_type_cache[task._uuid] = prefix or "TASK"
        self._last_task_name = task.get_name().strip()

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Nothing that an operator needs."""
        if not self._brief:
            super().v2_playbook_on_include(included_file)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Follow the state of a node."""
        if result.task.action == PLAN:
            self._plan(result)
            return
        self._follow(result)
        if not self._brief or result.result.get("_ansible_verbose_always"):
            super().v2_runner_on_ok(result)
        else:
            self._handle_warnings_and_exception(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Nothing that an operator needs, but for warnings."""
        if self._brief:
            self._handle_warnings_and_exception(result)
        else:
            super().v2_runner_item_on_ok(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A plan with objections; what a role states as a reason comes with the node's state and at the end."""
        if result.task.action == PLAN and "lines" in result.result:
            self._plan(result)
        elif not (self._brief and self._rolling and result.task.action.endswith("assert")):
            super().v2_runner_on_failed(result, ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Keep that it did not answer."""
        host = result.host.get_name()
        self._reasons[host] = f"no answer: {result.result.get('msg')}"
        if not self._brief:
            super().v2_runner_on_unreachable(result)
        if self._rolling:
            self._end(host, "no answer", "no answer", {})
        elif self._brief:
            self._say(host, self._reasons[host])

    def _plan(self, result: Any) -> None:
        said = result.result
        self._steps, self._objects, self._began = dict(said["steps"]), bool(said["objections"]), time.monotonic()
        self._display.display("")
        for line in said["lines"]:
            self._display.display(line)
        for file in said["files"]:
            self._display.display(f"written: {file}")
        if said.get("failed") and not said["objections"]:
            self._display.display(f"stopped: {printable(said['msg'])}")

    def _follow(self, result: Any) -> None:
        """A line if this result changes the state of its node; names of registers and facts are the roles' own."""
        host, said, task = result.host.get_name(), result.result, result.task
        facts = said.get("ansible_facts") if task.action.endswith("set_fact") else None
        facts = facts if isinstance(facts, Mapping) else {}
        if isinstance(outcome := facts.get(OUTCOME), Mapping):
            self._outcome(host, outcome)
        if not self._rolling:
            return
        if facts.get("attnkit_drained_now"):
            self._say(host, "drained")
        elif "attnkit_failure" in facts:
            self._reverting.add(host)
            self._say(host, f"failed: {facts['attnkit_failure']}")
        elif task.register == "attnkit_pulled" and said.get("changed") and host not in self._reverting:
            self._say(host, "image pulled")
        elif task.register == STARTED and said.get("changed"):
            again = host in self._reverting
            self._say(host, "the recorded release started" if again else "service started, self-test under way")

    def _outcome(self, host: str, outcome: Mapping[str, Any]) -> None:
        """How a node ended, in a rollout or when it is only looked at."""
        self._reasons.pop(host, None)
        back = outcome.get("went_back")
        if not outcome.get("ok"):
            self._reasons[host] = f"{outcome.get('reason')}" + (f" | reverted: {back}" if back else "")
        if not self._rolling:
            return
        summary = outcome.get("summary")
        if outcome.get("ok"):
            ended, said = (
                ("serves", "self-test passed, serving") if host in self._states else ("unchanged", "unchanged, serving")
            )
        else:
            ended = "reverted" if str(back).startswith("yes, and") else "does not serve"
            said = "reverted, serves again" if ended == "reverted" else ended
        self._end(host, ended, said, summary if isinstance(summary, Mapping) else {})

    def _say(self, host: str, state: str) -> None:
        if self._states.get(host) != state:
            self._states[host] = state
            text = printable(state)
            text = text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}…"
            self._display.display(f"{printable(host)}  {text}")

    def _end(self, host: str, ended: str, said: str, summary: Mapping[str, Any]) -> None:
        after = time.monotonic() - self._began
        self._ends[host] = (ended, after, summary)
        self._say(host, f"{said}  ({len(self._ends)} of {len(self._steps)}, {elapsed(after)})")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """After Ansible's own: every node of the plan, and those that need a hand, whatever ended the run."""
        super().v2_playbook_on_stats(stats)
        if self._steps and context.CLIARGS.get("check"):
            self._display.display("--check: nothing was changed")
        elif self._steps and self._objects:
            self._display.display("nothing was changed; once the objections are gone, run the same again")
        elif self._steps:
            for line in self._table():
                self._display.display(line)
            self._display.display("")
        if not self._reasons:
            return
        self._display.banner("NODES THAT NEED A HAND")
        for host, reason in self._reasons.items():
            self._display.display(f"{host}: {printable(reason)}")
            down = reason.startswith("no answer")
            self._display.display(f"    next: {self._ansible(host, 'ansible.builtin.ping') if down else self._look(host)}")
        if untouched := sorted(set(stats.processed) - set(self._reasons) - {"localhost"}):
            self._display.display(f"all others: {', '.join(untouched)}")

    def _table(self) -> list[str]:
        from ansible_collections.attnkit.fleet.plugins.filter.fleet import checked_summary
        from ansible_collections.attnkit.fleet.plugins.plugin_utils import terminal

        rows = []
        for host in self._steps:
            word, after, said = self._ends.get(host, (self._states.get(host, "untouched"), None, {}))
            summary = checked_summary(said)
            numbers = (summary.get("boot_seconds"), summary.get("tokens_per_s"))
            rows.append(
                (
                    printable(host),
                    summary.get("node_type") or "-",
                    word,
                    summary.get("backend") or "-",
                    *("-" if number is None else f"{number:.1f}" for number in numbers),
                    "-" if after is None else elapsed(after),
                )
            )
        return terminal.table(rows, COLUMNS, max(self._display.columns, terminal.WIDTH))

    def _ansible(self, host: str, module: str, *more: str) -> str:
        inventories = [word for source in context.CLIARGS.get("inventory") or () for word in ("-i", source)]
        return shlex.join(["ansible", *inventories, host, *more, "-m", module])

    def _look(self, host: str) -> str:
        log = self._ansible(host, "ansible.builtin.command", "-b", "-a", "docker logs --tail 50 attnkit")
        return f"{log}, then this playbook with -l {host}"
