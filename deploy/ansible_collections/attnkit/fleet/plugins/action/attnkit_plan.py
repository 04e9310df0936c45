"""Controller only: the plan of a run from what the nodes said before, on the terminal, as a page and as data."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

try:
    from ansible_collections.attnkit.fleet.plugins.filter.fleet import canaries, finding_rows, rollback_rows
    from ansible_collections.attnkit.fleet.plugins.module_utils.boot_report import part
    from ansible_collections.attnkit.fleet.plugins.modules.attnkit_plan import ARGUMENTS
    from ansible_collections.attnkit.fleet.plugins.plugin_utils import plan
    from ansible_collections.attnkit.fleet.plugins.plugin_utils.pages import render
    from ansible_collections.attnkit.fleet.plugins.plugin_utils.terminal import WIDTH
    from ansible_collections.attnkit.fleet.plugins.plugin_utils.trust import refuse_injected_facts
    from ansible_collections.attnkit.fleet.plugins.plugin_utils.values import plain
except ImportError as missing:
    raise AnsibleActionFail(
        f"attnkit is not installed for the Python that runs Ansible ({missing}); install it there: pip install attnkit"
    ) from missing

FACTS = ("ansible_facts", "attnkit_findings", "attnkit_machine", "attnkit_outcome", "attnkit_proposed", "attnkit_recorded")
SEEN = (*FACTS, *plan.HOOKS)
"""The variables of a host that a plan is made from."""


def host_variables(hostvars: Any, hosts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the plan needs of every host, as Python's own values."""
    return {
        host: {name: plain(hostvars[host][name]) for name in SEEN if name in hostvars[host]}
        for host in hosts
        if host in hostvars
    }


def rollout(seen: Mapping[str, Mapping[str, Any]], hosts: Sequence[str], batches: Sequence[str]) -> dict[str, Any]:
    """Rows and objections of a rollout: one canary a node type, then the rest in batches."""
    answered = [host for host in hosts if seen.get(host, {}).get("attnkit_findings")]
    first = canaries(seen, answered)
    rest = [host for host in answered if host not in first]
    turns = plan.steps(first, rest, batches, len(rest))
    rows = []
    for host in hosts:
        proposed = part(seen.get(host), "attnkit_proposed")
        before, after = (part(proposed, name) for name in ("recorded", "wanted"))
        changes = plan.differences(before, after, proposed.get("service")) if after else []
        why = "" if after else "no image for it" if host in turns else "not known: no answer"
        rows.append(plan.row(host, seen.get(host, {}), turns.get(host, ""), before, after, changes, why))
    return {"nodes": rows, "objections": plan.causes(finding_rows(seen, hosts))}


def rollback(seen: Mapping[str, Mapping[str, Any]], hosts: Sequence[str], batches: Sequence[str], to: str) -> dict[str, Any]:
    """Rows and objections of a rollback: the nodes that move, one first, then the rest in batches."""
    found = {each["node"]: each for each in rollback_rows(seen, hosts, to)}
    moving = [host for host in hosts if found[host]["moves"]]
    turns = plan.steps(moving[:1], moving[1:], batches, len(moving))
    rows = []
    for host in hosts:
        recorded = part(seen.get(host), "attnkit_recorded")
        before, after = (part(recorded, name) for name in ("release", "previous"))
        moves = host in turns
        changes = plan.differences(before, after, {"running": True, "image": after.get("image")}) if moves else []
        goal = after if moves else before
        rows.append(plan.row(host, seen.get(host, {}), turns.get(host, ""), before, goal, changes, found[host]["why"]))
    objections = [
        {"node": host, "check": "release", "ok": not found[host]["objects"], "detail": found[host]["why"]} for host in hosts
    ]
    return {"nodes": rows, "objections": plan.causes(objections)}


def repair(seen: Mapping[str, Mapping[str, Any]], hosts: Sequence[str], policy: str) -> dict[str, Any]:
    """Rows and objections of a repair: the nodes that do not serve, one at a time."""
    broken = [host for host in hosts if not part(seen.get(host), "attnkit_outcome").get("ok")]
    turns = plan.steps([], broken, ["1"], len(broken))
    rows, objections = [], []
    for host in hosts:
        own, recorded = seen.get(host, {}), part(seen.get(host), "attnkit_recorded")
        now, previous = (part(recorded, name) for name in ("release", "previous"))
        why = plan.text(part(own, "attnkit_outcome").get("reason") or "serves")
        does = [f"{policy}: {why}"] if host in turns else []
        if host in turns and policy == "revert":
            does = [f"restart, else {plan.digest(str(previous.get('image')))}: {why}" if previous else f"restart: {why}"]
        rows.append(plan.row(host, own, turns.get(host, ""), now, now, does, why))
        if host in turns and policy == "drain" and not any(own.get(name) for name in plan.HOOKS[:2]):
            detail = "no hook is set that drains it: attnkit_drain_command or attnkit_drain_tasks"
            objections.append({"node": host, "check": "drain", "ok": False, "detail": detail})
        if host in turns and policy != "drain" and not now:
            detail = "no release is recorded, so there is nothing to restart; roll one out"
            objections.append({"node": host, "check": "release", "ok": False, "detail": detail})
    return {"nodes": rows, "objections": plan.causes(objections)}


def write(document: Mapping[str, Any], folder: str) -> list[str]:
    """The plan as data and as a page; the paths. Each file is there whole, or is the one of before."""
    text = {
        "plan.json": json.dumps(document, indent=1) + "\n",
        "plan.html": render(
            "plan.html.j2", **document, title=plan.headline(document), columns=plan.COLUMNS, digest=plan.digest
        ),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in text.items():
        new = Path(folder, f".{name}.new")
        new.write_text(content, encoding="utf-8")
        new.replace(Path(folder, name))
    return [str(Path(folder, name)) for name in text]


class ActionModule(ActionBase):
    """Reads, shows, writes; changes nothing and asks no node."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """`lines` and `steps`; failed if anything speaks against the run."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        refuse_injected_facts()
        shared = task_vars or {}
        _, args = self.validate_argument_spec(argument_spec=ARGUMENTS)
        hosts = [str(host) for host in (shared["ansible_play_hosts_all"] if args["hosts"] is None else args["hosts"])]
        seen = host_variables(shared["hostvars"], hosts)
        if args["kind"] == "rollout":
            made = rollout(seen, hosts, args["batches"])
        elif args["kind"] == "rollback":
            made = rollback(seen, hosts, args["batches"], args["to"])
        else:
            made = repair(seen, hosts, args["policy"])
        now = datetime.datetime.now(tz=datetime.timezone.utc)
        document = {
            "schema_version": 1,
            "kind": args["kind"],
            "created": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "check": bool(self._task.check_mode),
            **made,
        }
        result |= {
            "changed": False,
            "lines": plan.lines(document, min(max(self._display.columns, WIDTH), 160)),
            "steps": {node["node"]: node["step"] for node in sorted(made["nodes"], key=plan.turn) if node["step"]},
            "objections": plan.objection_lines(document),
            "files": [],
            "_ansible_verbose_always": True,
        }
        if args["folder"]:
            try:
                result["files"] = write(document, args["folder"])
            except OSError as error:
                return {**result, "failed": True, "msg": f"attnkit_plan_dir: {args['folder']}: {error.strerror or error}"}
        if result["objections"]:
            result |= {"failed": True, "msg": "\n".join(result["objections"])}
        return result
