#!/usr/bin/python
"""Runs attnkit's hardware detection on a node. The action plugin of the same name ships the code and matches the profile."""

from __future__ import annotations

DOCUMENTATION = r"""
module: attnkit_facts
short_description: Detect the accelerators of a node and its node type
version_added: 0.1.0
description:
  - Runs attnkit's own hardware detection on the node. The controller sends the code along as a small archive,
    so that the node needs nothing but Python 3.10 or newer.
  - The node type is matched on the controller, with the profiles of the attnkit that is installed there.
  - Nothing on the node is changed.
options:
  node_type:
    description: Use this node type whatever is detected. It is checked against the profiles and reported as given.
    type: str
  root:
    description: Alternative root to read C(/sys) and C(/proc) from.
    type: path
    default: /
  timeout:
    description: Seconds after which a detection that hangs (a driver that does not answer) is stopped.
    type: int
    default: 60
  require_known:
    description: Fail if no node type matches. Otherwise the fact C(node_type) is null and C(why) gives the reason.
    type: bool
    default: true
  payload:
    description: Set by the action plugin, the archive with the detection code.
    type: str
author:
  - The attnkit authors
extends_documentation_fragment:
  - attnkit.fleet.service.read_only
"""

EXAMPLES = r"""
- name: Detect the accelerators
  attnkit.fleet.attnkit_facts:

- name: Override the detection
  attnkit.fleet.attnkit_facts:
    node_type: rtx-2080-ti
"""

RETURN = r"""
ansible_facts:
  description: The fact C(attnkit).
  returned: always
  type: dict
  contains:
    attnkit:
      description: Node type and what it follows from.
      type: dict
      sample:
        node_type: h100
        node_type_source: detected
        detected_node_type: h100
        platform: cuda-ampere
        vendor: nvidia
        device: NVIDIA H100 80GB HBM3
        why: pci id 10de:2330
        candidates:
          - node: h100
            fits: true
            why: pci id 10de:2330
        detection: {}
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.arguments import Arguments

ARGUMENTS: Arguments = {
    "node_type": {"type": "str"},
    "root": {"type": "path", "default": "/"},
    "timeout": {"type": "int", "default": 60},
    "require_known": {"type": "bool", "default": True},
    "payload": {"type": "str", "no_log": False},
}

# The subprocess keeps a crash or a hang inside a vendor's library away from the module.
_DETECT = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
from attnkit.errors import AttnkitError
from attnkit.hardware import detect
try:
    found = detect(sys.argv[2])
except AttnkitError as error:
    sys.exit(str(error))
print(json.dumps(dataclasses.asdict(found)))
"""


def detect(payload: bytes, root: str, timeout: int, tmpdir: str | None) -> dict[str, Any]:
    """The detection as plain data.

    Raises:
        RuntimeError: it failed or hung; the message says what the node said.
    """
    with tempfile.TemporaryDirectory(dir=tmpdir, prefix="attnkit-") as folder:
        archive = os.path.join(folder, "attnkit.zip")
        with open(archive, "wb") as file:
            file.write(payload)
        try:
            done = subprocess.run(
                [sys.executable, "-c", _DETECT, archive, root], capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"hardware detection gave no answer in {timeout} s; does a driver hang?") from error
    if done.returncode != 0:
        raise RuntimeError(f"hardware detection failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """The module's entry."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    if sys.version_info < (3, 10):
        module.fail_json(msg=f"hardware detection needs Python 3.10 or newer on the node; found {sys.version.split()[0]}")
    if not module.params["payload"]:
        module.fail_json(
            msg="no payload: attnkit_facts must run through its action plugin (use the full name attnkit.fleet.attnkit_facts)"
        )
    if not os.path.isdir(module.params["root"]):
        module.fail_json(msg=f"root: {module.params['root']} is not a directory on this node")
    try:
        detection = detect(
            base64.b64decode(module.params["payload"]), module.params["root"], module.params["timeout"], module.tmpdir
        )
    except RuntimeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, detection=detection)


if __name__ == "__main__":
    main()
