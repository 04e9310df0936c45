"""What the modules about a node's service have in common."""

from __future__ import annotations


class ModuleDocFragment:
    """The service, what its boot is judged by, and the attributes of modules that change nothing."""

    DOCUMENTATION = r"""
options:
  container:
    description: Name of the service's container.
    type: str
    required: true
  docker_socket:
    description: Socket of the container runtime.
    type: path
    default: /var/run/docker.sock
author:
  - The attnkit authors
"""

    GATED = r"""
options:
  node_type:
    description: Node type that the boot report must be of. Not compared if it is not set.
    type: str
  accept_planted:
    description: For rehearsals only. Accept a boot in which no kernel ran because the device was simulated.
    type: bool
    default: false
  settle:
    description: Seconds that the service must have been ready. Not waited for if the service is only probed.
    type: float
    default: 0.0
"""

    READ_ONLY = r"""
attributes:
  check_mode:
    description: Changes nothing, so it does the same in check mode.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
"""
