"""Pages of the fleet: one file each, no script, font or image from elsewhere, everything that is filled in escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).resolve().parents[2] / "playbooks" / "templates"


def render(template: str, **values: Any) -> str:
    """A page from a file in playbooks/templates."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)
