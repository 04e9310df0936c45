"""From devices, requirements and a profile to a decision, with every reason against the others."""

from attnkit.backends.installed import installed_versions
from attnkit.select.choose import Decision, select
from attnkit.select.order import built_in_order

__all__ = [
    "Decision",
    "built_in_order",
    "installed_versions",
    "select",
]
