"""Controller only: the variables of every host of the play, checked before a node is asked anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

try:
    from ansible._internal._datatag._tags import Origin
except ImportError:  # private to ansible-core; without it the messages name the host in place of file and line
    Origin = None

try:
    from ansible_collections.attnkit.fleet.plugins.module_utils import variables
    from ansible_collections.attnkit.fleet.plugins.plugin_utils.trust import refuse_injected_facts
    from ansible_collections.attnkit.fleet.plugins.plugin_utils.values import plain
except ImportError as missing:
    raise AnsibleActionFail(
        f"attnkit is not installed for the Python that runs Ansible ({missing}); install it there: pip install attnkit"
    ) from missing

COLLECTION = str(Path(__file__).resolve().parents[2])


def stated(variables_of_host: Mapping[str, Any], path: tuple[str, ...], host: str) -> str:
    """Where the innermost part of a value is stated that says so: file and line, option, or the host."""
    found = f"host {host}"
    inner: Any = variables_of_host
    for part in path:
        if isinstance(inner, Mapping):
            key = next((key for key in inner if str(key) == part), part)
            inner = inner.get(key)
        elif isinstance(inner, (list, tuple)):
            key, inner = part, inner[int(part)]
        else:
            break
        origin = Origin and (Origin.get_tag(key) or Origin.get_tag(inner))
        if origin:
            found = f"{origin.path}:{origin.line_num}" if origin.path else str(origin.description)
    return found


def host_problems(hostvars: Any, host: str) -> list[variables.Problem]:
    """What is wrong with the variables of one host; those that a role of the collection has left are not looked at."""
    raw, given, failed = hostvars.raw_get(host), {}, []
    for name in map(str, raw):
        where = stated(raw, (name,), host)
        if not name.startswith(variables.PREFIX) or where.startswith(COLLECTION):
            continue
        try:
            given[name] = plain(hostvars[host][name])
        except AnsibleError as error:
            failed.append(variables.Problem(where, name, f"cannot be evaluated: {error}"))
    return failed + variables.check(given, lambda path: stated(raw, path, host))


class ActionModule(ActionBase):
    """Checks; changes nothing and asks no node."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Failed with every problem on a line of `msg`."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        shared = task_vars or {}
        refuse_injected_facts()
        hosts = shared.get("groups", {}).get(str(self._task.args.get("group", "attnkit")), [])
        if not hosts:
            msg = "the inventory has no host in the group attnkit; put the nodes under it (inventories/example shows how)"
            return {**result, "failed": True, "msg": msg}
        found: dict[str, None] = {}
        for host in hosts:
            found |= {str(problem): None for problem in sorted(host_problems(shared["hostvars"], host))}
        if found:
            head = f"{len(found)} variable{'s' if len(found) > 1 else ''} of the inventory cannot be used"
            return {**result, "failed": True, "msg": "\n".join([head, *found])}
        return {**result, "changed": False, "hosts": list(hosts)}
