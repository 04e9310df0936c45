#!/usr/bin/python
"""Compares what a node runs with what it should run. Standard library only; changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: attnkit_drift
short_description: Find where a node differs from its record, its inventory and its last self-test
version_added: 0.2.0
description:
  - Compares the service's container with the recorded release, the record with the inventory, and the present hardware, driver
    and kernel with those of the boot report.
  - A difference is a value (C(ok) is false), so that one table can show those of all nodes. Nothing is changed.
  - Environment variables that differ are named; their values are not shown.
options:
  state_dir:
    description: Folder on the node that holds C(release.json) and C(run/report.json).
    type: path
    required: true
  wanted:
    description: The release that the inventory describes. Omit it if it names no image for the node's platform.
    type: dict
  secrets:
    description: Values of the secret variables that the service must have.
    type: dict
    default: {}
  detection:
    description: What C(attnkit_facts) found on the node just now.
    type: dict
    required: true
  accept_planted:
    description: For rehearsals only. Accept a report in which no kernel ran because the device was simulated.
    type: bool
    default: false
  max_report_age:
    description: Seconds after which a boot report counts as too old; 0 for any age.
    type: int
    default: 0
extends_documentation_fragment:
  - attnkit.fleet.service
  - attnkit.fleet.service.read_only
"""

EXAMPLES = r"""
- name: Check for drift
  attnkit.fleet.attnkit_drift:
    container: attnkit
    state_dir: /var/lib/attnkit
    wanted: "{{ attnkit_wanted }}"
    detection: "{{ ansible_facts.attnkit.detection }}"
  register: drift
"""

RETURN = r"""
drift:
  description: Whether anything differs.
  returned: always
  type: bool
findings:
  description: One entry per check.
  returned: always
  type: list
  elements: dict
  sample:
    - check: kernel
      ok: false
      should: 6.1.0-38-amd64
      found: 6.1.0-40-amd64
"""

import datetime
import json
import os
import urllib.parse
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import drift, pending
from ..module_utils.arguments import ACCEPT_PLANTED, SERVICE, Arguments
from ..module_utils.boot_report import read_json
from ..module_utils.docker_api import Docker, DockerError

ARGUMENTS: Arguments = {
    **SERVICE,
    **ACCEPT_PLANTED,
    "state_dir": {"type": "path", "required": True},
    "wanted": {"type": "dict"},
    "secrets": {"type": "dict", "default": {}, "no_log": True},
    "detection": {"type": "dict", "required": True},
    "max_report_age": {"type": "int", "default": 0},
}


def running_names(docker: Docker) -> list[str]:
    """Names of the running containers whose image says that it is attnkit's."""
    query = urllib.parse.quote(json.dumps({"label": ["attnkit.platform"]}))
    return sorted(c["Names"][0].lstrip("/") for c in docker.get(f"/containers/json?filters={query}") or [])


def compare(docker: Docker, params: dict[str, Any]) -> list[dict[str, Any]]:
    """Every finding of this node.

    Raises:
        DockerError: Docker does not answer.
    """
    record = read_json(os.path.join(params["state_dir"], "release.json"))
    report = read_json(os.path.join(params["state_dir"], "run", "report.json"))
    recorded = (record or {}).get("release")
    inspected = docker.container(params["container"])
    image = docker.get(f"/images/{inspected['Image']}/json") if inspected else None
    now = datetime.datetime.now(tz=datetime.timezone.utc)
    return [
        drift.check_service(inspected),
        drift.check_managed(
            record,
            running_names(docker),
            params["container"],
            pending.unconfirmed(os.path.join(params["state_dir"], "watch")),
        ),
        drift.check_release(recorded, params["wanted"]),
        drift.check_image(inspected, image, recorded),
        drift.check_configuration(inspected, image, recorded, params["secrets"]),
        drift.check_report(report, inspected, recorded, now, params["max_report_age"], params["accept_planted"]),
        drift.check_kernel(report, params["detection"]),
        drift.check_driver(report, params["detection"]),
        drift.check_hardware(report, params["detection"]),
    ]


def main() -> None:
    """The module's entry."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        findings = compare(Docker(module.params["docker_socket"]), module.params)
    except DockerError as error:
        findings = [drift.drift("service", False, "running", str(error))]
    module.exit_json(changed=False, drift=not all(f["ok"] for f in findings), findings=findings)


if __name__ == "__main__":
    main()
