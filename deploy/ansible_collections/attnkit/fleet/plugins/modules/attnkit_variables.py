#!/usr/bin/python
"""Documentation of the action attnkit_variables, which runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: attnkit_variables
short_description: Check the variables of the whole inventory, on the controller
version_added: 0.2.0
description:
  - Checks every variable C(attnkit_*) of every host of the group. Unknown names, values of the wrong kind, images without a
    digest, platforms and node types that do not exist are named with file and line, what is allowed and the nearest name.
  - Fails if the group is empty, and if C(inject_facts_as_vars) is on. A node could set variables of the controller then.
  - Asks no node anything.
options:
  group:
    description: The group of the inventory to check.
    type: str
    default: attnkit
author:
  - The attnkit authors
extends_documentation_fragment:
  - attnkit.fleet.service.read_only
"""

EXAMPLES = r"""
- name: Check the inventory
  attnkit.fleet.attnkit_variables:
  run_once: true
"""

RETURN = r"""
hosts:
  description: The hosts whose variables were checked.
  returned: success
  type: list
  elements: str
  sample: [hopper-1.example.org]
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.arguments import Arguments

ARGUMENTS: Arguments = {"group": {"type": "str", "default": "attnkit"}}


def main() -> None:
    """The module's entry."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.fail_json(msg="attnkit_variables runs on the controller: use its full name, attnkit.fleet.attnkit_variables")


if __name__ == "__main__":
    main()
