#!/usr/bin/python
"""Documentation of the action attnkit_plan, which runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: attnkit_plan
short_description: Show what a run would change, before it changes anything
version_added: 0.2.0
description:
  - Makes one table of what the run would do with every node, in which order, and what speaks against it, by cause. Nodes of
    which all is the same share a line.
  - Fails if anything speaks against the run.
  - Writes the plan of every node as C(plan.json) and as a page, C(plan.html), on the controller. Also in check mode.
  - Reads facts that other tasks have kept, and asks no node anything. What nodes said is made printable, and escaped on
    the page.
options:
  kind:
    description: What is planned.
    type: str
    choices: [rollout, rollback, repair]
    required: true
  batches:
    description: The sizes of the batches after the first nodes, as in C(serial) of the play.
    type: list
    elements: str
    default: []
  hosts:
    description: The hosts of the plan. The default is all hosts of the play, those included that did not answer.
    type: list
    elements: str
  to:
    description: For a rollback, the release to go to, its image or a part of that; empty for the one before.
    type: str
    default: ""
  policy:
    description: For a repair, what is done with a node that does not serve.
    type: str
    choices: [restart, revert, drain]
    default: restart
  folder:
    description: Folder on the controller for the files; empty for none.
    type: path
    default: ""
author:
  - The attnkit authors
extends_documentation_fragment:
  - attnkit.fleet.service.read_only
"""

EXAMPLES = r"""
- name: Show what would change
  attnkit.fleet.attnkit_plan:
    kind: rollout
    batches: [10%, 50%, 100%]
    folder: /tmp/plan
  run_once: true
"""

RETURN = r"""
lines:
  description: The plan as a person reads it, 79 characters wide or as wide as the terminal.
  returned: always
  type: list
  elements: str
steps:
  description: The nodes that have a turn, in the order of the run, each with its step.
  returned: always
  type: dict
  sample:
    hopper-1: canary
objections:
  description: What speaks against the run, a line a cause.
  returned: always
  type: list
  elements: str
files:
  description: The files that were written.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.arguments import Arguments

ARGUMENTS: Arguments = {
    "kind": {"type": "str", "choices": ["rollout", "rollback", "repair"], "required": True},
    "batches": {"type": "list", "elements": "str", "default": []},
    "hosts": {"type": "list", "elements": "str"},
    "to": {"type": "str", "default": ""},
    "policy": {"type": "str", "choices": ["restart", "revert", "drain"], "default": "restart"},
    "folder": {"type": "path", "default": ""},
}


def main() -> None:
    """The module's entry."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.fail_json(msg="attnkit_plan runs on the controller: use its full name, attnkit.fleet.attnkit_plan")


if __name__ == "__main__":
    main()
