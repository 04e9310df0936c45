#!/usr/bin/python
"""A lock that makes rollouts mutually exclusive on a node. Standard library only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: attnkit_lock
short_description: Lock a node for one rollout at a time
version_added: 0.1.0
description:
  - Creates or removes a lock file on the node. Creating it is atomic; the file says who has locked the node and since when.
  - Every lock names the computer and the process of the run that took it. A run on the same computer takes over a lock whose
    process has ended (killed, or disconnected).
  - A lock is not part of a node's configuration, so that taking and freeing it is not reported as a change.
options:
  path:
    description: The lock file.
    type: path
    required: true
  owner:
    description: Who takes the lock, unique to this run.
    type: str
    required: true
  state:
    description: Take the lock, or free it. Freeing the lock of another run does nothing.
    type: str
    choices: [held, free]
    default: held
  stale_after:
    description: Seconds after which the lock of another run counts as left over.
    type: int
    default: 3600
  steal:
    description: Take the lock, whoever holds it.
    type: bool
    default: false
  run:
    description: Set by the action plugin, the computer and the process that run the playbook.
    type: dict
attributes:
  check_mode:
    description: Fails if another run holds the lock, but takes none.
    support: full
  diff_mode:
    description: Nothing to show.
    support: none
author:
  - The attnkit authors
"""

EXAMPLES = r"""
- name: Lock the node
  attnkit.fleet.attnkit_lock:
    path: /var/lib/attnkit/lock.json
    owner: alice@bastion 20260101T120000
"""

RETURN = r"""
holder:
  description: Who holds the lock now, null if nobody does.
  returned: always
  type: str
stolen_from:
  description: Whose lock was taken over, null if none was.
  returned: always
  type: str
"""

import json
import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.arguments import Arguments

ARGUMENTS: Arguments = {
    "path": {"type": "path", "required": True},
    "owner": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["held", "free"], "default": "held"},
    "stale_after": {"type": "int", "default": 3600},
    "steal": {"type": "bool", "default": False},
    "run": {"type": "dict"},
}


def read(path: str) -> dict[str, Any] | None:
    """The present lock; None if there is none. A file that is half written counts as a lock without an owner."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        since = os.stat(path).st_mtime
    except FileNotFoundError:
        return None
    try:
        document = json.loads(text)
        owner, run = str(document["owner"]), document.get("run")
    except (ValueError, KeyError, TypeError, AttributeError):
        owner, run = "unknown", None
    return {"owner": owner, "since": since, "run": run}


def create(path: str, owner: str, run: dict[str, Any] | None) -> bool:
    """Create the lock file; False if somebody was faster."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"owner": owner, "run": run}, file)
    return True


def main() -> None:
    """The module's entry."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    p = module.params
    path, owner = p["path"], p["owner"]
    there = read(path)
    ours = there is not None and there["owner"] == owner
    if p["state"] == "free":
        if ours and not module.check_mode:
            os.unlink(path)
        module.exit_json(changed=False, holder=None if ours or there is None else there["owner"], stolen_from=None)
    if ours:
        module.exit_json(changed=False, holder=owner, stolen_from=None)
    stolen_from = None
    if there is not None:
        age = time.time() - there["since"]
        if not p["steal"] and age < p["stale_after"]:
            module.fail_json(
                holding_run=there["run"],
                msg=f"{there['owner']} has held the lock of this node for {age:.0f} s ({path}). Wait for that run, "
                "or take the lock over with -e attnkit_steal_lock=true if it died.",
            )
        stolen_from = there["owner"]
        if not module.check_mode:
            os.unlink(path)
    if not module.check_mode:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        if not create(path, owner, p["run"]):
            winner = read(path)
            module.fail_json(
                msg=f"{winner['owner'] if winner else 'somebody else'} locked this node at the same moment ({path})"
            )
    module.exit_json(changed=False, holder=owner, stolen_from=stolen_from)


if __name__ == "__main__":
    main()
