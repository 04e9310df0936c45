"""What a node may tell the controller: data under its own name, never a variable."""

from __future__ import annotations

from ansible import constants
from ansible.errors import AnsibleActionFail


def refuse_injected_facts() -> None:
    """Stop if a node could set variables of the play: every module's result may carry facts, and hooks and paths are variables.

    Raises:
        AnsibleActionFail: inject_facts_as_vars is on, with what to set.
    """
    if constants.config.get_config_value("INJECT_FACTS_AS_VARS"):
        raise AnsibleActionFail(
            "inject_facts_as_vars is on: what a node returns as facts would become variables of this computer, hooks and paths"
            " among them. Set inject_facts_as_vars = false in [defaults] of ansible.cfg, or ANSIBLE_INJECT_FACT_VARS=false"
        )
