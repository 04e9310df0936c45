"""What the filters that read the variables of many hosts have in common."""

from __future__ import annotations


class ModuleDocFragment:
    """The fragment."""

    DOCUMENTATION = r"""
options:
  _input:
    description: The variable C(hostvars).
    type: dict
    required: true
  hosts:
    description: Names of the hosts, in the order of the result.
    type: list
    elements: str
    required: true
author:
  - The attnkit authors
"""
