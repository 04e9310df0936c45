"""The argument specs of what several modules take; doc_fragments/service.py describes it."""

from __future__ import annotations

from typing import Any

Arguments = dict[str, dict[str, Any]]

SERVICE: Arguments = {
    "container": {"type": "str", "required": True},
    "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
}
ACCEPT_PLANTED: Arguments = {"accept_planted": {"type": "bool", "default": False}}
GATED: Arguments = {"node_type": {"type": "str"}, "settle": {"type": "float", "default": 0.0}, **ACCEPT_PLANTED}
