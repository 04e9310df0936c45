#!/usr/bin/python
"""Finds the groups that own a node's device nodes. Standard library only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: attnkit_devices
short_description: Find the numbers of the groups that own device nodes
version_added: 0.1.0
description:
  - A container gets a group by number. A name would be resolved in the image, where C(render) is missing or has another number
    than on the node, and the service could not open its device.
  - Changes nothing.
options:
  paths:
    description: Device nodes, or folders with device nodes.
    type: list
    elements: path
    required: true
author:
  - The attnkit authors
extends_documentation_fragment:
  - attnkit.fleet.service.read_only
"""

EXAMPLES = r"""
- name: Find the groups that may open the devices
  attnkit.fleet.attnkit_devices:
    paths: [/dev/kfd, /dev/dri]
  register: devices
"""

RETURN = r"""
groups:
  description: Numbers of the groups, sorted, without that of root.
  returned: always
  type: list
  elements: str
  sample: ["44", "992"]
"""

import os
import stat

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.arguments import Arguments

ARGUMENTS: Arguments = {"paths": {"type": "list", "elements": "path", "required": True}}


def groups_of(paths: list[str]) -> list[str]:
    """The groups that own the device nodes at or below the paths; what is not there has none."""
    found: set[int] = set()
    for path in paths:
        below = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
        for candidate in [path, *below]:
            try:
                status = os.stat(candidate)
            except OSError:
                continue
            if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                found.add(status.st_gid)
    return [str(number) for number in sorted(found - {0})]


def main() -> None:
    """The module's entry."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.exit_json(changed=False, groups=groups_of(module.params["paths"]))


if __name__ == "__main__":
    main()
