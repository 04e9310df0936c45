"""Controller side of attnkit_lock: names the process that takes the lock, and takes over a lock whose process has ended."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.attnkit.fleet.plugins.plugin_utils.trust import refuse_injected_facts


def started(pid: int) -> str:
    """When a process of this computer began, as ps shows it; empty if there is none."""
    done = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    return " ".join(done.stdout.split())


def this_run() -> dict[str, Any]:
    """The computer and the process that run the playbook: tasks run in children of it."""
    pid = os.getppid()
    return {"computer": platform.node(), "pid": pid, "started": started(pid)}


def has_ended(run: Mapping[str, Any] | None) -> bool:
    """Whether a run of this computer is over. False if it is of another computer, whose processes cannot be seen from here."""
    if not run or run.get("computer") != platform.node() or not run.get("started"):
        return False
    return bool(started(int(run["pid"])) != run["started"])


class ActionModule(ActionBase):
    """Runs the module; once more if the lock is left over."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The module's result."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        refuse_injected_facts()
        args = {**self._task.args, "run": this_run()}
        answer = self._execute_module(module_name="attnkit.fleet.attnkit_lock", module_args=args, task_vars=task_vars)
        if answer.get("failed") and has_ended(answer.get("holding_run")):
            args["steal"] = True
            answer = self._execute_module(module_name="attnkit.fleet.attnkit_lock", module_args=args, task_vars=task_vars)
        result.update(answer)
        return result
